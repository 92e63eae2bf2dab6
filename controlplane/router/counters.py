"""What the router counts about itself; all numbers since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Shared by the parts of one router process; written only on its event loop."""

    errors: int = 0  # exceptions in the routing core; after one in a decision HAProxy balanced by itself
    log_lines: int = 0
    log_lines_malformed: int = 0
    protocol_errors: int = 0
    connections_refused: int = 0
    connections_reaped: int = 0
    topologies_installed: int = 0
    topologies_refused: int = 0
    topology_write_failures: int = 0
    topology_stream_failures: int = 0
    reconciliations: int = 0
    reconciliation_failures: int = 0
