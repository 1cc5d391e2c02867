"""A backfill into an empty store, against pipelined writes of the same size; and what one does to live scoring."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from feature_repo.fills import Fills, Plan
from feature_repo.fraud import CARD_SPEND, SERVICE, USE_CASE
from feature_repo.layout import entity_key
from feature_repo.union import Pace, SetUnion
from feature_repo.views import DAY_MS
from feature_repo.wire import Wire, pack
from jobs.backfill import backfill
from jobs.spark import session
from schemas.settings import Settings
from services.inputs import event_rows
from services.latency import measure_latency, one_a_millisecond
from services.runtime.embedded import Runtime
from services.world import World
from tests.bench.bronze import write_bronze
from tests.bench.load import START_MS, Events
from tests.bench.model import promote_noise
from tests.bench.offline import DAYS, KNOWN_AFTER_MS
from tests.bench.report import Figure

__all__ = ["measure"]

PIPELINE = 16
"""Commands in flight of the baseline, as in ``redis-benchmark -P 16``."""
WRITES = 200_000
RATE = 1_000
WARM_UP_S = 5.0
FIRST_WARM_UP_S = 30.0
"""What runs first measures a broker that compiles itself."""
A_CARD_A_DAY = 1.9
RECORD_BYTES = 8 * CARD_SPEND.record_words


def measure(settings: Settings, rows: int, seconds: float, tell: Callable[[str], None]) -> list[Figure]:
    """``rows`` archived transactions, ten a card; then ``seconds`` of scoring without and with backfills beside it."""
    promote_noise(settings.models)
    with Runtime(settings, ("worker", "scorer"), tell) as runtime:
        for name in ("scorer", "worker-1"):
            runtime.hold(name)
        events = Events.draw(rows, DAYS, population=6 * rows)
        with session(settings, "bench") as spark:
            tell(f"writing an archive of {rows:,} transactions")
            write_bronze(settings, events, KNOWN_AFTER_MS)
            backfill(settings, runtime.redis, CARD_SPEND, (SERVICE,), end_ms=START_MS + DAY_MS, rate=float("inf"), spark=spark)
            _flush(runtime.redis)
            tell("backfill")
            done = backfill(settings, runtime.redis, CARD_SPEND, (SERVICE,), rate=float("inf"), spark=spark)
            again = backfill(settings, runtime.redis, CARD_SPEND, (SERVICE,), rate=float("inf"), spark=spark)
        assert (done.added, again.added) == (rows, 0)
        _flush(runtime.redis)
        tell("writing alone, from one process")
        alone_s = _union_s(runtime.redis, events)
        _flush(runtime.redis)
        by_record = _writes_per_s(runtime.redis, RECORD_BYTES)
        by_entity = _writes_per_s(runtime.redis, done.bytes_added // done.entities)
        _flush(runtime.redis)
        for name in ("worker-1", "scorer"):
            runtime.release(name)
        live = _beside_scoring(settings, runtime, seconds, tell)
    how = "redis-benchmark" if shutil.which("redis-benchmark") else "plain client"
    against = f"{how}, pipeline {PIPELINE}, "
    detail = {"rows": rows, "entities": done.entities, "seconds": done.seconds, "again_s": again.seconds}
    return [
        Figure("backfill", "records/s, Delta to Redis", rows / done.seconds, "/s", baseline=f"{against}SET of {RECORD_BYTES} bytes",
               ratio=rows / done.seconds / by_record, ratio_target=0.5, detail={**detail, "baseline_per_s": round(by_record)}),
        Figure("backfill", "entities/s, Delta to Redis", done.entities / done.seconds, "/s",
               baseline=f"{against}SET of a whole set", ratio=done.entities / done.seconds / by_entity,
               detail={**detail, "baseline_per_s": round(by_entity)}),
        Figure("backfill", "records/s, the union alone, one process", rows / alone_s, "/s",
               baseline=f"{against}SET of {RECORD_BYTES} bytes", ratio=rows / alone_s / by_record, ratio_target=0.5),
        Figure("backfill", "records/s compared by a second run", again.records / again.seconds, "/s"),
        *live,
    ]


def _union_s(url: str, events: Events) -> float:
    """Seconds to bring ready records of ready entities into an empty store."""
    order = np.argsort(events.cards, kind="stable")
    records = np.zeros((len(events), CARD_SPEND.record_words), np.int64)
    records[:, 0], records[:, 1] = events.times[order], order + 1
    cards, data = events.cards[order], [row.tobytes() for row in records]
    bounds = [0, *(np.flatnonzero(cards[1:] != cards[:-1]) + 1).tolist(), len(cards)]
    entities = [(str(cards[a]), data[a:b]) for a, b in pairwise(bounds)]
    fills = Fills(url, CARD_SPEND)
    union = SetUnion(url, CARD_SPEND, fills.begin(Plan(0, 1, None, None, None)), Pace(1, float("inf")))
    began = time.perf_counter()
    assert union.unit(0, entities) is not None
    took_s = time.perf_counter() - began
    union.close()
    fills.close()
    return took_s


def _writes_per_s(url: str, size: int) -> float:
    if binary := shutil.which("redis-benchmark"):
        place = url.split("//")[1].split("/")[0].split(":")
        command = [binary, "-h", place[0], "-p", place[1], "-t", "set", "-P", str(PIPELINE), "-c", "1", "-d", str(size), "-n", str(WRITES),
                   "-r", str(WRITES), "-q", "--csv"]
        line = next(line for line in subprocess.check_output(command, text=True).splitlines() if line.startswith('"SET"'))
        return float(line.split(",")[1].strip('"'))
    value, keys = bytes(size), np.random.default_rng(1).permutation(WRITES).tolist()
    packed = [b"".join(_packed(keys[at:at + PIPELINE], value)) for at in range(0, WRITES, PIPELINE)]
    wire = Wire(url, 5000)
    began = time.perf_counter()
    for commands in packed:
        wire.send([commands])
        wire.receive(PIPELINE)
    wire.close()
    return WRITES / (time.perf_counter() - began)


def _packed(keys: Sequence[int], value: bytes) -> Iterator[bytes]:
    return (pack(("SET", entity_key(CARD_SPEND, f"b{key}"), value)) for key in keys)


def _flush(url: str) -> None:
    wire = Wire(url, 30_000)
    wire.call("FLUSHALL")
    wire.close()


def _beside_scoring(settings: Settings, runtime: Runtime, seconds: float, tell: Callable[[str], None]) -> list[Figure]:
    """The p99 of event to prediction alone, then while backfills run one after the other, as the command chooses and on Spark."""
    cards = int(RATE * (seconds + FIRST_WARM_UP_S) / A_CARD_A_DAY)
    world = World(seed=9, cards=cards, terminals=cards // 3, start_ms=START_MS + (DAYS + 1) * DAY_MS)
    found = []
    for day, engine in enumerate(("", "auto", "", "spark", "")):
        tell(f"scoring {RATE:,} events/s for {seconds:g} s " + (f"with backfills beside it, engine {engine}" if engine else "alone"))
        warm_up_s = WARM_UP_S if day else FIRST_WARM_UP_S
        rows, start_ms = int(RATE * (seconds + warm_up_s)), START_MS + (DAYS + 1 + day) * DAY_MS
        batches = list(one_a_millisecond(event_rows(world.day(day)), start_ms, rows))
        with _backfills(settings, runtime.redis, engine) if engine else _nothing() as runs:
            found.append(measure_latency(runtime.kafka, batches, RATE, USE_CASE, warm_up_s))
            tell(f"p99 {found[-1].p99:.1f} ms, backfills done meanwhile: {len(runs)}")

    def figure(at: int, how: str) -> Figure:
        before, beside, after = found[at - 1:at + 2]
        detail = {"alone_ms": [round(each.p99, 1) for each in (before, after)], "beside": beside.facts()}
        return Figure("backfill", f"p99 at {RATE:,} events/s beside a backfill on the same machine, {how}", beside.p99, "ms",
                      1.2 * (before.p99 + after.p99) / 2, at_most=True, detail=detail)

    return [figure(1, "in process"), figure(3, "on Spark")]


@contextmanager
def _backfills(settings: Settings, url: str, engine: str) -> Iterator[list[int]]:
    """``headrace backfill`` again and again, until the block ends."""
    environment = {**os.environ, "HEADRACE_HOME": str(settings.home), "HEADRACE_REDIS": url, "HEADRACE_TIME": "replay"}
    command = [sys.executable, "-m", "services.cli", "backfill", "terminal_activity", "card_spend", "terminal_risk", "--json",
               "--engine", engine]
    ended, running, runs = threading.Event(), threading.Event(), []
    children: list[subprocess.Popen[bytes]] = []

    def go_on() -> None:
        while not ended.is_set():
            children.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            running.set()
            runs.append(children[-1].wait())

    thread = threading.Thread(target=go_on)
    thread.start()
    running.wait()
    try:
        yield runs
    finally:
        ended.set()
        children[-1].terminate()
        thread.join()


@contextmanager
def _nothing() -> Iterator[list[int]]:
    yield []
