"""One model as the API serves it: its judge, its way to the store, its batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from feature_repo.online import SetReader
from schemas.admission import admit
from schemas.contracts import HINTS
from schemas.errors import BundleError, ContractError, HeadraceError, RuntimeFault
from schemas.settings import Settings
from schemas.topics import SOURCES
from services.api.batching import Batcher, Sizing
from services.api.metrics import Metrics
from services.api.prediction_log import PredictionLog
from services.api.store import EventStore
from services.explainers import Explainers
from services.judge import Judge
from services.scoring import NO_PLACE, Arrived, Scored

__all__ = ["Lane"]

log = logging.getLogger("api")
REFRESH_EVERY_S = 1.0
TARGET_S = 0.005
PARK_S = 5.0
RECENT = 10_000


class Lane:
    """Scores events of one model. ``start`` before anything else, within the event loop that it is to live in."""

    def __init__(self, settings: Settings, model: str, predictions: PredictionLog, metrics: Metrics, executor: Executor,
                 explainers: Explainers) -> None:
        assert settings.redis is not None
        self._loop, self._executor, self._settings = asyncio.get_running_loop(), executor, settings
        self.judge = Judge(settings, model)
        self.contract = SOURCES[self.judge.spec.service.source]
        self._log, self._metrics, self._model, self._explainers = predictions, metrics, model, explainers
        reader = SetReader(settings.redis.get_secret_value(), settings.redis_timeout_ms, settings.partitions)
        self.store = EventStore(reader, lambda: self.judge.spec.service.views, settings.redis_timeout_ms / 1000, executor)
        self._batcher = Batcher(self.judge, self.store, self._write, Sizing(settings.api_batch, TARGET_S), self._scored)
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Everything that takes long once is done when this returns."""
        await self._loop.run_in_executor(self._executor, self.judge.refresh, lambda: None)
        await self._loop.run_in_executor(self._executor, self.judge.warm_up)
        await self._loop.run_in_executor(self._executor, self._prepare)
        await self.store.connect()
        self._following = self._loop.create_task(self._follow())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._batcher.park()
        await self.store.close()

    def facts(self) -> dict[str, Any]:
        """Which model and definitions an event would be scored with now."""
        spec, model = self.judge.spec, self.judge.model
        return {"model": spec.name, "model_version": model.version if model else None, "epoch": self.judge.epoch,
                "canary": self.judge.canary,
                "service": spec.service.name, "service_hash": spec.service.definition_hash,
                "threshold": model.threshold if model else None}

    def admitted(self, event: Any) -> Arrived:
        """``event`` as it arrives now; a replay has no clock but its events. Raises ContractError where it is of the future."""
        now_ms = event.event_time if self._settings.time == "replay" else time.time_ns() // 1_000_000
        late = False
        for view in self.judge.spec.service.views:
            if view.source == self.judge.spec.service.source:
                verdict = admit(event.event_time, now_ms, view.allowed_lateness_ms, view.max_skew_ms)
                late |= verdict == "late"
                if verdict == "clock-skew":
                    raise ContractError("clock-skew", f"event_time is {event.event_time - now_ms} ms after arrival - at `$.event_time`",
                                        hint=HINTS["clock-skew"])
        return Arrived(event, NO_PLACE, NO_PLACE, now_ms, late)

    def score(self, arrived: Arrived, deadline: float) -> asyncio.Future[Scored]:
        return self._batcher.submit(arrived, deadline)

    def recent(self, prediction_id: str) -> bytes | None:
        """The record of a prediction that was just made here."""
        return self._recent.get(prediction_id)

    def _write(self, events: Sequence[Any], results: Sequence[Scored]) -> Any:
        for one in results:
            self._recent[one.prediction_id] = one.value
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return self._log.write(self.judge.spec.service.predictions, events, results)

    def _scored(self, n: int, seconds: float) -> None:
        self._metrics.count("headrace_api_scored_total", n, self._model)
        self._metrics.count("headrace_api_batches_total", 1, self._model)

    async def _follow(self) -> None:
        """Models and definitions are followed in a thread; before other definitions are taken, what is under way ends with these."""
        while True:
            await asyncio.sleep(REFRESH_EVERY_S)
            try:
                await self._loop.run_in_executor(self._executor, self.judge.refresh, self._complete)
                self._batcher.unpark()
                await self._loop.run_in_executor(self._executor, self._prepare)
            except HeadraceError as error:
                log.error("what is live cannot be seen: %s", error)
            finally:
                self._batcher.unpark()

    def _prepare(self) -> None:
        """Have the live model's explainer ready before anybody asks for one."""
        model = self.judge.model
        if model is not None:
            try:
                self._explainers.of(model.name, model.version)
            except BundleError as error:
                log.error("the live model cannot be explained: %s", error)

    def _complete(self) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._batcher.park(), self._loop).result(PARK_S)
        except TimeoutError as error:
            raise RuntimeFault(f"a batch did not end in {PARK_S:g} s") from error
