"""What can be looked up: features of entities, predictions by id, models and releases. Off the path of scores: each waits in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from msgspec import Meta

from feature_repo.manifest import MANIFEST_FILE, Manifest, decode, read_plain
from feature_repo.online import SetReader
from feature_repo.views import FeatureService
from schemas.contracts import refusal
from schemas.errors import DefinitionError, RefusedError
from schemas.records import Id, TimeMs
from schemas.releases import Release
from schemas.settings import Settings
from schemas.topics import answered_topic
from services.api.lanes import Lane
from services.ledger import read_topic
from services.lookup import clock_ms, features_at
from services.release_log import ReleaseLog

__all__ = ["FeaturesAsked", "FeaturesTold", "Lookups", "ModelsTold", "PredictionTold", "ReleasesTold", "lookup_routes"]

LOOKED_THROUGH = 20_000
"""Last records of each partition, of both topics that predictions lie on. What is older `headrace explain` finds in the archive."""
ANSWER_S = 5.0
STORE_MS = 1_000
ENCODE = msgspec.json.Encoder().encode
Answer = TypeVar("Answer")
OfModel = Annotated[str | None, Query(alias="model", description="default: the first model")]


class FeaturesAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of whom, by the contract's field; as of when: null is now. In a body, for an address that names a person ends up in logs."""

    entities: Annotated[dict[str, Id], Meta(min_length=1, max_length=16)]
    at_ms: TimeMs | None = None


class ViewTold(msgspec.Struct, frozen=True):
    """``records`` is how many events the values were made of, ``fingerprint`` stands for them, ``applied`` for what was known."""

    view: str
    entity: str
    values: dict[str, float | None]
    records: int
    newest_ms: int | None
    fingerprint: str
    applied: tuple[int, ...]


class FeaturesTold(msgspec.Struct, frozen=True):
    service: str
    service_hash: str
    at_ms: int
    views: list[ViewTold]


class PredictionTold(msgspec.Struct, frozen=True):
    """``made_by``: request or log. ``prediction`` is the whole record, with features and stamps."""

    made_by: str
    prediction: msgspec.Raw


class VersionTold(msgspec.Struct, frozen=True):
    version: str
    champion: bool
    service_hash: str
    threshold: float
    train: tuple[str, str]
    test: tuple[str, str]
    metrics: dict[str, dict[str, float]]


class ModelTold(msgspec.Struct, frozen=True):
    model: str
    service: str
    service_hash: str
    epoch: int | None
    versions: list[VersionTold]


class ModelsTold(msgspec.Struct, frozen=True):
    models: list[ModelTold]


class ReleasesTold(msgspec.Struct, frozen=True):
    """Newest first."""

    releases: list[Release]


class Lookups:
    """Looks up one thing of a kind at a time, in threads of ``executor``."""

    def __init__(self, settings: Settings, kafka: str, lanes: Mapping[str, Lane], executor: Executor) -> None:
        assert settings.redis is not None
        self._settings, self._kafka, self._lanes, self._executor = settings, kafka, lanes, executor
        self._reader = SetReader(settings.redis.get_secret_value(), STORE_MS, settings.partitions)
        self._releases: ReleaseLog | None = None
        self._one_reads, self._one_searches, self._one_follows = threading.Lock(), threading.Lock(), threading.Lock()

    async def do(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def features(self, body: bytes, model: str | None) -> FeaturesTold:
        try:
            asked = msgspec.json.decode(body, type=FeaturesAsked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refusal(error) from error
        service = self._lane(model).judge.spec.service
        if unknown := sorted(set(asked.entities) - set(service.entities)):
            raise DefinitionError(f"no feature view has entity {unknown[0]!r}", hint=f"one of {', '.join(service.entities)}")
        with self._one_reads:
            at_ms = clock_ms(self._settings, self._reader, [service]) if asked.at_ms is None else asked.at_ms
            found = features_at(service.views, self._reader, asked.entities, at_ms)
        return FeaturesTold(service.name, service.definition_hash, at_ms,
                            [ViewTold(v.view, v.entity, v.values, v.records, v.newest_ms, v.fingerprint, v.applied) for v in found])

    def prediction(self, identity: str, model: str | None) -> PredictionTold:
        lane = self._lane(model)
        if (recent := lane.recent(identity)) is not None:
            return PredictionTold("request", msgspec.Raw(recent))
        predictions = lane.judge.spec.service.predictions
        wanted = ("ce_id", identity.encode())
        with self._one_searches:
            for topic, by in ((answered_topic(predictions), "request"), (predictions, "log")):
                for message in read_topic(self._kafka, topic, ANSWER_S, last=LOOKED_THROUGH):
                    if wanted in (message.headers() or ()):
                        return PredictionTold(by, msgspec.Raw(message.value()))
        raise RefusedError(404, "no-such-prediction", f"it is not among the last {LOOKED_THROUGH} of a partition",
                           hint="`headrace explain` finds older ones in the archive")

    def models(self) -> ModelsTold:
        return ModelsTold([self._model(lane.facts(), lane.judge.spec.service) for lane in self._lanes.values()])

    def releases(self, model: str | None) -> ReleasesTold:
        name = self._lane(model).judge.spec.name
        with self._one_follows:
            if self._releases is None:
                self._releases = ReleaseLog(self._kafka, ANSWER_S)
            return ReleasesTold(self._releases.catch_up().history(name)[::-1])

    def close(self) -> None:
        self._reader.close()
        if self._releases is not None:
            self._releases.close()

    def _lane(self, model: str | None) -> Lane:
        if model is not None and model not in self._lanes:
            raise DefinitionError("there is no such model", hint=f"one of {', '.join(self._lanes)}")
        return self._lanes[model] if model is not None else next(iter(self._lanes.values()))

    def _model(self, facts: dict[str, Any], service: FeatureService) -> ModelTold:
        name = facts["model"]
        versions = []
        for file in sorted((self._settings.models / name).glob(f"*/{MANIFEST_FILE}")):
            told = decode(read_plain(file.parent, MANIFEST_FILE), Manifest, file)
            versions.append(VersionTold(told.version, told.version == facts["model_version"], told.service_hash, told.threshold, told.train,
                                        told.test, told.metrics))
        return ModelTold(name, service.name, service.definition_hash, facts["epoch"], versions)


def lookup_routes(lookups: Callable[[], Lookups]) -> APIRouter:
    router = APIRouter(tags=["lookup"])

    async def told(work: Callable[[Lookups], Any]) -> Response:
        now = lookups()
        return Response(ENCODE(await now.do(lambda: work(now))), media_type="application/json")

    @router.post("/v1/features", summary="Feature values of entities as of a time")
    async def features(request: Request, model: OfModel = None) -> Response:
        body = await request.body()
        return await told(lambda now: now.features(body, model))

    @router.get("/v1/predictions/{prediction_id}", summary="A prediction with the features that it was made from")
    async def prediction(prediction_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")],
                         model: OfModel = None) -> Response:
        return await told(lambda now: now.prediction(prediction_id, model))

    @router.get("/v1/models", summary="Models, their versions, and which is live")
    async def models() -> Response:
        return await told(lambda now: now.models())

    @router.get("/v1/releases", summary="Who made which version live, when and why, newest first")
    async def releases(model: OfModel = None) -> Response:
        return await told(lambda now: now.releases(model))

    return router
