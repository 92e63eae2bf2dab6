"""Free TCP ports on 127.0.0.1.

They are below the range from which the kernel gives ports to clients, and below those that a spec's node keeps for
engines by default.
"""

from __future__ import annotations

import random
import socket

FIRST_PORT = 10_000
LAST_PORT = 20_999


def free_ports(count: int) -> list[int]:
    """Return ``count`` consecutive ports that nothing listens on now."""
    for _ in range(1_000):
        first = random.randrange(FIRST_PORT, LAST_PORT - count)
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise RuntimeError(f"no {count} free ports in a row between {FIRST_PORT} and {LAST_PORT}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
