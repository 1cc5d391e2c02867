"""The application in one piece: everything that a process of the API has, made when its event loop runs, and the FastAPI app over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from feature_repo.use_cases import models
from schemas.errors import HeadraceError, RefusedError, SettingsError
from schemas.settings import Settings
from services.api.busy_poll import BusyPoll
from services.api.edge import Edge
from services.api.health import health_routes
from services.api.ingest import Ingest, ingest_routes
from services.api.keys import KeyRing, key_file
from services.api.lanes import Lane
from services.api.lookups import Lookups, lookup_routes
from services.api.metrics import Metrics
from services.api.openapi import describe
from services.api.prediction_log import PredictionLog
from services.api.problems import FieldFault, Problem, headers_of, problem_of
from services.api.scoring import ScoreRoutes
from services.explainers import Explainers

__all__ = ["Application", "Serving"]

THREADS = 4
FLUSH_S = 5.0


@dataclass(frozen=True)
class Serving:
    """What is there while requests are answered."""

    lanes: dict[str, Lane]
    predictions: PredictionLog
    metrics: Metrics
    routes: ScoreRoutes
    ingest: Ingest
    lookups: Lookups
    edge: Callable[[], Edge]


class Application:
    """``app`` is what a server runs; ``drain`` asks clients to go elsewhere before it stops."""

    def __init__(self, settings: Settings) -> None:
        if settings.kafka is None or settings.redis is None:
            raise SettingsError("the HTTP API needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts it with both set")
        self._settings, self._kafka = settings, settings.kafka
        self._metrics = Metrics()
        self._serving: Serving | None = None
        self.fastapi = FastAPI(title="headrace", version=version("headrace"), lifespan=self._live, docs_url=None, redoc_url=None,
                               generate_unique_id_function=lambda route: route.name)
        self.fastapi.include_router(health_routes(lambda: self._serving))
        self.fastapi.include_router(ingest_routes(settings, lambda: self._now().ingest))
        self.fastapi.include_router(lookup_routes(lambda: self._now().lookups))
        describe(self.fastapi, settings)
        self.fastapi.add_exception_handler(HTTPException, _refused)
        self.fastapi.add_exception_handler(RequestValidationError, _invalid)
        self.fastapi.add_exception_handler(HeadraceError, _failed)
        self.app = Edge(self.fastapi, self._routes, KeyRing(key_file(settings.api)), self._metrics, settings.api_deadline_ms / 1000)

    def drain(self) -> None:
        self.app.draining = True

    def _routes(self) -> ScoreRoutes:
        return self._now().routes

    def _now(self) -> Serving:
        if self._serving is None:
            raise RefusedError(503, "starting", "not everything is loaded yet")
        return self._serving

    @asynccontextmanager
    async def _live(self, _: FastAPI) -> AsyncIterator[None]:
        settings = self._settings
        with ThreadPoolExecutor(THREADS, "api") as executor:
            predictions = PredictionLog(self._kafka, settings.api / "spool", settings.api_spool_mb << 20)
            explainers = Explainers(settings)
            lanes = {spec.name: Lane(settings, spec.name, predictions, self._metrics, executor, explainers) for spec in models(settings)}
            for lane in lanes.values():
                await lane.start()
            busy_poll = BusyPoll(settings.api_busy_poll_ms / 1000)
            routes = ScoreRoutes(lanes, predictions, self._metrics, explainers, executor, busy_poll)
            ingest = Ingest(self._kafka, settings)
            lookups = Lookups(settings, self._kafka, lanes, executor)
            self._serving = Serving(lanes, predictions, self._metrics, routes, ingest, lookups, lambda: self.app)
            try:
                yield
            finally:
                for lane in lanes.values():
                    await lane.close()
                await ingest.close(FLUSH_S)
                lookups.close()
                await predictions.close(FLUSH_S)


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    return _response(problem_of(error), getattr(error, "retry_s", None))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = {404: "no-such-path", 405: "wrong-method"}.get(error.status_code, "refused")
    response = _response(problem_of(RefusedError(error.status_code, reason, str(error.detail).lower())))
    response.headers.update(error.headers or {})
    return response


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = tuple(FieldFault("/".join(map(str, ("", *fault["loc"]))), str(fault["msg"])) for fault in error.errors())
    base = problem_of(RefusedError(422, "wrong-parameter", "a parameter is missing or wrong"))
    return _response(msgspec.structs.replace(base, errors=faults))


def _response(problem: Problem, retry_s: int | None = None) -> Response:
    headers: Any = {name.decode(): value.decode() for name, value in headers_of(problem, retry_s)}
    return Response(msgspec.json.encode(problem), problem.status, headers)
