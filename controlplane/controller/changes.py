"""What operators change: the spec, drains, restarts, keys. Each change is stored before it is answered."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from pydantic import ValidationError

from controlplane.controller import convert
from controlplane.controller.ledger import Ledger
from controlplane.controller.reconciler import Reconciler
from controlplane.errors import InvalidRequest, InvalidSpec, NotFound
from controlplane.planning.difference import Difference, spec_changes, unified
from controlplane.planning.rehearsal import rehearse
from controlplane.planning.world import Record
from controlplane.routing.admission.settings import PRIORITIES
from controlplane.spec import from_json, to_json, to_yaml
from controlplane.spec.model import Cluster
from controlplane.store.base import StoredKey
from dataplane import names
from dataplane.pb import admin_pb2, gateway_pb2

#: Random bytes of an API key: 256 bits cannot be guessed.
KEY_BYTES = 32
#: What our keys begin with, so that scanners for leaked secrets can tell them.
KEY_PREFIX = "sk-slipstream-"
#: Longest drain that an operator may ask for, in seconds: a week.
MAX_DRAIN_S = 604_800.0


class Changes:
    """Carries out what operators ask; wakes the reconciler afterwards."""

    def __init__(self, ledger: Ledger, reconciler: Reconciler) -> None:
        self._ledger = ledger
        self._reconciler = reconciler

    def plan(self, spec_json: str) -> tuple[list[admin_pb2.Change], str]:
        """Return what applying the spec would change, and the unified diff of its YAML. Raises InvalidSpec."""
        cluster = self._checked(spec_json)
        present = self._ledger.cluster
        old = to_yaml(present) if present is not None else ""
        return self._foreseen(cluster), unified(old, to_yaml(cluster))

    async def apply(self, spec_json: str, expected: int) -> tuple[int, list[admin_pb2.Change]]:
        """Make the spec the desired state. Applying what is applied already makes no revision.

        Raises InvalidSpec, and Conflict when ``expected`` is neither 0 nor the present revision.
        """
        cluster = self._checked(spec_json)
        canonical = to_json(cluster)
        ledger = self._ledger
        async with ledger.lock:
            changes = self._foreseen(cluster)
            if ledger.cluster is not None and expected in {0, ledger.revision} and to_json(ledger.cluster) == canonical:
                return ledger.revision, changes
            revision = await ledger.set_spec(cluster, canonical, expected, time.time_ns() // 1_000_000)
            ledger.events.add("cluster", "spec_applied", f"revision {revision}")
        self._reconciler.wake()
        return revision, changes

    async def scale(self, pool: str, replicas: int) -> list[admin_pb2.Change]:
        """Store a revision of the spec with another count. Raises NotFound, InvalidRequest."""
        present = self._ledger.cluster
        if present is None:
            raise NotFound("no spec is applied yet")
        try:
            kind = present.pool(pool)[1].engine.kind
            cluster = present.scaled(pool, replicas)
        except KeyError:
            raise NotFound(f"there is no pool {pool[:80]!r}") from None
        except ValidationError as error:
            what = "they are its endpoints; change the spec" if kind == "external" else error.errors()[0]["msg"]
            raise InvalidRequest(f"pool {pool} cannot have {replicas} replicas: {what}") from None
        _, changes = await self.apply(to_json(cluster), self._ledger.revision)
        return changes

    async def drain(self, target: admin_pb2.Target, deadline_s: float) -> list[admin_pb2.Change]:
        """Take replicas out of rotation until Undrain; their engines keep running. Raises NotFound, InvalidRequest.

        A node stays drained for replicas that are placed later, too. ``deadline_s`` 0: the gateway's drain timeout.
        """
        if not 0 <= deadline_s <= MAX_DRAIN_S:
            raise InvalidRequest(f"a drain's deadline is between 0 and {MAX_DRAIN_S:g} s")
        desired = self._ledger.desired
        timeout_s = deadline_s or (desired.drain_timeout_s if desired else MAX_DRAIN_S)

        def drained(record: Record) -> Record:
            bound = record.drain_timeout_s if record.drain else timeout_s
            return replace(record, drained_by_operator=True, drain_timeout_s=min(bound, timeout_s))

        return await self._mark(target, "drain", "by an operator", drained, node_drained=True)

    async def undrain(self, target: admin_pb2.Target) -> list[admin_pb2.Change]:
        """Put replicas back that an operator drained. Raises NotFound."""
        return await self._mark(
            target, "undrain", "by an operator", lambda r: replace(r, drained_by_operator=False), node_drained=False
        )

    async def restart(self, target: admin_pb2.Target) -> list[admin_pb2.Change]:
        """Restart replicas, one of a pool at a time, each after its drain. Raises NotFound, InvalidRequest."""
        if any(record.external for record in self._targets(target)):
            raise InvalidRequest("external replicas are not ours to restart")
        return await self._mark(
            target, "restart", "asked for by an operator", lambda r: replace(r, restart_requested=True)
        )

    async def create_key(self, name: str, tenant: str, priority: str = "") -> tuple[gateway_pb2.ApiKey, str]:
        """Make an API key; return it with its secret, which is nowhere stored. Raises InvalidName, Conflict."""
        names.checked(names.LABEL, name, "key")
        names.checked(names.LABEL, tenant or name, "tenant")
        if priority and priority not in PRIORITIES:
            raise InvalidRequest(f"there is no priority {priority[:80]!r}; there are {', '.join(PRIORITIES)}")
        secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        key = StoredKey(name, tenant or name, digest, time.time_ns() // 1_000_000, priority)
        async with self._ledger.lock:
            if any(listed.name == name for listed in convert.api_keys(self._ledger.cluster, ())):
                raise InvalidRequest(f"the spec declares a key with the name {name}")
            await self._ledger.add_key(key)
            self._ledger.events.add(f"key/{name}", "key_created", f"tenant {key.tenant}")
        self._reconciler.wake()
        return convert.api_key(key), secret

    async def revoke_key(self, name: str) -> None:
        """Remove an API key that was made by command. Raises NotFound, InvalidRequest for one of the spec."""
        async with self._ledger.lock:
            if name not in self._ledger.keys and any(
                listed.name == name for listed in convert.api_keys(self._ledger.cluster, ())
            ):
                raise InvalidRequest(f"key {name} is declared in the spec: remove it there")
            await self._ledger.remove_key(name)
            self._ledger.events.add(f"key/{name}", "key_revoked", "by an operator")
        self._reconciler.wake()

    def _checked(self, spec_json: str) -> Cluster:
        cluster = from_json(spec_json)
        present = self._ledger.cluster
        if present is not None and present.cluster != cluster.cluster:
            raise InvalidSpec(
                f"cluster: is {cluster.cluster!r}, but this controller runs {present.cluster!r}; "
                "another cluster needs a state directory of its own"
            )
        return cluster

    def _foreseen(self, cluster: Cluster) -> list[admin_pb2.Change]:
        ledger, reconciler = self._ledger, self._reconciler
        wanted = convert.desired(cluster)
        steps = rehearse(wanted, ledger.records.values(), reconciler.view(), reconciler.clocks, reconciler.looked_at_s)
        present = convert.outline(ledger.cluster) if ledger.cluster is not None else {}
        found: list[Difference] = spec_changes(present, convert.outline(cluster))
        changes = [admin_pb2.Change(action=d.action, subject=d.subject, detail=d.detail) for d in found]
        changes += [
            admin_pb2.Change(action=a.verb, subject=f"replica/{a.replica}", detail=a.detail()) for a in steps.actions
        ]
        changes += [admin_pb2.Change(action="blocked", subject=b.subject, detail=b.message) for b in steps.blocked]
        return changes

    async def _mark(
        self,
        target: admin_pb2.Target,
        action: str,
        detail: str,
        change: Callable[[Record], Record],
        node_drained: bool | None = None,
    ) -> list[admin_pb2.Change]:
        ledger = self._ledger
        async with ledger.lock:
            chosen = self._targets(target)
            drained_nodes = None
            if target.kind == admin_pb2.KIND_NODE and node_drained is not None:
                drained_nodes = (
                    ledger.drained_nodes | {target.name} if node_drained else ledger.drained_nodes - {target.name}
                )
            changed = {r.replica: change(r) for r in chosen if change(r) != r}
            if changed or drained_nodes is not None:
                await ledger.set_records({**ledger.records, **changed}, drained_nodes=drained_nodes)
            for name in changed:
                ledger.events.add(f"replica/{name}", action, detail)
        self._reconciler.wake()
        return [admin_pb2.Change(action=action, subject=f"replica/{name}", detail=detail) for name in changed]

    def _targets(self, target: admin_pb2.Target) -> list[Record]:
        """Return the records that a target means. Raises NotFound when the object is not there."""
        records: Iterable[Record] = self._ledger.records.values()
        desired, name = self._ledger.desired, target.name
        match target.kind:
            case admin_pb2.KIND_REPLICA:
                found = [r for r in records if r.replica == name]
                exists = bool(found)
            case admin_pb2.KIND_POOL:
                found = [r for r in records if r.pool == name]
                exists = bool(found) or bool(desired and desired.pool(name))
            case admin_pb2.KIND_NODE:
                found = [r for r in records if r.node == name]
                exists = bool(found) or bool(desired and desired.node(name))
            case _:
                raise InvalidRequest("the target must be a replica, a pool or a node")
        if not exists:
            raise NotFound(f"there is no {admin_pb2.Kind.Name(target.kind)[5:].lower()} {name[:80]!r}")
        return found
