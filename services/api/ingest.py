"""The ingest gateway: an event is checked against its contract and published, acknowledged by all replicas; the answer says where it lies.

Its effect is once whatever is sent again: sets and predictions go by event id and time. So that a client that repeats itself also gets
the same answer, the last ``REMEMBERED`` events of this process are known by id and time: they are not published again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from confluent_kafka import KafkaException, Producer
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from xxhash import xxh3_128_digest

from feature_repo.models import Outcomes
from feature_repo.use_cases import models, views
from feature_repo.views import skew_ms
from schemas.contracts import HINTS, Contract
from schemas.envelope import cloud_event_headers
from schemas.errors import ContractError, DefinitionError, LogError, RefusedError
from schemas.settings import Settings
from schemas.topics import BROKER_MAX_BYTES, SOURCES, sources

__all__ = ["Ingest", "Position", "ingest_routes"]

REMEMBERED = 100_000
ANSWER_S = 5.0
TICK_S = 0.002
ENCODE = msgspec.json.Encoder().encode


class Position(msgspec.Struct, frozen=True):
    """Where an event lies in the log. ``repeated``: it was there already."""

    event_id: str
    topic: str
    partition: int
    offset: int
    repeated: bool = False


class Known(msgspec.Struct, frozen=True, gc=False):
    content: bytes
    position: Any  # asyncio.Future[Position]


class Ingest:
    """One producer, and what it published lately. Belongs to one event loop."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._producer = Producer({
            "bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0, "compression.type": "lz4",
            "partitioner": "murmur2", "message.timeout.ms": int(ANSWER_S * 1000), "message.max.bytes": BROKER_MAX_BYTES, "log_level": 2})
        self._replay = settings.time == "replay"
        self._skew_ms = {name: skew_ms(views(settings), name) for name in sources(settings)}
        self._headers = {name: cloud_event_headers(SOURCES[name], "/headrace/api") for name in sources(settings)}
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._waiting = 0
        self._ticking: asyncio.TimerHandle | None = None

    async def publish(self, topic: str, body: bytes) -> Position:
        """Where the event in ``body`` lies once the log has it.

        Raises ContractError where the log would refuse it, RefusedError where its id was used for another one, LogError where the
        log does not answer: then it may be there or not, and sending it again is right.
        """
        contract = SOURCES[topic]
        event = contract.decode(body)
        arrival_ms = event.event_time if self._replay else time.time_ns() // 1_000_000
        if event.event_time - arrival_ms > self._skew_ms[topic]:
            raise ContractError("clock-skew", f"event_time is {event.event_time - arrival_ms} ms after arrival - at `$.event_time`",
                                hint=HINTS["clock-skew"])
        value = ENCODE(event)
        identity, content = _identity(topic, event), xxh3_128_digest(value)
        known = self._known.get(identity)
        if known is None:
            known = Known(content, self._send(topic, contract, event, value, arrival_ms))
            self._remember(identity, known)
            return await _answer(known.position)
        if known.content != content:
            raise RefusedError(409, "other-content", "an event with this id and time, but other content, was sent before",
                               hint="a retry is the same event; a correction has a higher revision, where the contract has one")
        return msgspec.structs.replace(await _answer(known.position), repeated=True)

    async def close(self, seconds: float) -> None:
        await self._loop.run_in_executor(None, self._producer.flush, seconds)

    def _send(self, topic: str, contract: Contract, event: Any, value: bytes, arrival_ms: int) -> asyncio.Future[Position]:
        answer: asyncio.Future[Position] = self._loop.create_future()

        def delivered(error: Any, message: Any) -> None:
            self._waiting -= 1
            if answer.done():
                return
            if error is not None:
                answer.set_exception(LogError(f"Kafka did not take it: {error.name()}", hint="send it again"))
            else:
                answer.set_result(Position(event.event_id, topic, message.partition(), message.offset()))

        headers: Any = self._headers[topic](event.event_id, event.event_time)
        key = getattr(event, contract.key).encode()
        try:
            if self._replay:
                self._producer.produce(topic, value, key, timestamp=arrival_ms, on_delivery=delivered, headers=headers)
            else:
                self._producer.produce(topic, value, key, on_delivery=delivered, headers=headers)
        except BufferError as error:
            raise RefusedError(429, "log-busy", "too many events wait for Kafka", hint="send fewer at once") from error
        except KafkaException as error:
            raise LogError(f"Kafka did not take it: {error.args[0].name()}", hint="send it again") from error
        self._waiting += 1
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)
        return answer

    def _remember(self, identity: bytes, known: Known) -> None:
        self._known[identity] = known

        def settled(answer: asyncio.Future[Position]) -> None:
            if answer.exception() is not None:
                self._known.pop(identity, None)  # the next one tries again

        known.position.add_done_callback(settled)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _tick(self) -> None:
        self._producer.poll(0)
        self._ticking = self._loop.call_later(TICK_S, self._tick) if self._waiting else None


def ingest_routes(settings: Settings, ingest: Callable[[], Ingest]) -> APIRouter:
    """``/v1/events`` takes the sources of the use cases that are on, ``/v1/outcomes`` what becomes known of scored events."""
    router = APIRouter(tags=["ingest"])
    specs = models(settings)
    outcomes = [spec.labels.topic for spec in specs if isinstance(spec.labels, Outcomes)]
    events = [name for name in sources(settings) if name not in outcomes]
    first = specs[0].service.source

    async def publish(request: Request, topic: str, among: list[str]) -> Response:
        if topic not in among:
            raise DefinitionError("there is no such source", hint=f"one of {', '.join(among)}")
        position = await ingest().publish(topic, await request.body())
        return Response(ENCODE(position), 202, media_type="application/json")

    @router.post("/v1/events", status_code=202, summary="Publish one event", openapi_extra={"x-takes": events})
    async def event(request: Request, source: Annotated[str, Query(description="topic it belongs to")] = first) -> Response:
        return await publish(request, source, events)

    if outcomes:
        @router.post("/v1/outcomes", status_code=202, summary="Publish what became known of an event", openapi_extra={"x-takes": outcomes})
        async def outcome(request: Request, source: Annotated[str, Query(description="topic it belongs to")] = outcomes[0]) -> Response:
            return await publish(request, source, outcomes)

    return router


def _identity(topic: str, event: Any) -> bytes:
    return xxh3_128_digest(f"{topic}|{event.event_time}|{getattr(event, 'revision', 0)}|{event.event_id}".encode())


async def _answer(position: asyncio.Future[Position]) -> Position:
    """One that waits may go away; the others still want to know."""
    try:
        async with asyncio.timeout(ANSWER_S + 1):
            return await asyncio.shield(position)
    except TimeoutError as error:
        raise LogError("Kafka did not answer in time", hint="send it again") from error
