"""The gateway's own numbers, each with its reason, and those that follow from the machine."""

from __future__ import annotations

from dataplane.gateway.site import InvalidGateway, Site
from dataplane.pb import gateway_pb2, topology_pb2

#: Room for headers that HAProxy adds to a message that fills the buffer.
REWRITE_BYTES = 16_384
#: Headers beyond this get 431: what uvicorn's parsers take.
MAX_HEADER_BYTES = 65_536
#: Smaller buffers could not hold the headers, the rewrite room and a prompt.
MIN_BUFFER_BYTES = 131_072
MAX_BUFFER_BYTES = 64 << 20
#: Sizes that follow from the topology. Each request's buffer is copied whole, full or not, so that another replica can
#: get the request when the first dies: a small one costs less. This one holds the 128 KiB of a body that
#: routing reads, the rewrite room and 16 KiB of headers.
SHORT_BUFFER_BYTES = 163_840
#: Where the body must tell which model it is for, one that is named last is to be seen; and a precise model's prompts
#: are matched as far as the buffer holds all of them.
LONG_BUFFER_BYTES = 1 << 20
#: Freed buffers that a thread keeps for its next requests: HAProxy's own 512 KiB are three of the short ones, and each
#: request takes two (docs/adr/0006).
HOT_BYTES = 4 << 20
#: The feature record counts bytes in 32 bits.
MAX_BODY_BYTES = (1 << 32) - 1
#: Bytes of a body that the router gets; the message must fit a frame, and the frame the buffer.
SPOE_BODY_BYTES = 1_000_000
SPOE_FRAME_ROOM = 8_192
#: Longest body that goes to the router as it is. Up to here HAProxy saves more CPU than the router spends: 10 % of both
#: at 32 KB; at 100 KB a feature record is cheaper by 5 % or more (docs/adr/0006).
WHOLE_BYTES = 49_152
#: Bytes of the header values in that message.
MODEL_HEADER_BYTES = 256
SESSION_HEADER_BYTES = 2_048
#: The longest name of a priority, and room to see that another is none.
PRIORITY_HEADER_BYTES = 16
#: Time for a client to send its headers, and again for what the buffer takes of the body.
REQUEST_TIMEOUT_MS = 10_000
#: Attempts after the first. HAProxy counts refused connections and replicas that died of the request alike: one that
#: kills replicas reaches three at most, and two may refuse at one moment. The second refusal takes a replica out.
RETRIES = 2
#: A connection holds a descriptor to the client, one to the replica and, while it is decided, one to the router.
FDS_PER_CONNECTION = 3
#: Listeners, sockets, checks, logs, pipes.
RESERVED_FDS = 512
#: Undecided bodies are held in memory: connections are bounded even where descriptors are not.
MAX_CONNECTIONS = 100_000
MAX_FDS = 1 << 20
MIN_CONNECTIONS = 32
#: Servers are counted in steps of this, so that one more of them does not change a limit, which takes a reload.
SERVERS_STEP = 256
#: Servers up to which each is checked once a second.
SERVERS_PER_CHECK_SECOND = 512


def number(value: float, low: float, high: float, what: str) -> int:
    """Return ``value`` as an integer. Raises InvalidGateway when it is not within ``low`` and ``high``."""
    if not low <= value <= high:
        raise InvalidGateway(f"{what} is {value:g}; it must be from {low:g} to {high:g}")
    return int(value)


def threads(gateway: gateway_pb2.Gateway, site: Site) -> int:
    """Return HAProxy's thread count: as ordered, else one fewer than the cores."""
    return number(gateway.threads or max(site.cpu_count - 1, 1), 1, 64, "gateway.threads")


def fd_limit(site: Site) -> int:
    """Return how many descriptors HAProxy may open."""
    return min(site.fd_limit, MAX_FDS)


def max_connections(gateway: gateway_pb2.Gateway, site: Site, servers: int) -> int:
    """Return the client connections that the descriptors suffice for, at most those ordered.

    Raises InvalidGateway when the hard limit is too low for any service.
    """
    reserved = RESERVED_FDS + 2 * -(-servers // SERVERS_STEP) * SERVERS_STEP
    possible = (fd_limit(site) - reserved) // FDS_PER_CONNECTION
    if possible < MIN_CONNECTIONS:
        raise InvalidGateway(f"the hard limit of open files is {site.fd_limit}: too few for {servers} replicas")
    return min(possible, gateway.max_connections or MAX_CONNECTIONS, MAX_CONNECTIONS)


def buffer_bytes(gateway: gateway_pb2.Gateway, topology: topology_pb2.Topology) -> int:
    """Return the size of HAProxy's buffers: as ordered, else what the topology needs."""
    if gateway.buffer_bytes:
        return number(gateway.buffer_bytes, MIN_BUFFER_BYTES, MAX_BUFFER_BYTES, "buffer_bytes")
    names = sum(1 + len(model.adapters) for model in topology.models)
    precise = any(model.routing.precise for model in topology.models)
    return SHORT_BUFFER_BYTES if names == 1 and not precise else LONG_BUFFER_BYTES


def whole_bytes(buffer: int, max_body_bytes: int) -> int:
    """Return the length up to which a body goes to the router as it is."""
    return min(WHOLE_BYTES, max_body_bytes, spoe_body_bytes(buffer))


def spoe_body_bytes(buffer_bytes: int) -> int:
    """Return how much of a body fits one message to the router."""
    return min(SPOE_BODY_BYTES, buffer_bytes - SPOE_FRAME_ROOM)


def surely_whole_bytes(buffer_bytes: int) -> int:
    """Return the length below which a buffered body cannot have been cut by the buffer's end."""
    return max(buffer_bytes - REWRITE_BYTES - MAX_HEADER_BYTES - 4_096, 0)


def check_interval_ms(servers: int) -> int:
    """Return milliseconds between two checks of one server: all of them take a bounded share of a core."""
    seconds = 1
    while seconds * SERVERS_PER_CHECK_SECOND < servers:
        seconds *= 2
    return seconds * 1_000
