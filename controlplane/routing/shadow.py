"""A second policy that looks over the first one's shoulder: it is asked for the same decisions, and never routes.

It sees the state that the routing policy makes (requests in flight, learned rates, adapters, the prefix tree of what
was really sent where), so each answer says what it would do *here*, not what a fleet under its rule would look like;
the replay of a journal tells that (docs/replay.md). What a policy keeps for itself (turns, draws, rings, trees of its
own) is the shadow's own.

Both choices are judged by one prediction, that of policy ``cost``: prefill queued at the replica and the prompt's own
uncached prefill at that replica's learned speed, and one decode step. Gain is the routing policy's less the shadow's;
regret is a choice's less the best among the candidates of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.fleet import DECODE, MIXED, READY, ModelInfo, Topology
from controlplane.routing.install import Installation
from controlplane.routing.load import BLOCK_BYTES, Replica
from controlplane.routing.policies.base import Choice, Policy
from controlplane.routing.policies.registry import checked, make
from controlplane.routing.prefix_index import HASH_BYTES, Match, parts
from controlplane.routing.record import Request
from controlplane.routing.view import View, whole_prompt_bytes

#: Exceptions after which a shadow is asked no more: the first says that it is wrong, the rest that it stays so.
MAX_FAILURES = 8


@dataclass(frozen=True, slots=True)
class ShadowInfo:
    """A policy that is asked for a ``share`` (0 to 1) of a model's decisions."""

    policy: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """What one model's shadow has seen since it was set. Times are sums, in seconds, over all ``decisions``.

    ``failures`` are exceptions in its policy; ``off`` tells that there were too many.
    """

    model: str
    policy: str
    parameters: Mapping[str, float]
    share: float
    decisions: int
    agreed: int
    routed_s: float
    shadow_s: float
    routed_regret_s: float
    shadow_regret_s: float
    failures: int
    off: bool


class Shadow:
    """One model's shadow. Costs what its policy costs, and about 1 us for each candidate that is judged."""

    def __init__(self, model: str, info: ShadowInfo, seed: int) -> None:
        """Raises UnknownPolicy."""
        self.model = model
        self.info = info
        self.values = checked(info.policy, info.parameters)
        self.policy: Policy = make(info.policy, self.values, seed)
        self.off = False
        self._due = 0.0
        #: Where the shadow stands in the load order's rotation among equals.
        self._turn = -1
        self._decisions = 0
        self._agreed = 0
        self._failures = 0
        self._routed_s = 0.0
        self._shadow_s = 0.0
        self._routed_regret_s = 0.0
        self._shadow_regret_s = 0.0

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Take a new topology, as ``Policy.refresh``; never raises."""
        try:
            self.policy.refresh(members, names)
        except Exception:
            self._fail()

    def watch(self, view: View, request: Request, choice: Choice, now_s: float) -> None:
        """Compare the decision that was just chosen, before it is carried out; never raises, changes nothing.

        When the routing policy looked no prompt up and the shadow reads prefixes, its lookup stays, for the core to
        note in the tree.
        """
        if self.off:
            return
        if view.known is None and self.policy.reads_prefixes:
            view.lookup(request)
        self._due += self.info.share
        if self._due < 1.0:
            return
        self._due -= 1.0
        order = view.order
        turn, known, chain, predicted = order._turn, view.known, view.chain, view.predicted
        order._turn = self._turn
        try:
            shadow = self.policy.choose(view, request, now_s)
            self._turn = order._turn
            self._judge(view, request, choice[0], shadow[0])
        except Exception:
            self._fail()
        finally:
            order._turn = turn
            view.predicted = predicted
            if known is not None:
                view.known, view.chain = known, chain

    def counts(self) -> ShadowCounts:
        """Return what was seen."""
        return ShadowCounts(
            model=self.model,
            policy=self.info.policy,
            parameters=self.values,
            share=self.info.share,
            decisions=self._decisions,
            agreed=self._agreed,
            routed_s=self._routed_s,
            shadow_s=self._shadow_s,
            routed_regret_s=self._routed_regret_s,
            shadow_regret_s=self._shadow_regret_s,
            failures=self._failures,
            off=self.off,
        )

    def _judge(self, view: View, request: Request, routed: Sequence[Replica], shadow: Sequence[Replica]) -> None:
        prompt = view.tokens(whole_prompt_bytes(request))
        cached = _Cached(view, prompt)
        predicted = {}
        for replica in dict.fromkeys((*routed, *shadow)):
            hit = int(cached.tokens(replica) * replica.trust)
            predicted[replica] = replica.wait_s(replica.rates.work(prompt - hit, hit))
        best_s = min(predicted.values())
        routed_s, shadow_s = predicted[routed[0]], predicted[shadow[0]]
        self._decisions += 1
        self._agreed += routed[0] is shadow[0]
        self._routed_s += routed_s
        self._shadow_s += shadow_s
        self._routed_regret_s += routed_s - best_s
        self._shadow_regret_s += shadow_s - best_s

    def _fail(self) -> None:
        self._failures += 1
        self.off = self._failures >= MAX_FAILURES


class _Cached:
    """How much of the prompt that was looked up last each replica is taken to cache."""

    __slots__ = ("_held", "_parts", "_per_byte", "_prompt")

    def __init__(self, view: View, prompt: int) -> None:
        known: Match | None = view.known
        self._held = view.held
        self._prompt = prompt
        self._per_byte = BLOCK_BYTES / HASH_BYTES / view.bytes_per_token
        self._parts = parts(known)[::-1] if known is not None and (known[0] or known[2] is not None) else []

    def tokens(self, replica: Replica) -> int:
        """Return the prompt tokens that need no prefill there."""
        if self._held is not None:
            return min(self._held.get(replica, 0), self._prompt)
        for holders, depth in self._parts:
            if replica in holders:
                return min(int(depth * self._per_byte), self._prompt)
        return 0


def install_shadows(
    shadows: dict[str, Shadow], infos: Mapping[str, ShadowInfo], topology: Topology, installed: Installation
) -> list[UnknownPolicy]:
    """Change ``shadows``, by model, to what is asked for, after the topology itself was installed.

    A shadow stays, counts and all, while its settings do. Returns an error for each that cannot be; that model has
    none then, because what only watches must not keep a topology from being used.
    """
    known = dict(shadows)
    refused: list[UnknownPolicy] = []
    shadows.clear()
    for model in topology.models:
        info = infos.get(model.name)
        if info is None:
            continue
        shadow = known.get(model.name)
        try:
            if shadow is None or shadow.info != info:
                shadow = Shadow(model.name, info, installed.seed)
        except UnknownPolicy as error:
            refused.append(error)
            continue
        shadows[model.name] = shadow
        seated = _seated(model, installed)
        members = [replica for replica in seated if replica.info.state == READY]
        shadow.refresh(members, [replica.info.name for replica in seated])
        if shadow.policy.reads_prefixes:
            for name in (model.name, *(adapter.name for adapter in model.adapters)):
                installed.views[name.encode()].keeps_prefixes = True
    return refused


def _seated(model: ModelInfo, installed: Installation) -> list[Replica]:
    """Return the replicas of the model's routed pools, ready or not, by name."""
    pools = {pool.name: pool.role for pool in model.pools}
    role = MIXED if MIXED in pools.values() else DECODE
    seated = [
        replica
        for replica in installed.by_server.values()
        if replica.info.model == model.name and pools.get(replica.info.pool) == role
    ]
    return sorted(seated, key=lambda replica: replica.info.name)
