"""Checks between the parts of a spec: names that must differ, names that must exist, models that must answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.policies import registry
from controlplane.spec import fields, outline, room
from controlplane.spec.outline import Place, Pool, Violation, entries, text

#: Violations of one kind that are looked for: nobody reads more, and a guess for each one costs milliseconds.
MAX_VIOLATIONS = 100
#: Policies that know caches only by the prompts' text.
TEXT_POLICIES = frozenset({"prefix", "cache_aware", "prefix_tree"})


def violations(spec: dict[str, Any]) -> list[Violation]:
    """Return what is wrong between the parts of a spec, which is plain data of any shape, in no order."""
    pools, nodes = outline.pools(spec), outline.nodes(spec)
    found = (
        _repeated_names(spec, pools),
        _repeated(((*node.place, "name"), node.name) for node in nodes),
        _repeated_keys(spec),
        _unknown_nodes(pools, {node.name for node in nodes}),
        _models_without_answer(spec),
        _adapters_without_path(spec),
        _miscounted_endpoints(spec),
        _unknown_parameters(spec),
        _unknown_shadows(spec),
        _imprecise(spec),
        _isolated_outside(spec),
        room.violations(spec, pools, nodes),
    )
    return [violation for kind in found for violation in itertools.islice(kind, MAX_VIOLATIONS)]


def _repeated(names: Iterable[tuple[Place, str]], of: str = "") -> Iterator[Violation]:
    seen: set[str] = set()
    for place, name in names:
        if name and name in seen:
            yield Violation(place, f"{fields.shown(name)} is the name of another {of or str(place[-3])[:-1]}")
        seen.add(name)


def _repeated_names(spec: dict[str, Any], pools: list[Pool]) -> Iterator[Violation]:
    served: list[tuple[Place, str]] = []
    for place, model in entries(spec, "models"):
        served.append(((*place, "name"), text(model, "name")))
        served += [((*inner, "name"), text(adapter, "name")) for inner, adapter in entries(model, "adapters", place)]
    yield from _repeated(served, "model or adapter")
    yield from _repeated(((*pool.place, "name"), pool.name) for pool in pools)


def _repeated_keys(spec: dict[str, Any]) -> Iterator[Violation]:
    keys = list(entries(spec.get("api_keys"), "keys", ("api_keys",)))
    yield from _repeated(((*place, "name"), text(key, "name")) for place, key in keys)
    digests: set[str] = set()
    for place, key in keys:
        digest = text(key, "sha256")
        if digest and digest in digests:
            yield Violation((*place, "sha256"), "is the digest of another key")
        digests.add(digest)


def _unknown_nodes(pools: list[Pool], known: set[str]) -> Iterator[Violation]:
    for pool in pools:
        seen: set[str] = set()
        for place, name in pool.listed_nodes:
            if name not in known:
                yield Violation(place, f"there is no node {fields.shown(name)}{fields.nearest(name, known)}")
            elif name in seen:
                yield Violation(place, f"the node {fields.shown(name)} is listed twice")
            seen.add(name)


def _models_without_answer(spec: dict[str, Any]) -> Iterator[Violation]:
    for place, model in entries(spec, "models"):
        roles = [text(pool, "role", "mixed") for _, pool in entries(model, "pools")]
        if roles and all(role == "prefill" for role in roles):
            yield Violation((*place, "pools"), "are all of role prefill: one of role mixed or decode must answer")


def _adapters_without_path(spec: dict[str, Any]) -> Iterator[Violation]:
    for place, model in entries(spec, "models"):
        engines = [pool.get("engine") for _, pool in entries(model, "pools")]
        if not any(isinstance(engine, dict) and engine.get("kind") == "vllm" for engine in engines):
            continue
        for inner, adapter in entries(model, "adapters", place):
            if adapter.get("path") is None:
                yield Violation((*inner, "path"), "missing: vLLM loads the adapter from this directory")


def _unknown_parameters(spec: dict[str, Any]) -> Iterator[Violation]:
    for model_place, model in entries(spec, "models"):
        routing = model.get("routing")
        given = routing.get("parameters") if isinstance(routing, dict) else None
        policy = registry.POLICIES.get(text(routing, "policy", "cost")) if isinstance(routing, dict) else None
        if policy is None or not isinstance(given, dict):
            continue
        for name, value in given.items():
            place, parameter = (*model_place, "routing", "parameters", name), policy.parameters.get(name)
            if parameter is None:
                there = ", ".join(sorted(policy.parameters)) or "none"
                guess = fields.nearest(name, policy.parameters) or f": it has {there}"
                yield Violation(place, f"is no parameter of {policy.name}{guess}")
            elif type(value) in {int, float} and not parameter.minimum <= value <= parameter.maximum:
                yield Violation(place, f"must be {parameter.minimum:g} to {parameter.maximum:g}")


def _unknown_shadows(spec: dict[str, Any]) -> Iterator[Violation]:
    for model_place, model in entries(spec, "models"):
        routing = model.get("routing")
        shadow = routing.get("shadow") if isinstance(routing, dict) else None
        if not isinstance(shadow, dict):
            continue
        place = (*model_place, "routing", "shadow")
        given = shadow.get("parameters")
        try:
            registry.checked(text(shadow, "policy"), given if isinstance(given, dict) else {})
        except UnknownPolicy as error:
            yield Violation(place, str(error))


def _imprecise(spec: dict[str, Any]) -> Iterator[Violation]:
    """Yield what a precise model may not have."""
    for place, model in entries(spec, "models"):
        if not outline.is_precise(model):
            continue
        flag = (*place, "routing", "precise")
        policy = registry.POLICIES.get(text(model["routing"], "policy", registry.DEFAULT_POLICY))
        if policy is not None and (not policy.reads_prefixes or policy.name in TEXT_POLICIES):
            yield Violation(flag, f"changes nothing: {policy.name} does not look at what replicas cache")
        pools = list(entries(model, "pools", place))
        engines = [(inner, engine) for inner, pool in pools if isinstance(engine := pool.get("engine"), dict)]
        if any(engine.get("kind") == "external" for _, engine in engines):
            yield Violation(flag, "needs engines that Slipstream starts: an external one does not publish")
        weights = [text(engine, "model") for _, engine in engines if engine.get("kind") == "vllm"]
        if weights and not text(model["routing"], "tokenizer") and not any(path.startswith("/") for path in weights):
            yield Violation((*place, "routing", "tokenizer"), "missing: the folder that has the model's tokenizer.json")
        for inner, engine in engines:
            for at, arg in outline.listed(engine, "args", (*inner, "engine")):
                if isinstance(arg, str) and arg.replace("_", "-").startswith("--kv-events"):
                    yield Violation(at, "is set by routing.precise")
            if text(engine, "kv_events_endpoint"):
                yield Violation((*inner, "engine", "kv_events_endpoint"), "is set by routing.precise")


def _miscounted_endpoints(spec: dict[str, Any]) -> Iterator[Violation]:
    for model_place, model in entries(spec, "models"):
        for place, pool in entries(model, "pools", model_place):
            engine, replicas = pool.get("engine"), pool.get("replicas")
            endpoints = engine.get("endpoints") if isinstance(engine, dict) else None
            if isinstance(endpoints, list | tuple) and isinstance(replicas, int) and replicas != len(endpoints):
                message = f"is {replicas}, but there are {len(endpoints)} endpoints: leave it out"
                yield Violation((*place, "replicas"), message)


def _isolated_outside(spec: dict[str, Any]) -> Iterator[Violation]:
    for model_place, model in entries(spec, "models"):
        if model.get("isolate_cache") is not True:
            continue
        for place, pool in entries(model, "pools", model_place):
            engine = pool.get("engine")
            if isinstance(engine, dict) and engine.get("kind") == "external":
                message = "is external, but isolate_cache needs the middleware, which only our own engines run"
                yield Violation((*place, "engine"), message)
