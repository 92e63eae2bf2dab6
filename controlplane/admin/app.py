"""Health, metrics and the page over HTTP."""

from __future__ import annotations

import time
from importlib import resources
from typing import Any

from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp

from controlplane.admin import convert, metrics
from controlplane.admin.guard import Guard
from controlplane.admin.router_feed import RouterFeed
from controlplane.controller.process import Controller
from controlplane.controller.reconciler import LOOK_AT_LEAST_EVERY_S
from controlplane.errors import ControlplaneError

#: Seconds without a look after which the loop counts as stuck.
STUCK_S = 3 * LOOK_AT_LEAST_EVERY_S
#: Seconds for which a proof that the store can be written holds: a health check is no reason for many disk writes.
STORE_PROOF_S = 5.0
#: Events that the page shows.
PAGE_EVENTS = 60
#: Characters of a request id that can exist.
MAX_REQUEST_ID = 128

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def make_app(controller: Controller, feed: RouterFeed, host: str) -> ASGIApp:
    """Return the application; ``host`` is the host name that it is configured to listen on."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _add_files(app)
    _add_health(app, controller)

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(metrics.exposition(controller, await feed.status()), media_type=metrics.CONTENT_TYPE)

    @app.get("/api/state")
    async def state(after: int = Query(0, ge=0, le=1 << 62)) -> JSONResponse:
        return JSONResponse(await _state(controller, feed, after))

    @app.get("/api/decisions/{request_id}")
    async def decision(request_id: str) -> JSONResponse:
        receipt = await feed.explain(request_id) if len(request_id) <= MAX_REQUEST_ID else None
        if receipt is None:
            error = {"code": "not_found", "message": "The receipt is gone, or there never was one."}
            return JSONResponse({"error": error}, 404)
        return JSONResponse(convert.receipt(receipt))

    return Guard(app, host)


def _add_files(app: FastAPI) -> None:
    folder = resources.files("controlplane.admin") / "page"
    for path, (name, media_type) in _FILES.items():
        content = (folder / name).read_bytes()
        app.add_api_route(path, _page(content, media_type), methods=["GET"])


def _page(content: bytes, media_type: str) -> Any:
    async def get() -> Response:
        return Response(content, media_type=media_type)

    return get


def _add_health(app: FastAPI, controller: Controller) -> None:
    proven_s = -STORE_PROOF_S

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        nonlocal proven_s
        reconciler = controller.reconciler
        looping = controller.alive and reconciler.now_s() - reconciler.looked_at_s < STUCK_S
        store = "ok"
        if time.monotonic() - proven_s >= STORE_PROOF_S:
            try:
                await controller.ledger.store.check()
                proven_s = time.monotonic()
            except ControlplaneError as error:
                store = error.code
        healthy = looping and store == "ok"
        answer = {"status": "ok" if healthy else "failing", "loop": "ok" if looping else "stuck", "store": store}
        return JSONResponse(answer, 200 if healthy else 503)


async def _state(controller: Controller, feed: RouterFeed, after: int) -> dict[str, Any]:
    answer = controller.views.get()
    status = await feed.status()
    loads = {load.server: load for load in status.replicas} if status else {}
    return {
        "now_unix_ms": time.time_ns() // 1_000_000,
        "cluster": answer.cluster,
        "revision": answer.revision,
        "topology_number": answer.topology_number,
        "models": [convert.model(view) for view in answer.models],
        "pools": [convert.pool(view) for view in answer.pools],
        "replicas": [convert.replica(view, loads.get(view.replica.server)) for view in answer.replicas],
        "nodes": [convert.node(view) for view in answer.nodes],
        "gateways": [convert.gateway(view) for view in answer.gateways],
        "router": convert.router(status),
        "decisions": [convert.decision(made) for made in feed.decisions(after)],
        "decisions_last": feed.last,
        "decisions_skipped": feed.skipped,
        "events": [convert.event(stored) for stored in controller.events.newest(PAGE_EVENTS)],
    }
