"""PURE: rows of HAProxy's `show stat` become the counts that a report carries."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.pb import node_pb2


def combined(workers: Iterable[tuple[bool, list[dict[str, str]]]]) -> list[node_pb2.ServerStats]:
    """Return one entry for each server, streams added over the workers; (is current, rows) for each worker.

    A server's status is the current worker's; one that only an old worker still has is told as MAINT.
    """
    found: dict[tuple[str, str], node_pb2.ServerStats] = {}
    for is_current, rows in workers:
        for row in rows:
            key = (row["pxname"], row["svname"])
            entry = found.get(key)
            if entry is None:
                entry = found[key] = node_pb2.ServerStats(pool=key[0], server=key[1], status="MAINT")
            entry.current_streams += int(row["scur"] or 0)
            entry.queued += int(row["qcur"] or 0)
            entry.total_streams += int(row["stot"] or 0)
            if is_current:
                entry.status = row["status"]
    return list(found.values())
