"""A topology becomes views, load orders and policies; what stays keeps its state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from controlplane.routing.fleet import DECODE, DRAINING, MIXED, READY, ModelInfo, ReplicaInfo, Topology
from controlplane.routing.load import DEFAULT_HINTS, Replica
from controlplane.routing.load_order import LoadOrder
from controlplane.routing.policies.base import Policy
from controlplane.routing.policies.cost import Cost
from controlplane.routing.policies.registry import DEFAULT_POLICY, checked, make
from controlplane.routing.prefix_index import clear, release_all, share_nodes
from controlplane.routing.receipt import Label, Words
from controlplane.routing.view import View


class Installation:
    """What the core looks requests up in.

    ``views`` by model or adapter name; ``only`` is the view for a request without a model (None unless the cluster
    has exactly one model). ``pins`` by pin; ``by_server`` and ``by_wire`` by server name; ``pinned_labels`` number
    the words of pinned receipts, by model.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.views: dict[bytes, View] = {}
        self.only: View | None = None
        self.pins: dict[bytes, Replica] = {}
        self.by_server: dict[str, Replica] = {}
        self.by_wire: dict[bytes, Replica] = {}
        self.pinned_labels: dict[str, int] = {}
        self.orders: dict[str, LoadOrder] = {}
        #: model -> (policy name, values, number of this choice, instance)
        self.policies: dict[str, tuple[str, dict[str, float], int, Policy]] = {}
        self.policy_number = 0


def install(installed: Installation, topology: Topology, words: Words) -> None:
    """Change ``installed`` to a topology. Raises UnknownPolicy before anything changes."""
    for model in topology.models:
        checked(model.policy or DEFAULT_POLICY, model.parameters)
    _install_replicas(installed, topology.replicas, words)
    names = {model.name for model in topology.models}
    for gone in set(installed.orders) - names:
        installed.orders.pop(gone).fill(())
        del installed.policies[gone]
    by_model: dict[str, list[Replica]] = {name: [] for name in names}
    for replica in installed.by_server.values():
        if replica.info.model in by_model:
            by_model[replica.info.model].append(replica)
    views: dict[bytes, View] = {}
    for model in topology.models:
        _install_model(installed, model, by_model[model.name], len(installed.by_server), views, words)
    _forget_views(installed, views)
    installed.views = views
    installed.only = views[topology.models[0].name.encode()] if len(topology.models) == 1 else None


def _install_replicas(installed: Installation, infos: Iterable[ReplicaInfo], words: Words) -> None:
    known = installed.by_server
    by_server: dict[str, Replica] = {}
    for info in infos:
        replica = known.get(info.server)
        if replica is None:
            replica = Replica(info, words.server(info.server, info.pool))
        else:
            replica.describe(info)
        by_server[info.server] = replica
    for server, replica in known.items():
        if server not in by_server:
            _forget(replica)
    installed.by_server = by_server
    installed.by_wire = {replica.server: replica for replica in by_server.values()}
    installed.pins = {
        replica.info.pin.encode(): replica
        for replica in by_server.values()
        if replica.info.pin and replica.info.state in (READY, DRAINING)
    }
    share_nodes(by_server.values())


def _forget(replica: Replica) -> None:
    """Take what a server that is gone has in shared structures; its load order is filled anew without it."""
    release_all(replica)
    for view in replica.adapters:
        view.residents.pop(replica, None)
    replica.adapters.clear()


def _forget_views(installed: Installation, views: dict[bytes, View]) -> None:
    kept = set(views.values())
    for view in installed.views.values():
        if view not in kept:
            for replica in view.residents:
                replica.adapters.pop(view, None)
            clear(view.root)


def _install_model(
    installed: Installation,
    model: ModelInfo,
    replicas: list[Replica],
    cluster_size: int,
    views: dict[bytes, View],
    words: Words,
) -> None:
    """Fill the views of a model and its adapters."""
    pools = {pool.name: pool.role for pool in model.pools}
    role = MIXED if MIXED in pools.values() else DECODE
    seated = [replica for replica in replicas if pools.get(replica.info.pool) == role]
    seated.sort(key=lambda replica: replica.info.name)
    members = [replica for replica in seated if replica.info.state == READY]
    rejected: Counter[str] = Counter(
        {"other_model": cluster_size - len(replicas), "wrong_pool": len(replicas) - len(seated)}
    )
    rejected.update(
        "draining" if replica.info.state == DRAINING else "not_ready"
        for replica in seated
        if replica.info.state != READY
    )
    order = installed.orders.setdefault(model.name, LoadOrder())
    order.fill(members)
    policy_name, number, policy = _policy(installed, model)
    policy.refresh(members, [replica.info.name for replica in seated])
    hints = policy.hints if isinstance(policy, Cost) else DEFAULT_HINTS
    for replica in replicas:
        replica.rates.hint(hints)
        replica.sign()
    order.tell()
    for adapter in ("", *(adapter.name for adapter in model.adapters)):
        key = (adapter or model.name).encode()
        view = installed.views.get(key)
        if view is None or view.model != model.name or view.adapter != adapter:
            view = View(model.name, adapter, order, policy)
        view.order = order
        view.policy = policy
        view.keeps_prefixes = policy.reads_prefixes
        if not view.keeps_prefixes or view.isolated != model.isolated:
            clear(view.root)
        view.isolated = model.isolated
        view.session_keys = tuple(name.encode() for name in model.session_keys)
        view.label = words.label(
            Label(
                model=model.name,
                adapter=adapter,
                policy=policy_name,
                policy_number=number,
                score_kind=policy.score_kind,
                reads_prefixes=policy.reads_prefixes,
                terms=policy.terms,
                rejected=tuple(sorted((+rejected).items())),
                eligible=len(members),
            )
        )
        views[key] = view
    installed.pinned_labels[model.name] = words.label(Label(model=model.name, eligible=1))


def _policy(installed: Installation, model: ModelInfo) -> tuple[str, int, Policy]:
    """Return the model's policy: the one it has, state and all, while name and values stay the same."""
    name = model.policy or DEFAULT_POLICY
    values = checked(name, model.parameters)
    known = installed.policies.get(model.name)
    if known is not None and known[:2] == (name, values):
        return name, known[2], known[3]
    installed.policy_number += 1
    policy = make(name, values, installed.seed + installed.policy_number)
    installed.policies[model.name] = (name, values, installed.policy_number, policy)
    return name, installed.policy_number, policy
