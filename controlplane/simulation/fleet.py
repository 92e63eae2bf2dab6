"""The fleet that a spec describes, as engine profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.routing.admission.settings import PRIORITIES, Settings
from controlplane.simulation.errors import InvalidSimulation
from controlplane.simulation.profile import G8B, EngineProfile
from controlplane.spec import Cluster, ExternalEngineSpec, ModelSpec, SimulatedEngineSpec, VllmEngineSpec
from controlplane.spec.admission import AdmissionSpec

EngineSpec = SimulatedEngineSpec | VllmEngineSpec | ExternalEngineSpec


@dataclass(frozen=True, slots=True)
class Fleet:
    """One model's replicas by what they do, and how its requests are routed."""

    model: str
    engines: tuple[EngineProfile, ...]
    prefill_engines: tuple[EngineProfile, ...]
    policy: str
    parameters: Mapping[str, float]
    admission: Settings | None = None
    precise: bool = False


def fleet(cluster: Cluster, model: str = "") -> Fleet:
    """Return one model's fleet. Raises InvalidSimulation when there is no such model or nothing that answers."""
    names = ", ".join(each.name for each in cluster.models)
    if model:
        chosen = next((each for each in cluster.models if each.name == model), None)
        if chosen is None:
            raise InvalidSimulation(f"--model {model!r}: the spec has no such model; it has {names}")
    elif len(cluster.models) > 1:
        raise InvalidSimulation(f"the spec has several models: say which with --model; it has {names}")
    else:
        chosen = cluster.models[0]
    return _of(chosen)


def _of(model: ModelSpec) -> Fleet:
    roles = {pool.role for pool in model.pools}
    answering = "mixed" if "mixed" in roles else "decode"
    engines: list[EngineProfile] = []
    prefill: list[EngineProfile] = []
    for pool in model.pools:
        if pool.role == answering:
            engines += [profile_of(pool.engine, pool.name)] * pool.replicas
        elif pool.role == "prefill" and answering == "decode":
            prefill += [profile_of(pool.engine, pool.name)] * pool.replicas
    if not engines:
        raise InvalidSimulation(f"model {model.name!r} has no replica that answers: its {answering} pools are empty")
    routing = model.routing
    return Fleet(
        model=model.name,
        engines=tuple(engines),
        prefill_engines=tuple(prefill),
        policy=routing.policy,
        parameters=dict(routing.parameters),
        admission=_admission(routing.admission) if routing.admission is not None else None,
        precise=routing.precise,
    )


def _admission(spec: AdmissionSpec) -> Settings:
    return Settings(
        ttft_target_s=spec.ttft_target_s,
        max_requests=spec.max_requests,
        max_tokens=spec.max_tokens,
        tenant_requests=spec.tenant_requests,
        tenant_tokens=spec.tenant_tokens,
        timeouts_s=tuple(getattr(spec.timeouts_s, name) for name in PRIORITIES),
        guaranteed_share=spec.guaranteed_share,
    )


def profile_of(engine: EngineSpec, name: str) -> EngineProfile:
    """Return an engine's constants: a simulated engine's own, else those of g8b with the sizes that the spec tells."""
    if isinstance(engine, SimulatedEngineSpec):
        return EngineProfile(
            name=name,
            step_base_s=engine.step_base_ms * 1e-3,
            prefill_s=engine.prefill_us_per_token * 1e-6,
            attention_s=0.0,
            sequence_s=engine.decode_us_per_sequence * 1e-6,
            context_s=0.0,
            kv_capacity_tokens=engine.kv_capacity_tokens,
            max_batched_tokens=engine.max_batched_tokens,
            max_running=engine.max_running,
            kv_transfer_s=engine.kv_transfer_us_per_token * 1e-6,
        )
    profile = replace(G8B, name=name, max_running=engine.max_running or G8B.max_running)
    if isinstance(engine, ExternalEngineSpec) and engine.kv_capacity_tokens:
        return replace(profile, kv_capacity_tokens=engine.kv_capacity_tokens)
    return profile
