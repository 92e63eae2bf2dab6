"""The controller's numbers for Prometheus, with the router's and the gateway's beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.admin import admission_metrics, precise_metrics, router_metrics, shadow_metrics
from controlplane.admin.convert import state_word
from controlplane.admin.router_metrics import MAX_LABEL_VALUES
from controlplane.controller.process import Controller
from controlplane.controller.reconciler import DURATIONS_S, Counts
from dataplane.pb import admin_pb2, routing_pb2, topology_pb2

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STATES = [state_word(state) for state in topology_pb2.ReplicaState.values() if state]


class ControllerCollector(Collector):
    """One scrape: everything is read at once, nothing is kept between two."""

    def __init__(self, controller: Controller, router: routing_pb2.RouterStatusResponse | None) -> None:
        self._controller = controller
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        answer = self._controller.views.get()
        yield from _replicas(answer)
        yield from _nodes(answer)
        yield from _reconcile(self._controller.reconciler.counts)
        yield _gauge("slipstream_topology_number", "Number of the newest topology.", answer.topology_number)
        yield _gauge("slipstream_spec_revision", "Revision of the applied spec.", answer.revision)
        yield _gauge("slipstream_topology_watchers", "Streams that watch it.", self._controller.board.watchers)
        yield from _gateways(answer)
        yield from _router(self._router)


def exposition(controller: Controller, router: routing_pb2.RouterStatusResponse | None) -> bytes:
    """Return all metrics as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ControllerCollector(controller, router))
    return generate_latest(registry)


def bounded(counts: Counter[tuple[str, ...]], first: int = 0) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield each entry; those beyond MAX_LABEL_VALUES different values at place ``first`` become "other"."""
    known: set[str] = set()
    rest: Counter[tuple[str, ...]] = Counter()
    for labels, count in sorted(counts.items()):
        if labels[first] in known or len(known) < MAX_LABEL_VALUES:
            known.add(labels[first])
            yield labels, count
        else:
            rest[(*labels[:first], "other", *labels[first + 1 :])] += count
    yield from rest.items()


def _replicas(answer: admin_pb2.GetResponse) -> Iterable[Metric]:
    states: Counter[tuple[str, ...]] = Counter({(p.name, word): 0 for p in answer.pools for word in _STATES})
    states.update((view.replica.pool, state_word(view.replica.state)) for view in answer.replicas)
    restarts: Counter[tuple[str, ...]] = Counter()
    streams: Counter[tuple[str, ...]] = Counter()
    for view in answer.replicas:
        restarts[view.replica.pool,] += view.restarts
        streams[view.replica.pool,] += view.streams
    family = GaugeMetricFamily("slipstream_replicas", "Replicas by pool and state.", labels=("pool", "state"))
    yield _filled(family, states)
    wanted: Counter[tuple[str, ...]] = Counter({(p.name,): p.replicas_wanted for p in answer.pools})
    family = GaugeMetricFamily("slipstream_replicas_wanted", "Replicas that the spec wants.", labels=("pool",))
    yield _filled(family, wanted)
    family = GaugeMetricFamily("slipstream_replica_restarts", "Restarts of the present replicas.", labels=("pool",))
    yield _filled(family, restarts)
    family = GaugeMetricFamily("slipstream_streams", "Streams that HAProxy counts.", labels=("pool",))
    yield _filled(family, streams)


def _nodes(answer: admin_pb2.GetResponse) -> Iterable[Metric]:
    family = GaugeMetricFamily("slipstream_nodes", "Nodes by whether they report.", labels=("state",))
    connected = sum(1 for view in answer.nodes if view.connected)
    family.add_metric(("connected",), connected)
    family.add_metric(("silent",), len(answer.nodes) - connected)
    yield family


def _reconcile(counts: Counts) -> Iterable[Metric]:
    buckets = [(f"{bound:g}", float(n)) for bound, n in zip(DURATIONS_S, counts.within, strict=True)]
    yield HistogramMetricFamily(
        "slipstream_reconcile_seconds",
        "Duration of one look at the world.",
        buckets=[*buckets, ("+Inf", float(counts.looks))],
        sum_value=counts.seconds,
    )
    yield CounterMetricFamily("slipstream_reconcile_actions", "Actions carried out.", value=counts.actions)
    yield CounterMetricFamily("slipstream_reconcile_failures", "Looks that failed.", value=counts.failures)
    yield CounterMetricFamily(
        "slipstream_apply_failures", "Configurations that a gateway rolled back.", value=counts.roll_backs
    )


def _gateways(answer: admin_pb2.GetResponse) -> Iterable[Metric]:
    ready = GaugeMetricFamily("slipstream_gateway_ready", "1: HAProxy serves.", labels=("gateway",))
    number = GaugeMetricFamily("slipstream_gateway_topology_number", "Topology it applied.", labels=("gateway",))
    for view in answer.gateways:
        ready.add_metric((view.gateway.name,), float(view.report.ready))
        number.add_metric((view.gateway.name,), view.report.topology_number)
    return ready, number


def _router(status: routing_pb2.RouterStatusResponse | None) -> Iterable[Metric]:
    yield _gauge("slipstream_router_up", "1: the router answers.", float(status is not None))
    if status is None:
        return
    yield _gauge("slipstream_router_topology_number", "Topology that the router goes by.", status.topology_number)
    yield CounterMetricFamily("slipstream_router_decisions", "Decisions made.", value=status.decisions)
    yield CounterMetricFamily("slipstream_router_errors", "Decisions that were errors.", value=status.errors)
    yield CounterMetricFamily("slipstream_router_protocol_errors", "Bad SPOP frames.", value=status.protocol_errors)
    yield CounterMetricFamily("slipstream_router_log_lines", "Requests that HAProxy told of.", value=status.log_lines)
    yield CounterMetricFamily(
        "slipstream_router_log_lines_unmatched", "Of those, not known to the router.", value=status.log_lines_unmatched
    )
    reasons = CounterMetricFamily("slipstream_router_decisions_by_reason", "Decisions by reason.", labels=("reason",))
    for (reason,), count in bounded(Counter({(name,): n for name, n in status.decisions_by_reason.items()})):
        reasons.add_metric((reason,), count)
    yield reasons
    in_flight: Counter[tuple[str, ...]] = Counter()
    for load in status.replicas:
        in_flight[load.pool,] += load.in_flight
    family = GaugeMetricFamily("slipstream_router_in_flight", "Decided and not finished.", labels=("pool",))
    yield _filled(family, in_flight)
    yield from router_metrics.families(status)
    yield from precise_metrics.families(status)
    yield from shadow_metrics.families(status)
    yield from admission_metrics.families(status)


def _filled(family: GaugeMetricFamily, counts: Counter[tuple[str, ...]]) -> GaugeMetricFamily:
    for labels, count in bounded(counts):
        family.add_metric(labels, count)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
