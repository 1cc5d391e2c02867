"""A merchant with a thousand events a second and ten million of them in its windows: what a read costs, and what Redis holds of it.

The past is written in simulated time, as fast as it goes: the bytes that the feature worker appends, a second of them at once, and
compactions when the compactor would do them. Then it goes on for some real seconds at the real pace, writer and compactor in
a process of their own, while reads are measured.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import redis

from feature_repo import kernel
from feature_repo.appends import SetWriter
from feature_repo.bounds import check_size
from feature_repo.compaction import EntityCompactor
from feature_repo.layout import entity_key, join_sets, tiles_key
from feature_repo.marks import applied_key, applied_ms_key
from feature_repo.online import SetReader
from feature_repo.tiles import tiles_of
from feature_repo.views import HOUR_MS, MINUTE_MS, Column, Feature, FeatureService, FeatureView
from schemas.settings import Settings
from services.compactor import STEPS
from services.runtime.embedded import Runtime
from tests.bench.report import Figure

__all__ = ["measure"]

PER_S = 1_000
SECONDS = 3 * 3600
LIVE_S = 10
READS_PER_S = 200
WRITES_PER_S = 20
QUIET, QUIET_EVENTS = 10_000, 30
START_MS = 1_700_000_000_000
WINDOWS = ((10 * MINUTE_MS, 5_000), (HOUR_MS, MINUTE_MS), (3 * HOUR_MS, 5 * MINUTE_MS))
MERCHANT = FeatureView(
    "merchant", "merchant_id", "payments", (Column("amount_minor", scale=100),),
    tuple(Feature(f"{function}_{window // MINUTE_MS}m", function, window, None if function == "count" else "amount_minor", hop_ms=hop)
          for window, hop in WINDOWS for function in ("count", "sum", "mean", "std", "max", "last")),
    allowed_lateness_ms=10_000, max_skew_ms=2_000, peak_per_s=PER_S)
SERVICE = FeatureService("bench", "payments", (MERCHANT,))
HOT = "hot"


def measure(settings: Settings, tell: Callable[[str], None]) -> list[Figure]:
    """Redis is embedded, with its append-only file, as `headrace up` runs it."""
    most = check_size(MERCHANT, SERVICE.scored_lateness_ms, lag_ms=2_000)
    with Runtime(settings, (), tell) as runtime:
        store: Any = redis.Redis.from_url(runtime.redis)
        tell(f"{SECONDS:,} simulated seconds of {PER_S:,} events each")
        events, rounds, compact_ms, longest = _fill(runtime.redis, store)
        _quiet(store)
        tell(f"{len(events):,} events, {rounds:,} compactions of {compact_ms:.1f} ms; now {LIVE_S} s at the real pace")
        reads, differing = _live(runtime.redis, events)
        size = sum(store.memory_usage(key) or 0 for key in (entity_key(MERCHANT, HOT), tiles_key(MERCHANT, HOT)))
        raw, tiles = store.strlen(entity_key(MERCHANT, HOT)), store.strlen(tiles_key(MERCHANT, HOT))
        quiet = statistics.mean(store.memory_usage(entity_key(MERCHANT, f"q{i}")) or 0 for i in range(0, QUIET, 10))
        store.close()
    record = 8 * MERCHANT.record_words
    p50, p99 = np.percentile(reads, (50, 99))
    detail = {"reads": len(reads), "features": len(MERCHANT.features), "raw_bytes": raw, "tile_bytes": tiles, "worst_ms": max(reads)}
    return [
        Figure("tiles", f"{len(events):,} events in its windows: fetched and folded, p50", float(p50), "ms"),
        Figure("tiles", "the same, p99", float(p99), "ms", 1.0, at_most=True, detail=detail),
        Figure("tiles", "features that differ from a sweep over every event", float(differing), "", 0, at_most=True),
        Figure("tiles", "raw records of it, at most", float(longest), "", most, at_most=True),
        Figure("tiles", "Redis memory of it", size / 2**20, "MiB", baseline="as records", ratio=len(events) * record / size),
        Figure("tiles", "Redis memory an event of it", size / len(events), "bytes"),
        Figure("tiles", "one compaction of it: look, fold, script", compact_ms, "ms"),
        Figure("tiles", f"Redis memory of a quiet entity, {QUIET_EVENTS} events", quiet, "bytes"),
        Figure("tiles", "Redis memory an event of a quiet entity", quiet / QUIET_EVENTS, "bytes"),
    ]


def _drawn(second: int, random: Any) -> Any:
    """int64[PER_S, words]: one simulated second in order of arrival, up to ten seconds late."""
    rows = np.empty((PER_S, MERCHANT.record_words), np.int64)
    late = np.where(random.random(PER_S) < 0.2, random.integers(0, 10_000, PER_S), 0)
    rows[:, 0] = START_MS + second * 1000 + np.sort(random.integers(0, 1000, PER_S)) - late
    rows[:, 1] = random.integers(1, 2**62, PER_S)
    rows[:, 2] = random.integers(1, 100_000, PER_S)
    return rows


def _fill(url: str, store: redis.Redis) -> tuple[Any, int, float, int]:
    random = np.random.default_rng(1)
    compactor = EntityCompactor(url, MERCHANT)
    every, spent, longest, last_ms = [], [], 0, 0
    step_ms = (MERCHANT.allowed_lateness_ms + MERCHANT.max_skew_ms) // STEPS
    for second in range(SECONDS):
        rows, now_ms = _drawn(second, random), START_MS + second * 1000 + 999
        every.append(rows)
        length = int(store.append(entity_key(MERCHANT, HOT), rows.tobytes()))  # type: ignore[arg-type]
        if now_ms - last_ms < step_ms:
            continue
        last_ms = now_ms
        store.hset(applied_ms_key(MERCHANT), mapping={"0": now_ms})
        began = time.perf_counter()
        seen = compactor.look(HOT, now_ms, now_ms - SERVICE.scored_lateness_ms, 1)
        assert seen is not None
        assert compactor.compact(seen).done
        spent.append(1000 * (time.perf_counter() - began))
        longest = max(longest, length // (8 * MERCHANT.record_words))
    store.hset(applied_key(MERCHANT), mapping={"0": SECONDS * PER_S - 1})
    compactor.close()
    return np.concatenate(every), len(spent), statistics.median(spent), longest


def _quiet(store: redis.Redis) -> None:
    random = np.random.default_rng(2)
    for i in range(QUIET):
        for row in _drawn(0, random)[:QUIET_EVENTS]:
            store.append(entity_key(MERCHANT, f"q{i}"), row.tobytes()) if i % 10 == 0 else None


def _go_on(url: str, began: float) -> None:
    """Writer and compactor, at the real pace; the writer as the feature worker does it."""
    writer, compactor, random = SetWriter(url, [MERCHANT], [SERVICE], 1), EntityCompactor(url, MERCHANT), np.random.default_rng(3)
    writer.marks.adopt(0, writer.held(0))
    offset, next_fold, share = writer.marks.lowest(0), 0.0, PER_S // WRITES_PER_S
    for turn in range(LIVE_S * WRITES_PER_S):
        time.sleep(max(0.0, began + turn / WRITES_PER_S - time.monotonic()))
        now_ms = START_MS + SECONDS * 1000 + turn * 1000 // WRITES_PER_S
        batch = [(SimpleNamespace(event_id=f"{turn}-{i}", event_time=now_ms - int(random.integers(0, 50)), merchant_id=HOT,
                                  amount_minor=int(random.integers(1, 100_000))), now_ms) for i in range(share)]
        offset += share
        assert writer.apply(0, offset, [batch], arrival_ms=now_ms)
        if time.monotonic() >= next_fold:
            next_fold = time.monotonic() + 1.5
            seen = compactor.look(HOT, now_ms, now_ms - SERVICE.scored_lateness_ms, 1)
            if seen is not None:
                compactor.compact(seen)


def _live(url: str, events: Any) -> tuple[list[float], int]:
    """Milliseconds of each read, and how many values of the first differ from a sweep over all ``events``."""
    reader = SetReader(url, 2000, 1)
    t = START_MS + SECONDS * 1000 - 1
    values = _read(reader, t)
    order = kernel.sort_order(MERCHANT, np.zeros(len(events), np.int64), events)
    zeros = np.zeros(1, np.int64)
    whole, _ = kernel.sweep(MERCHANT, events[order], np.zeros((len(events), 2), np.int64), zeros, zeros + len(events), np.array([t]),
                            np.zeros((1, MERCHANT.record_words), np.int64), zeros, np.full((1, 2), np.iinfo(np.int64).max))
    differing = int((values != whole[0]).sum())
    for _ in range(100):
        _read(reader, t)
    began = time.monotonic() + 3  # a fresh process loads the kernel first
    child = multiprocessing.get_context("spawn").Process(target=_go_on, args=(url, began))
    child.start()
    spent = []
    # At moments drawn at random: evenly spaced, each tenth read would come at the very moment of a write.
    for after_s in np.sort(np.random.default_rng(4).random(LIVE_S * READS_PER_S) * LIVE_S).tolist():
        time.sleep(max(0.0, began + after_s - time.monotonic()))
        start = time.perf_counter()
        _read(reader, t + int(after_s * 1000))
        spent.append(1000 * (time.perf_counter() - start))
    child.join()
    reader.close()
    assert child.exitcode == 0
    return spent, differing


def _read(reader: SetReader, t: int) -> Any:
    """Features at ``t`` of the entity, from the store to float64[F]."""
    reading = reader.read([(MERCHANT, [HOT])])
    records, edges = join_sets(MERCHANT, reading.sets[0].values())
    at = np.zeros(1, np.int64)
    values, stamps = kernel.read_sets(MERCHANT, records, edges[at], edges[at + 1], np.array([t]),
                                      np.zeros((1, MERCHANT.record_words), np.int64), at, tiles_of(MERCHANT, reading.tiles[0], at))
    assert not stamps[0, kernel.REFUSED]
    return values[0]
