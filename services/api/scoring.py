"""``/v1/score`` and ``/v1/score:batch``: bare ASGI, from the bytes of a request to those of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET, Meta, UnsetType
from xxhash import xxh3_64_hexdigest

from schemas.contracts import refusal
from schemas.errors import ContractError, DefinitionError, RefusedError
from services.api.busy_poll import BusyPoll
from services.api.lanes import Lane
from services.api.metrics import Metrics
from services.api.prediction_log import PredictionLog
from services.explainers import Explainers, Explanation
from services.scoring import Arrived, Scored

__all__ = ["BATCH_MOST", "Answer", "Answers", "Reply", "ScoreRoutes"]

log = logging.getLogger("api")
BATCH_MOST = 256
EXPLAIN_S = 0.05
"""So long an answer that is to be explained is held up for that, at most; explaining takes a millisecond."""
ENCODE = msgspec.json.Encoder().encode
Headers = list[tuple[bytes, bytes]]


class Stamp(msgspec.Struct, frozen=True, gc=False):
    view: str
    fingerprint: str


class Logged(msgspec.Struct, frozen=True, gc=False):
    """What of a prediction record an answer tells."""

    prediction_id: str
    event_id: str
    event_time: int
    model: str
    model_version: str | None
    service_hash: str
    score: float | None
    threshold: float | None
    alert: bool | None
    degraded: bool
    late: bool
    stamps: list[Stamp]
    epoch: int | None = None


class Vector(msgspec.Struct, frozen=True, gc=False):
    """What of a prediction record is explained."""

    features: list[float | None]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The prediction of one event. ``score`` is null before a model was released; ``fingerprint`` stands for all events that were seen.

    ``explanation`` is there where it was asked for.
    """

    prediction_id: str
    event_id: str
    event_time: int
    score: float | None
    threshold: float | None
    alert: bool | None
    degraded: bool
    late: bool
    model: str
    model_version: str | None
    epoch: int | None
    service_hash: str
    fingerprint: str
    explanation: Explanation | UnsetType = UNSET


class Answers(msgspec.Struct, frozen=True, gc=False):
    predictions: list[Answer]


class Reply(NamedTuple):
    """``body`` None: somebody else has sent the answer."""

    status: int
    headers: Headers
    body: bytes | None


DECODE = msgspec.json.Decoder(Logged).decode
VECTOR = msgspec.json.Decoder(Vector).decode


class ScoreRoutes:
    """``lanes`` by model, the default one first."""

    def __init__(self, lanes: Mapping[str, Lane], predictions: PredictionLog, metrics: Metrics, explainers: Explainers,
                 executor: Executor, busy_poll: BusyPoll) -> None:
        self._lanes, self._log, self._metrics = lanes, predictions, metrics
        self._explainers, self._executor, self._busy_poll = explainers, executor, busy_poll
        self._default = next(iter(lanes.values()))
        self._batches = {name: msgspec.json.Decoder(_batch_of(lane.contract.record)) for name, lane in lanes.items()}
        self._loop = asyncio.get_running_loop()

    async def score(self, query: bytes, body: bytes, deadline: float) -> Reply:
        self._busy_poll.heard()
        lane, explain = self._asked(query)
        scored = await lane.score(self._arrived(lane, body), deadline)
        answer = self._answer(scored)
        if explain:
            answer = msgspec.structs.replace(answer, explanation=await self._explained(lane, scored, answer, deadline))
        return Reply(200, _headers(answer), ENCODE(answer))

    async def score_batch(self, query: bytes, body: bytes, deadline: float, charge: Any) -> Reply:
        """All or none is scored. ``charge`` is told how many events there are."""
        lane = self._asked(query)[0]
        try:
            events = self._batches[lane.judge.spec.name].decode(body).events
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refusal(error) from error
        charge(len(events))
        self._check_room()
        arrived = []
        for number, event in enumerate(events):
            try:
                arrived.append(lane.admitted(event))
            except ContractError as error:
                raise ContractError(error.reason, error.fact.replace("`$", f"`$.events[{number}]"), hint=error.hint) from error
        answers = [self._answer(one) for one in await asyncio.gather(*(lane.score(one, deadline) for one in arrived))]
        headers = _headers(answers[0], any(one.degraded for one in answers))
        return Reply(200, headers, ENCODE(Answers(answers)))

    def _arrived(self, lane: Lane, body: bytes) -> Arrived:
        event = lane.contract.decode(body)
        self._check_room()
        return lane.admitted(event)

    def _check_room(self) -> None:
        if self._log.full:
            raise RefusedError(429, "prediction-log-full", f"{self._log.waiting_bytes} bytes of predictions wait for Kafka",
                               hint="nothing is answered that cannot be logged; try again when Kafka is back", retry_s=5)

    async def _explained(self, lane: Lane, scored: Scored, answer: Answer, deadline: float) -> Explanation:
        """In a thread, for the loop has others to answer; a score is never lost for it."""
        features = VECTOR(scored.value).features
        work = self._loop.run_in_executor(self._executor, self._explainers.explain, lane.judge.spec, answer.model_version,
                                          answer.service_hash, features, answer.score)
        try:
            return await asyncio.wait_for(work, max(0.0, min(EXPLAIN_S, deadline - time.monotonic())))
        except TimeoutError:
            return Explanation.failed(f"not explained within {EXPLAIN_S * 1000:g} ms or the deadline; ask again")
        except Exception:
            log.exception("a score was not explained model=%s version=%s", answer.model, answer.model_version)
            return Explanation.failed("this could not be explained; the log says why")

    def _asked(self, query: bytes) -> tuple[Lane, bool]:
        """Which model is asked, and whether for an explanation."""
        if not query:
            return self._default, False
        told = parse_qs(query.decode("latin-1"), keep_blank_values=True)
        name = told.get("model", [self._default.judge.spec.name])[-1]
        if name not in self._lanes:
            raise DefinitionError("there is no such model", hint=f"one of {', '.join(self._lanes)}")
        explain = told.get("explain", ["false"])[-1]
        if explain not in ("true", "false"):
            raise RefusedError(422, "wrong-parameter", "explain is neither true nor false")
        return self._lanes[name], explain == "true"

    def _answer(self, scored: Scored) -> Answer:
        p = DECODE(scored.value)
        if p.degraded:
            self._metrics.count("headrace_api_degraded_total", 1, p.model)
        fingerprint = xxh3_64_hexdigest("".join([stamp.view + stamp.fingerprint for stamp in p.stamps]).encode())
        return Answer(p.prediction_id, p.event_id, p.event_time, p.score, p.threshold, p.alert, p.degraded, p.late, p.model,
                      p.model_version, p.epoch, p.service_hash, fingerprint)


def _headers(answer: Answer, degraded: bool | None = None) -> Headers:
    """What a client, or a proxy between, needs to know of an answer without reading it."""
    return [(b"content-type", b"application/json"),
            (b"headrace-model", f"{answer.model}@{answer.model_version or 'none'}".encode()),
            (b"headrace-epoch", b"none" if answer.epoch is None else b"%d" % answer.epoch),
            (b"headrace-service", answer.service_hash.encode()),
            (b"headrace-fingerprint", answer.fingerprint.encode()),
            (b"headrace-degraded", b"true" if (answer.degraded if degraded is None else degraded) else b"false")]


def _batch_of(record: type[msgspec.Struct]) -> Any:
    events: Any = Annotated[list[record], Meta(min_length=1, max_length=BATCH_MOST)]  # type: ignore[valid-type]
    return msgspec.defstruct(f"{record.__name__}Batch", [("events", events)], forbid_unknown_fields=True, frozen=True)
