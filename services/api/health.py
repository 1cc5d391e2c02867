"""Is it alive, has it started, should it get requests, what does it count, which version is it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

if TYPE_CHECKING:
    from services.api.application import Serving

__all__ = ["health_routes"]


def health_routes(serving: Callable[[], Serving | None]) -> APIRouter:
    """``serving`` is None before everything is loaded."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", summary="The process answers")
    async def livez() -> dict[str, str]:
        return {"state": "alive"}

    @router.get("/startupz", summary="Everything is loaded", responses={503: {"description": "not yet"}})
    async def startupz() -> JSONResponse:
        started = serving() is not None
        return JSONResponse({"state": "started" if started else "starting"}, 200 if started else 503)

    @router.get("/readyz", summary="Requests are welcome", responses={503: {"description": "it starts, stops, or cannot log predictions"}})
    async def readyz() -> JSONResponse:
        now = serving()
        if now is None:
            return JSONResponse({"state": "starting"}, 503)
        state = "stopping" if now.edge().draining else "prediction-log-full" if now.predictions.full else "ready"
        told = {"state": state, "kafka": not now.predictions.spooling, "store": {name: lane.store.up for name, lane in now.lanes.items()}}
        return JSONResponse(told, 200 if state == "ready" else 503)

    @router.get("/metrics", summary="Counts in Prometheus' text format", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        now = serving()
        log = now.predictions if now is not None else None
        values: list[Any] = [] if now is None or log is None else [
            ("headrace_api_predictions_published_total", (), log.published), ("headrace_api_predictions_spooled_total", (), log.spooled),
            ("headrace_api_predictions_waiting_bytes", (), log.waiting_bytes), ("headrace_api_spooling", (), int(log.spooling)),
            *(("headrace_api_store_up", (("model", name),), int(lane.store.up)) for name, lane in now.lanes.items())]
        text = now.metrics.text(values) if now is not None else ""
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/version", summary="Of headrace, and of what each model is served with")
    async def which() -> dict[str, Any]:
        now = serving()
        lanes = {} if now is None else now.lanes
        return {"headrace": version("headrace"), "models": {name: lane.facts() for name, lane in lanes.items()}}

    return router
