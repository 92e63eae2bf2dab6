"""Talking to the controller and the router over their unix sockets, for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import grpc

from dataplane.pb import admin_pb2_grpc, routing_pb2_grpc
from dataplane.state_dir import StateDir

#: Longest that one admin call may take: the controller answers from memory and its store.
CALL_TIMEOUT_S = 20.0
#: Largest answer: ten thousand replicas are about 4 MB.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class CommandFailed(Exception):
    """A command cannot be carried out; ``exit_code`` is what the shell gets (1 failed, 2 usage, 3 not converged)."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def _channel(socket: Path, service: str) -> Iterator[grpc.Channel]:
    if not socket.exists():
        raise CommandFailed(
            f"no {service} listens on {socket}. Is `slipstream up` running, and is --state-dir the one that it uses?"
        )
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),  # a proxy of the environment has no way to a unix socket
        ("grpc.default_authority", "localhost"),
    ]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise CommandFailed(_explain(error, service)) from error


def _explain(error: grpc.RpcError, service: str) -> str:
    # What a failed call raises is an RpcError that is a Call too, which the types cannot say.
    call = cast(grpc.Call, error)
    code, details = call.code(), call.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        return f"the {service} does not answer: {details}"
    return f"{details} ({code.name.lower()})"


@contextmanager
def admin(state: StateDir) -> Iterator[admin_pb2_grpc.AdminServiceStub]:
    """Yield a stub of the controller's admin API. Raises CommandFailed with the reason in words."""
    with _channel(state.controller_socket, "controller") as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


@contextmanager
def routing(state: StateDir) -> Iterator[routing_pb2_grpc.RoutingServiceStub]:
    """Yield a stub of the router's API. Raises CommandFailed with the reason in words."""
    with _channel(state.router_socket, "router") as channel:
        yield routing_pb2_grpc.RoutingServiceStub(channel)
