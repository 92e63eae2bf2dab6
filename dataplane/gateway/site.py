"""What rendering needs to know besides the order: the machine, the sockets, and the templates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dataplane.errors import DataplaneError
from dataplane.names import PATH, checked

#: Part of every request id: short, since each log line and each decision carries it.
SITE_ID = re.compile(r"[a-z0-9]{1,12}")


class InvalidGateway(DataplaneError):
    """A gateway's settings cannot be turned into a configuration."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one gateway runs.

    ``site_id`` tells this gateway's request ids from every other's. The sockets are absolute paths. Raises InvalidName
    for a path that HAProxy's configuration cannot hold.
    """

    site_id: str
    runtime_socket: str
    spop_socket: str
    log_socket: str
    cpu_count: int
    fd_limit: int  # the hard limit of open files
    salt_key: bytes = field(default=b"", repr=False)  # secret of the gateways (salts.py); empty: nothing is signed

    def __post_init__(self) -> None:
        checked(SITE_ID, self.site_id, "site id")
        for path in (self.runtime_socket, self.spop_socket, self.log_socket):
            checked(PATH, path, "socket path")


@dataclass(frozen=True, slots=True)
class Templates:
    """Texts of `haproxy/`: Jinja2 templates, and Lua sources that are taken as they are."""

    haproxy: str
    spoe: str
    error: str
    features_lua: str
    gateway_lua: str
