"""What may be a name, and the names that are made from others.

Every value that reaches haproxy.cfg, a command line or a file name passes one of these checks first. They use
``fullmatch``: ``match`` with ``$`` accepts a trailing newline, which is an injected configuration line.
"""

from __future__ import annotations

import hashlib
import re

from dataplane.errors import InvalidName

#: Nodes, pools, gateways, keys, tenants: what operators name. 63 is a DNS label's length.
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: Models and adapters: what clients write in ``model``, hub names included.
MODEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/+-]{0,126}[A-Za-z0-9])?")
#: HAProxy server names: ``<pool>-<index>.g<generation>``.
SERVER = re.compile(r"[a-z0-9][a-z0-9-]{0,90}\.g[0-9]{1,19}")
#: IPv4, IPv6 without brackets, or a DNS name.
HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")
#: Absolute paths without spaces, quotes, or control characters.
PATH = re.compile(r"/[A-Za-z0-9._/@+=:,~-]{0,4000}")
#: Lower-case hex of a SHA-256.
SHA256 = re.compile(r"[0-9a-f]{64}")


def checked(pattern: re.Pattern[str], value: str, what: str) -> str:
    """Return ``value`` when ``pattern`` matches all of it; else raise InvalidName that says ``what`` it was."""
    if pattern.fullmatch(value) is None:
        raise InvalidName(what, value, pattern.pattern)
    return value


def host_port(host: str, port: int) -> str:
    """Return ``host:port``, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_name(replica: str, generation: int) -> str:
    """Return what HAProxy and the router call one incarnation of a replica."""
    return f"{replica}.g{generation}"


def pin_key(server: str) -> str:
    """Return the eight hex digits that name a server inside the response ids that it makes."""
    return hashlib.sha256(server.encode()).hexdigest()[:8]
