"""The Faust app: ``faust -A streams.app worker``. One agent per source; all work on a chunk happens in ``streams.applier``."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import faust
from aiokafka.errors import IllegalStateError

from feature_repo.appends import SetWriter
from feature_repo.fraud import SERVICE, VIEWS
from schemas.errors import SettingsError
from schemas.settings import Settings, read_settings
from schemas.topics import SOURCES
from streams import chunks
from streams.applier import Applier
from streams.publisher import Publisher, next_offset

__all__ = ["build"]

log = logging.getLogger(__name__)
GROUP = "headrace-features"
CHECK_EVERY_S = 2.0
GC_THRESHOLD = 50_000


class Lane:
    """One source's applier with the one thread that it runs in."""

    def __init__(self, source: str, settings: Settings, stopping: threading.Event) -> None:
        assert settings.kafka is not None
        assert settings.redis is not None
        views = [view for view in VIEWS if view.source == source]
        writer = SetWriter(settings.redis.get_secret_value(), views, SERVICE, settings.partitions)
        self.applier = Applier(source, SOURCES[source], views, writer, Publisher(settings.kafka, stopping.is_set),
                               partial(next_offset, settings.kafka, source), stopping)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"apply-{source}")

    async def run(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)


def build(settings: Settings) -> Any:
    """The app with an agent per source. Connects to nothing before the worker starts."""
    if settings.kafka is None or settings.redis is None:
        raise SettingsError("a stream worker needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts workers with both set")
    chunks.install()
    chunks.ChunkConsumer.chunk_topics = frozenset(SOURCES)
    servers = ";".join(f"{chunks.SCHEME}://{server}" for server in settings.kafka.split(","))
    application: Any = faust.App(
        GROUP, broker=servers, datadir=str(settings.home.resolve() / "faust"), web_enabled=False, topic_allow_declare=False,
        topic_disable_leader=True, stream_wait_empty=False, broker_commit_interval=1.0, broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0, consumer_auto_offset_reset="earliest",
    )
    stopping = threading.Event()
    lanes: dict[str, Lane] = {}

    def lane(source: str) -> Lane:
        if source not in lanes:
            lanes[source] = Lane(source, settings, stopping)
        return lanes[source]

    for source in SOURCES:
        topic = application.topic(source, value_serializer="raw", value_type=None)
        application.agent(topic, name=f"apply-{source}")(_agent(application, source, lane))

    async def forget(_: Any, moved: set[Any], **__: Any) -> None:
        for tp in moved:
            if tp.topic in lanes:
                await lanes[tp.topic].run(lanes[tp.topic].applier.forget, tp.partition)

    async def say_ready(_: Any, assigned: set[Any], **__: Any) -> None:
        gc.freeze()  # what is here now stays; a chunk makes thousands of short-lived tuples, and looking for cycles in them finds none
        gc.set_threshold(GC_THRESHOLD)
        if settings.ready_file is not None:
            settings.ready_file.parent.mkdir(parents=True, exist_ok=True)
            settings.ready_file.write_text(str(os.getpid()))

    async def check_idle_partitions() -> None:
        consumer: Any = application.consumer
        for tp in list(consumer.assignment()):
            if tp.topic not in SOURCES or not consumer.flow_active:
                continue
            try:
                position = await consumer.position(tp)
            except IllegalStateError:  # it was taken away meanwhile
                continue
            if position is not None:
                work = lane(tp.topic)
                await _seek(consumer, tp, await _or_die(
                    work.run(work.applier.check, tp.partition, position, consumer.committed(tp))))

    async def stop(_: Any, **__: Any) -> None:
        stopping.set()

    application.on_partitions_revoked.connect(forget)
    application.on_partitions_assigned.connect(forget)
    application.on_partitions_assigned.connect(say_ready)
    application.on_before_shutdown.connect(stop)
    application.timer(CHECK_EVERY_S)(check_idle_partitions)

    return application


def _agent(application: Any, source: str, lane: Any) -> Any:
    async def apply(stream: Any) -> None:
        async for event in stream.events():
            consumer, chunk, tp, work = application.consumer, event.value, event.message.tp, lane(source)
            consumer.taken(chunk)
            if chunk.epoch != consumer.epoch(tp):  # it was fetched before a seek, and its records come again
                continue
            resume = await _or_die(work.run(work.applier.apply, tp.partition, chunk.records, consumer.committed(tp)))
            if resume is None:
                consumer.done(tp, event.message.offset + 1)
            await _seek(consumer, tp, resume)

    return apply


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


def __getattr__(name: str) -> Any:
    if name == "app":  # built when ``faust -A streams.app`` asks for it, not at import
        globals()["app"] = build(read_settings())
        return globals()["app"]
    raise AttributeError(name)
