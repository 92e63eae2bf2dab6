"""Run a replica under uvicorn as vLLM does: its loop and parser, its middleware, and its way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import signal
from collections.abc import Iterator, Sequence

import uvicorn

from dataplane.engines.simulated.app import SimulatedApp
from dataplane.engines.simulated.engine import Engine
from dataplane.engines.simulated.pacer import Pacer
from dataplane.engines.simulated.replica import Replica
from dataplane.engines.simulated.settings import Settings
from dataplane.engines.simulated.statistics import Statistics
from dataplane.middleware.asgi import App

#: Seconds that an idle connection stays open (VLLM_HTTP_TIMEOUT_KEEP_ALIVE).
KEEP_ALIVE_S = 5
#: How often a replica that is told to stop looks whether its streams have ended.
DRAIN_POLL_S = 0.05
#: Connections that wait to be accepted.
BACKLOG = 2_048

log = logging.getLogger("slipstream.simulated")


class Server(uvicorn.Server):
    """A server whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield


def with_middleware(app: App, names: Sequence[str]) -> App:
    """Wrap ``app`` in the named classes, the last outermost, as ``vllm serve --middleware`` does."""
    for name in names:
        module, _, attribute = name.rpartition(".")
        app = getattr(importlib.import_module(module), attribute)(app)
    return app


async def serve(settings: Settings, middleware: Sequence[str] = ()) -> None:
    """Serve until a signal says stop. Raises OSError when the port is taken."""
    publisher = None
    if settings.kv_events_endpoint:
        from dataplane.engines.simulated.kv_events import Publisher  # ZeroMQ costs memory and start-up time

        publisher = Publisher(
            settings.kv_events_endpoint,
            settings.kv_block_tokens,
            settings.kv_replay_endpoint,
            settings.kv_events_topic,
        )
    engine = Engine(
        settings.speeds, settings.sizes, Statistics(settings.context_tokens), record_events=publisher is not None
    )
    pacer = Pacer(engine, publisher.publish if publisher is not None else None)
    replica = Replica(settings, pacer)
    if settings.startup_s > 0:
        # A real engine's port is bound but not listening while its weights load.
        await asyncio.sleep(settings.startup_s)
        replica.ready = True
    server = Server(_config(settings, with_middleware(SimulatedApp(replica), middleware)))
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    gc.freeze()  # what is imported stays; collections then look at requests only
    drained = loop.create_task(_stop(server, replica, stopping))
    try:
        await server.serve()
    finally:
        drained.cancel()
        if publisher is not None:
            publisher.close()


def _config(settings: Settings, app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="info",
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
        # Streams that are still open when the drain is over are cut, as vLLM's are when its engine is gone.
        timeout_graceful_shutdown=1,
    )


async def _stop(server: Server, replica: Replica, stopping: asyncio.Event) -> None:
    """After a signal: go on, new requests included, until no sequence is open or the time is over."""
    await stopping.wait()
    log.info("stopping: %d requests are open", replica.requests)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(replica.settings.shutdown_timeout_s):
            while replica.pacer.open or replica.requests:
                await asyncio.sleep(DRAIN_POLL_S)
    replica.pacer.abort_all()
    server.should_exit = True
