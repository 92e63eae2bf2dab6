"""What the controller knows, as answers for operators. Reads memory only, so it works with the disk full."""

from __future__ import annotations

from controlplane.controller import convert, observation
from controlplane.controller.ledger import Ledger
from controlplane.controller.reconciler import Reconciler
from controlplane.errors import InvalidRequest, NotFound
from controlplane.planning.world import Phase, Record
from controlplane.spec import convert as spec_convert
from controlplane.spec import to_yaml
from controlplane.spec.engines import Part
from dataplane import names
from dataplane.pb import admin_pb2, node_pb2

#: Events of one object that Describe shows.
MAX_DESCRIBED_EVENTS = 50

_WORDS = {
    admin_pb2.KIND_MODEL: "model",
    admin_pb2.KIND_POOL: "pool",
    admin_pb2.KIND_REPLICA: "replica",
    admin_pb2.KIND_NODE: "node",
    admin_pb2.KIND_GATEWAY: "gateway",
}


class Views:
    """Makes Get and Describe answers from the ledger, the reports and the published phases."""

    def __init__(self, ledger: Ledger, reconciler: Reconciler) -> None:
        self._ledger = ledger
        self._reconciler = reconciler

    def get(self, kind: admin_pb2.Kind.ValueType = admin_pb2.KIND_UNSPECIFIED, name: str = "") -> admin_pb2.GetResponse:
        """Return all objects, or those of one kind, or one. Raises NotFound for a name that is not there."""
        board = self._reconciler.board.current
        answer = admin_pb2.GetResponse(
            topology_number=board.number if board else 0,
            revision=self._ledger.revision,
            cluster=self._ledger.cluster.cluster if self._ledger.cluster else "",
        )
        if name and kind not in _WORDS:
            raise InvalidRequest("a name needs its kind")
        every = kind == admin_pb2.KIND_UNSPECIFIED
        if every or kind == admin_pb2.KIND_MODEL:
            answer.models.extend(m for m in self._models() if name in {"", m.name})
        if every or kind == admin_pb2.KIND_POOL:
            answer.pools.extend(p for p in self._pools() if name in {"", p.name})
        if every or kind == admin_pb2.KIND_REPLICA:
            answer.replicas.extend(self._replica(r) for r in self._records() if name in {"", r.replica})
        if every or kind == admin_pb2.KIND_NODE:
            answer.nodes.extend(n for n in self._nodes() if name in {"", n.name})
        if every or kind == admin_pb2.KIND_GATEWAY:
            answer.gateways.extend(g for g in self._gateways() if name in {"", g.gateway.name})
        if name and not (answer.models or answer.pools or answer.replicas or answer.nodes or answer.gateways):
            raise NotFound(f"there is no {_WORDS[kind]} {name[:80]!r}")
        return answer

    def describe(self, kind: admin_pb2.Kind.ValueType, name: str) -> admin_pb2.DescribeResponse:
        """Return one object with its events, its part of the spec and its last log lines. Raises NotFound."""
        if kind not in _WORDS or not name:
            raise InvalidRequest("name one object: its kind and its name")
        found = self.get(kind, name)
        events = self._ledger.events.about(f"{_WORDS[kind]}/{name}", MAX_DESCRIBED_EVENTS)
        part = self._part(kind, name)
        return admin_pb2.DescribeResponse(
            object=found,
            events=[convert.event(event) for event in events],
            spec_yaml=to_yaml(part) if part is not None else "",
            log_lines=self._log_lines(name) if kind == admin_pb2.KIND_REPLICA else [],
        )

    def _records(self) -> list[Record]:
        return sorted(self._ledger.records.values(), key=lambda r: (r.pool, r.index))

    def _ready(self, records: list[Record]) -> int:
        standing = self._reconciler.publisher.standing
        return sum(1 for r in records if (s := standing.get(r.replica)) is not None and s.phase is Phase.READY)

    def _models(self) -> list[admin_pb2.ModelView]:
        cluster, records = self._ledger.cluster, self._records()
        return [
            admin_pb2.ModelView(
                name=model.name,
                policy=model.routing.policy,
                adapters=[adapter.name for adapter in model.adapters],
                replicas_wanted=sum(pool.replicas for pool in model.pools),
                replicas_ready=self._ready([r for r in records if r.model == model.name]),
            )
            for model in (cluster.models if cluster else ())
        ]

    def _pools(self) -> list[admin_pb2.PoolView]:
        cluster, records = self._ledger.cluster, self._records()
        return [
            admin_pb2.PoolView(
                name=pool.name,
                model=model.name,
                role=spec_convert.role(pool),
                kind=spec_convert.kind(pool),
                replicas_wanted=pool.replicas,
                replicas_ready=self._ready([r for r in records if r.pool == pool.name]),
            )
            for model in (cluster.models if cluster else ())
            for pool in model.pools
        ]

    def _report(self, record: Record) -> node_pb2.EngineReport | None:
        state = self._reconciler.nodes.nodes.get(record.node)
        report = convert.engine_reports(state.report if state else None).get(record.replica)
        return report if report is not None and report.generation == record.generation else None

    def _replica(self, record: Record) -> admin_pb2.ReplicaView:
        report = self._report(record)
        standing = self._reconciler.publisher.standing.get(record.replica)
        current = standing if standing is not None and standing.generation == record.generation else None
        server = names.server_name(record.replica, record.generation)
        return admin_pb2.ReplicaView(
            replica=convert.replica(record, current.phase if current else Phase.PENDING, report, self._ledger.cluster),
            pid=report.pid if report else 0,
            streams=observation.streams_now(server, self._reconciler.nodes.gateways()),
            detail=self._detail(record, report),
            state_age_s=self._reconciler.now_s() - current.since_s if current else 0.0,
            restarts=record.restarts,
            drained_by_operator=record.drained_by_operator,
        )

    def _detail(self, record: Record, report: node_pb2.EngineReport | None) -> str:
        if record.drain:
            return f"drains: {record.drain.replace('_', ' ')}"
        if report is not None and report.detail:
            return report.detail
        return "drained by an operator" if record.drained_by_operator else ""

    def _nodes(self) -> list[admin_pb2.NodeView]:
        reconciler, found = self._reconciler, []
        lost = reconciler.nodes.lost()
        wanted = {n.name: n.address for n in self._ledger.cluster.nodes} if self._ledger.cluster else {}
        for name, state in sorted(reconciler.nodes.nodes.items()):
            report = state.report or node_pb2.NodeReport()
            found.append(
                admin_pb2.NodeView(
                    name=name,
                    address=wanted.get(name) or report.address,
                    connected=state.link is not None and name not in lost,
                    report_age_s=reconciler.now_s() - state.heard_at_s if state.heard_at_s is not None else -1.0,
                    replicas=sum(1 for r in self._ledger.records.values() if r.node == name),
                    cpu_count=report.cpu_count,
                    memory_bytes=report.memory_bytes,
                    pid=report.pid,
                )
            )
        return found

    def _gateways(self) -> list[admin_pb2.GatewayView]:
        if self._ledger.cluster is None:
            return []
        gateway = spec_convert.gateway(self._ledger.cluster)
        state = self._reconciler.nodes.nodes.get(gateway.node)
        report = state.report.gateway if state is not None and state.report is not None else None
        return [admin_pb2.GatewayView(gateway=gateway, report=report)]

    def _part(self, kind: admin_pb2.Kind.ValueType, name: str) -> Part | None:
        cluster = self._ledger.cluster
        if cluster is None:
            return None
        if kind == admin_pb2.KIND_GATEWAY:
            return cluster.gateway
        if kind == admin_pb2.KIND_NODE:
            return next((node for node in cluster.nodes if node.name == name), None)
        if kind == admin_pb2.KIND_MODEL:
            return next((model for model in cluster.models if model.name == name), None)
        record = self._ledger.records.get(name)
        pool_name = name if kind == admin_pb2.KIND_POOL else record.pool if record else ""
        return next((pool for model in cluster.models for pool in model.pools if pool.name == pool_name), None)

    def _log_lines(self, replica: str) -> list[str]:
        record = self._ledger.records.get(replica)
        report = self._report(record) if record else None
        return list(report.last_log_lines) if report else []
