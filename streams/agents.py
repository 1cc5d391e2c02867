"""A Faust app whose agents take chunks. What becomes of a chunk is a worker's affair; here it gets its turn, its thread and its seeks.

Faust's offsets are a hint only: a worker is told what is committed, and says to where it must be read again.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import faust
from aiokafka.errors import IllegalStateError

from schemas.errors import SettingsError
from schemas.niceness import stand_back
from schemas.settings import Settings
from streams import chunks
from streams.chunks import Chunk

__all__ = ["Several", "Worker", "build_app"]

log = logging.getLogger(__name__)
CHECK_EVERY_S, TICK_EVERY_S = {"live": 2.0, "replay": 0.1}, {"live": 0.5, "replay": 0.1}
"""In a replay the clock waits for what patient agents find at the end of a window: they make it wait for less."""
GC_THRESHOLD = 50_000
FETCH_BYTES = 256 << 10
"""Of a partition at once, compressed: about a chunk. With Faust's megabyte a worker with a backlog held 346 MB; with this 153, as fast."""
PATIENT_FETCH_MS, PATIENT_GATHERS = {"live": 250, "replay": 50}, 256 << 10
PATIENT_BYTES, PATIENT_NICE = 1 << 20, 10
LEFT_OUT_MS, IDLE_FETCH = 20, (250, 1)
"""What comes to a partition that a fetch leaves out waits for it; a rebalance or a seek waits for any that is under way."""
LANES = 2
"""Per topic. A lane waits for Redis and for the broker a third of its time; then the other one works."""


class Worker(Protocol):
    """What works through some of a topic's partitions; all of it runs in the one thread of its lane."""

    def apply(self, partition: int, records: Sequence[Any], committed: int) -> int | None:
        """Work through a chunk. None when it and all before it are done, at the next ``flush``; else the offset to seek to, and the chunk
        is not done."""

    def flush(self) -> None:
        """End what the chunks since the last time have in common."""

    def check(self, partition: int, position: int, committed: int) -> int | None:
        """For a partition read up to ``position``: the offset to seek to where something is missing, else None."""

    def tick(self, partition: int) -> None:
        """A moment has passed; nothing need have come."""

    def forget(self, partition: int) -> None:
        """The partition has, or had, another owner."""


Maker = Callable[[threading.Event], Worker]
"""From what is set when the process is told to stop."""


class Several:
    """Workers that read the same topic as one: a chunk is done when all of them are done with it. Each knows what it has seen before."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def apply(self, partition: int, records: Sequence[Any], committed: int) -> int | None:
        return _earliest(worker.apply(partition, records, committed) for worker in self._workers)

    def flush(self) -> None:
        for worker in self._workers:
            worker.flush()

    def check(self, partition: int, position: int, committed: int) -> int | None:
        return _earliest(worker.check(partition, position, committed) for worker in self._workers)

    def tick(self, partition: int) -> None:
        for worker in self._workers:
            worker.tick(partition)

    def forget(self, partition: int) -> None:
        for worker in self._workers:
            worker.forget(partition)


def _earliest(offsets: Any) -> int | None:
    return min((offset for offset in list(offsets) if offset is not None), default=None)


class Lane:
    """A worker with the one thread that it runs in."""

    def __init__(self, topic: str, worker: Worker) -> None:
        self.worker = worker
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=topic)

    def run(self, function: Any, *arguments: Any) -> asyncio.Future[Any]:
        """``function`` in the lane's thread, after all that was given to it before."""
        return asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)

    def apply(self, part: Sequence[Chunk], committed: Sequence[int]) -> list[int | None]:
        """``Worker.apply`` of each chunk, one a partition, then ``flush``. Called in the lane's thread."""
        resumes = [self.worker.apply(tp.partition, records, done) for (tp, records, _), done in zip(part, committed, strict=True)]
        self.worker.flush()
        return resumes


