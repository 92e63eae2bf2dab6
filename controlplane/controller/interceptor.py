"""Errors of both planes -> gRPC status, for every RPC in one place."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from controlplane.errors import ControlplaneError
from dataplane.errors import InvalidName

#: Trailing metadata that carries the stable code of an error.
CODE_KEY = "slipstream-code"

_log = logging.getLogger(__name__)


class ErrorInterceptor(aio.ServerInterceptor):
    """Ends a failed RPC with the error's own status and code; anything unforeseen is INTERNAL and tells no details."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one RPC."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            return make(_streaming(inner), handler.request_deserializer, handler.response_serializer)
        if handler.request_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _single(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )


_unary_stream = grpc.unary_stream_rpc_method_handler


def _single(inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except (ControlplaneError, InvalidName) as error:
            return await _abort(context, error)
        except aio.AbortError:
            raise
        except Exception as error:
            return await _abort_unforeseen(context, error)

    return handle


def _streaming(inner: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in inner(request, context):
                yield response
        except (ControlplaneError, InvalidName) as error:
            await _abort(context, error)
        except aio.AbortError:
            raise
        except Exception as error:
            await _abort_unforeseen(context, error)

    return handle


async def _abort(context: aio.ServicerContext[Any, Any], error: ControlplaneError | InvalidName) -> None:
    if isinstance(error, ControlplaneError):
        status, code = grpc.StatusCode[error.grpc_status], error.code
    else:
        status, code = grpc.StatusCode.INVALID_ARGUMENT, "invalid_name"
    await context.abort(status, str(error), trailing_metadata=((CODE_KEY, code),))


async def _abort_unforeseen(context: aio.ServicerContext[Any, Any], error: Exception) -> None:
    _log.error("an RPC failed", exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, "the controller failed", trailing_metadata=((CODE_KEY, "internal_error"),)
    )
