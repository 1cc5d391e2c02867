"""Logs predictions off the request's path: to Kafka, and while that does not answer to a spool on disk, from where they follow.

    direct    a record is handed to the producer as soon as its answer is sent; it is kept until the broker has acknowledged it
    spooling  the oldest has waited for ``PATIENCE_S``: what is not acknowledged goes to the spool, and from now on an answer is sent
              when its prediction is on disk. Once Kafka answers, direct again, and the spool follows piece by piece.

Both together are bounded: ``full`` says that nothing more may be answered. A record may be published twice (its id tells), never lost
but by a crash within the instant that Kafka needs to acknowledge it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import KafkaException, Producer

from schemas.envelope import CE_TYPE, PROBE, SCORED_EVENT
from schemas.errors import LogError
from schemas.topics import PREDICTION_TOPICS, answered_topic
from services.api.spool import Spool, frames
from services.scoring import Scored

__all__ = ["PredictionLog"]

log = logging.getLogger("api")
PATIENCE_S = 1.0
TICK_S = 0.01
PROBE_EVERY_S = 0.5
REPLAY_AT_ONCE = 200
QUEUE_MOST = 100_000
EVENT = msgspec.json.Encoder()
ENCODE = msgspec.msgpack.Encoder().encode


class Logged(msgspec.Struct, frozen=True, gc=False, array_like=True):
    topic: str
    key: bytes
    value: bytes
    prediction_id: str
    event: bytes = b""
    probe: bytes | None = None

    @property
    def size(self) -> int:
        return len(self.key) + len(self.value) + len(self.prediction_id) + len(self.topic) + len(self.event)


DECODE = msgspec.msgpack.Decoder(Logged).decode


class Replay:
    """One segment of the spool on its way; ``waiting`` are queued and not acknowledged."""

    def __init__(self, segment: Path) -> None:
        self.segment, self.waiting, self.refused, self.read = segment, 0, False, False
        self._frames: Iterator[bytes] = frames(segment)

    def more(self, n: int) -> list[Logged]:
        found = [DECODE(payload) for _, payload in zip(range(n), self._frames, strict=False)]
        self.read = len(found) < n
        return found


class PredictionLog:
    """``most_bytes`` is what may wait, in memory and on disk together. Belongs to one event loop."""

    def __init__(self, bootstrap: str, folder: Path, most_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._producer = Producer({
            # Not idempotent: what is taken back when Kafka is given up would break its sequence; copies have one id.
            "bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 5, "compression.type": "lz4", "message.timeout.ms": 0,
            "queue.buffering.max.messages": QUEUE_MOST, "log_level": 2})
        self._spool, self._most_bytes = Spool(folder), most_bytes
        self._disk = ThreadPoolExecutor(1, "spool")
        self._unacked: dict[int, tuple[Logged, float]] = {}
        self._due: list[int] = []
        self._unacked_bytes = self._unwritten_bytes = self._number = 0
        self._replay: Replay | None = None
        self._segments: list[Path] = self._spool.segments()
        self._ticking: asyncio.TimerHandle | None = None
        self._probing = False
        self._next_probe = 0.0
        self.spooling = False
        self.published = self.spooled = 0
        if self._segments:
            self._tick_later()

    @property
    def waiting_bytes(self) -> int:
        return self._unacked_bytes + self._unwritten_bytes + self._spool.bytes

    @property
    def full(self) -> bool:
        return self.waiting_bytes >= self._most_bytes

    def write(self, predictions: str, events: Iterable[Any], results: Sequence[Scored]) -> Awaitable[None] | None:
        """Log ``results`` of the predictions topic, each with its event, which may never come by the log itself.

        Returns, while Kafka does not answer, what to wait for before they are told to anyone.
        """
        topic, encode = answered_topic(predictions), EVENT.encode
        records = [Logged(topic, result.key, result.value, result.prediction_id, encode(event), result.probe)
                   for event, result in zip(events, results, strict=True)]
        if self.spooling:
            return self._to_disk(records)
        if len(self._producer) + len(self._due) + len(records) > QUEUE_MOST:
            self._stop_trusting("its queue is full")
            return self._to_disk(records)
        if not self._due:  # the loop sends answers when all that is due in its turn is done: two turns on they are on their way
            self._loop.call_soon(self._loop.call_soon, self._hand_over)
        now = time.monotonic()
        for record in records:
            self._number = number = self._number + 1
            self._unacked[number] = record, now
            self._unacked_bytes += record.size
            self._due.append(number)
        self._tick_later()
        return None

    async def close(self, seconds: float) -> None:
        """What the broker has not acknowledged in ``seconds`` goes to disk."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._hand_over()
        if not self.spooling and self._unacked:
            await self._loop.run_in_executor(None, self._producer.flush, seconds)
        if self._unacked:
            await self._abandon()
        await self._loop.run_in_executor(self._disk, self._spool.close)
        self._disk.shutdown()

    def _hand_over(self) -> None:
        due, self._due = self._due, []
        for number in due:
            held = self._unacked.get(number)  # None: it went to the spool meanwhile
            if held is not None and not self._produce(held[0], partial(self._delivered, number)):
                return self._stop_trusting("its queue is full")

    def _produce(self, record: Logged, delivered: Any) -> bool:
        headers: Any = [("ce_specversion", b"1.0"), (CE_TYPE, _type_of(record.topic)), ("ce_source", b"headrace/api"),
                        ("content-type", b"application/json"), ("ce_id", record.prediction_id.encode()), (SCORED_EVENT, record.event)]
        if record.probe is not None:
            headers.append((PROBE, record.probe))
        try:
            self._producer.produce(record.topic, record.value, record.key, on_delivery=delivered, headers=headers)
        except BufferError:
            return False
        return True

    def _delivered(self, number: int, error: Any, _: Any) -> None:
        found = self._unacked.get(number)
        if found is None:
            return  # it went to the spool meanwhile
        if error is not None:
            log.warning("broker refused a prediction, it waits on disk: %s", error)
            self._unacked[number] = found[0], float("-inf")  # the next turn takes it there
            return
        del self._unacked[number]
        self._unacked_bytes -= found[0].size
        self.published += 1

    def _tick_later(self) -> None:
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self._producer.poll(0)
        now = time.monotonic()
        if self.spooling:
            self._probe(now)
        elif self._unacked and next(iter(self._unacked.values()))[1] < now - PATIENCE_S:
            self._stop_trusting(f"a prediction was not acknowledged in {PATIENCE_S:g} s")
        else:
            self._follow()
        if self._unacked or self.spooling or self._segments or self._replay is not None:
            self._tick_later()

    def _stop_trusting(self, why: str) -> None:
        log.warning("Kafka does not answer, predictions wait on disk: %s", why)
        self.spooling, self._replay = True, None  # a segment that was on its way is begun again
        self._segments = self._spool.segments()
        self._abandoned = self._abandon()
        self._tick_later()

    def _abandon(self) -> Awaitable[None]:
        records = [record for record, _ in self._unacked.values()]
        self._unacked.clear()
        self._unacked_bytes = 0
        self._producer.purge()
        return self._to_disk(records)

    def _to_disk(self, records: Sequence[Logged]) -> Awaitable[None]:
        size = sum(record.size for record in records)
        self.spooled += len(records)
        self._unwritten_bytes += size
        written = self._loop.run_in_executor(self._disk, self._append, [ENCODE(record) for record in records])
        written.add_done_callback(lambda _: self._written(size))
        return written

    def _written(self, size: int) -> None:
        self._unwritten_bytes -= size

    def _append(self, payloads: Sequence[bytes]) -> None:
        try:
            self._spool.append(payloads)
        except OSError as error:
            log.error("the spool cannot be written predictions=%d: %s", len(payloads), error)
            raise LogError("the prediction can be logged nowhere", hint="is there room on the disk of HEADRACE_HOME?") from error

    def _probe(self, now: float) -> None:
        if self._probing or now < self._next_probe:
            return
        self._probing, self._next_probe = True, now + PROBE_EVERY_S
        asked = self._loop.run_in_executor(None, self._answers)
        asked.add_done_callback(lambda done: self._probed(done.result()))

    def _answers(self) -> bool:
        try:
            self._producer.list_topics(answered_topic(next(iter(PREDICTION_TOPICS))), timeout=PROBE_EVERY_S)
        except KafkaException:
            return False
        return True

    def _probed(self, answers: bool) -> None:
        self._probing = False
        if answers and self.spooling:
            log.warning("Kafka answers again, what waits on disk follows")
            self.spooling = False
            rotated = self._loop.run_in_executor(self._disk, self._spool.rotate)
            rotated.add_done_callback(lambda done: self._take(done.result()))

    def _take(self, segments: list[Path]) -> None:
        self._segments = segments
        self._tick_later()

    def _follow(self) -> None:
        """A piece more of the spool goes to Kafka; a segment is removed when all of it is acknowledged."""
        if self._replay is None and self._segments:
            self._replay = Replay(self._segments.pop(0))
        replay = self._replay
        if replay is None:
            return
        if replay.refused:
            return self._stop_trusting("it refused what had waited on disk")
        if not replay.read and replay.waiting < REPLAY_AT_ONCE:
            for record in replay.more(REPLAY_AT_ONCE):
                while not self._produce(record, partial(self._followed, replay)):
                    self._producer.poll(0.01)
                replay.waiting += 1
        elif replay.read and not replay.waiting:
            self._replay = None
            self._loop.run_in_executor(self._disk, self._spool.remove, replay.segment)

    def _followed(self, replay: Replay, error: Any, _: Any) -> None:
        replay.waiting -= 1
        replay.refused |= error is not None
        self.published += error is None


@cache
def _type_of(topic: str) -> bytes:
    return next(contract.type_bytes for name, contract in PREDICTION_TOPICS.items() if answered_topic(name) == topic)