def build_app(group: str, settings: Settings, makers: Mapping[str, Maker], *, patient: bool = False) -> Any:
    """The app with an agent for each topic of ``makers``. Connects to nothing before it starts.

    ``patient``: nobody waits for it, so it takes much at a time and leaves the processor to others (nice 10).
    """
    if settings.kafka is None or settings.redis is None:
        raise SettingsError("a stream worker needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts workers with both set")
    chunks.install()
    chunks.ChunkConsumer.chunk_topics = frozenset(makers)
    fetch = chunks.PacedFetcher
    patient_fetch = PATIENT_FETCH_MS[settings.time], PATIENT_GATHERS
    fetch.busy, fetch.idle = (patient_fetch, patient_fetch) if patient else (settings.fetch_limits(LEFT_OUT_MS), IDLE_FETCH)
    servers = ";".join(f"{chunks.SCHEME}://{server}" for server in settings.kafka.split(","))
    application: Any = faust.App(
        group, broker=servers, datadir=str(settings.home.resolve() / f"faust-{group}"), web_enabled=False, topic_allow_declare=False,
        topic_disable_leader=True, stream_wait_empty=False, broker_commit_interval=1.0, broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0, consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=PATIENT_BYTES if patient else FETCH_BYTES,
    )
    stopping = threading.Event()
    lanes: dict[tuple[str, int], Lane] = {}

    def lane(tp: Any) -> Lane:
        """A partition always has the same one: what happens to it happens in order."""
        place = tp.topic, tp.partition % LANES
        if place not in lanes:
            lanes[place] = Lane(tp.topic, makers[tp.topic](stopping))
        return lanes[place]

    def owned() -> list[Any]:
        return [tp for tp in application.consumer.assignment() if tp.topic in makers]

    for name in makers:
        topic = application.topic(name, value_serializer="raw", value_type=None)
        application.agent(topic, name=f"apply-{name}")(_agent(application, lane))

    async def forget(_: Any, moved: set[Any], **__: Any) -> None:
        for tp in moved:
            if tp.topic in makers:
                await lane(tp).run(lane(tp).worker.forget, tp.partition)

    async def say_ready(_: Any, assigned: set[Any], **__: Any) -> None:
        gc.freeze()  # what is here now stays; a chunk makes thousands of short-lived tuples, and looking for cycles in them finds none
        gc.set_threshold(GC_THRESHOLD)
        if patient:
            stand_back(PATIENT_NICE)
        if settings.ready_file is not None:
            settings.ready_file.parent.mkdir(parents=True, exist_ok=True)
            settings.ready_file.write_text(str(os.getpid()))

    async def check_idle_partitions() -> None:
        consumer: Any = application.consumer
        for tp in owned():
            if not consumer.flow_active:
                continue
            try:
                position = await consumer.position(tp)
            except IllegalStateError:  # it was taken away meanwhile
                continue
            if position is not None:
                work = lane(tp)
                await _seek(consumer, tp, await _or_die(work.run(work.worker.check, tp.partition, position, consumer.committed(tp))))

    async def tick() -> None:
        for tp in owned():
            await _or_die(lane(tp).run(lane(tp).worker.tick, tp.partition))

    async def stop(_: Any, **__: Any) -> None:
        stopping.set()

    application.on_partitions_revoked.connect(forget)
    application.on_partitions_assigned.connect(forget)
    application.on_partitions_assigned.connect(say_ready)
    application.on_before_shutdown.connect(stop)
    pace = settings.time if patient else "live"
    application.timer(CHECK_EVERY_S[pace])(check_idle_partitions)
    application.timer(TICK_EVERY_S[pace])(tick)
    return application


def _agent(application: Any, lane_of: Callable[[Any], Lane]) -> Any:
    async def apply(stream: Any) -> None:
        under_way: dict[Lane, list[asyncio.Future[None]]] = defaultdict(list)
        async for event in stream.events():
            consumer, parts = application.consumer, defaultdict(list)
            for chunk in event.value:
                parts[lane_of(chunk.tp)].append(chunk)
            for lane, part in parts.items():
                large = sum(len(chunk.records) for chunk in part) > chunks.TOGETHER_MAX
                while len(under_way[lane]) > large:  # of a backlog the next is at hand; what comes bit by bit comes together meanwhile
                    await under_way[lane].pop(0)
                # One of an earlier epoch was fetched before a seek, and all is read again after the flow stood still.
                fresh = [chunk for chunk in part if consumer.flow_active and chunk.epoch == consumer.epoch(chunk.tp)]
                if fresh:
                    applied = lane.run(lane.apply, fresh, [consumer.committed(chunk.tp) for chunk in fresh])
                    under_way[lane].append(asyncio.ensure_future(_settle(consumer, fresh, applied)))
            consumer.taken(event.value)

    return apply


async def _settle(consumer: Any, part: Sequence[Chunk], applied: asyncio.Future[list[int | None]]) -> None:
    """Marks what is done first, for a seek may take long or fail; a partition that was moved meanwhile is left where it is."""
    resumes = list(zip(part, await _or_die(applied), strict=True))
    for chunk, resume in resumes:
        if resume is None:
            consumer.done(chunk.tp, chunk.records[-1].offset + 1)
    for chunk, resume in resumes:
        if chunk.epoch == consumer.epoch(chunk.tp):
            await _seek(consumer, chunk.tp, resume)


async def _seek(consumer: Any, tp: Any, offset: int | None) -> None:
    if offset is not None:
        log.warning("seeking back topic=%s partition=%d offset=%d", tp.topic, tp.partition, offset)
        with suppress(IllegalStateError):  # it was taken away meanwhile
            await consumer.seek(tp, offset)


async def _or_die(work: Any) -> Any:
    """The result of ``work``. Faust acknowledges an event whose agent raised, which would lose it: the process ends instead."""
    try:
        return await work
    except Exception:
        log.critical("worker ends; its chunk is not acknowledged and comes again", exc_info=True)
        logging.shutdown()
        os._exit(70)
