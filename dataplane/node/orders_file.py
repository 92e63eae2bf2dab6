"""The last orders on disk: what a restarted agent keeps up before it hears a controller."""

from __future__ import annotations

import logging

from google.protobuf.message import DecodeError

from dataplane.launchers.atomic import write_atomically
from dataplane.pb import node_pb2
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)


class OrdersFile:
    """``<state>/node/orders.pb``. Neither method raises: without the file the agent waits for the controller."""

    def __init__(self, state: StateDir) -> None:
        self._path = state.node / "orders.pb"
        self._written = b""

    def load(self) -> node_pb2.NodeOrders | None:
        """Return the orders of the last run; None when there are none that can be read."""
        try:
            data = self._path.read_bytes()
            orders = node_pb2.NodeOrders.FromString(data)
        except FileNotFoundError:
            return None
        except (OSError, DecodeError) as error:
            _log.error("%s cannot be read: %s", self._path, error)
            return None
        self._written = data
        return orders

    def save(self, orders: node_pb2.NodeOrders) -> None:
        """Replace the file when the orders differ from what it holds; a failure is logged and tried with the next."""
        data = orders.SerializeToString(deterministic=True)
        if data == self._written:
            return
        try:
            write_atomically(self._path, data)
            self._written = data
        except OSError as error:
            _log.error("the orders are kept in memory only: %s", error)
