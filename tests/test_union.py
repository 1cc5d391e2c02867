"""Filling sets while everything goes wrong that can: real Redis and our code, the world in one thread, rules left out as controls."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import redis

from feature_repo.appends import AppliedMarks, SetWriter
from feature_repo.fills import Fill, Fills, Plan
from feature_repo.kernel import REFUSED
from feature_repo.layout import floor_record
from feature_repo.marks import applied_key
from feature_repo.online import SetReader
from feature_repo.union import Pace, SetUnion, missing_records
from feature_repo.vector import VectorBuilder
from schemas.fraud import Outcome
from tests.hostile_worker import RECENT, SERVICE
from tests.union_world import FAST, NOW, PACK, HopefulUnion, RewritingUnion, World

SEEDS = range(60)


def outcome(url: str, seeds: range, **rules: Any) -> tuple[Counter[str], Counter[str]]:
    wrong: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for seed in seeds:
        world = World(url, seed, **rules)
        world.run()
        wrong += world.wrong()
        seen += world.seen
        world.close()
    return wrong, seen


@pytest.fixture(autouse=True)
def small_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_repo.union.BATCH_RECORDS", 20)


def test_whatever_happens_meanwhile_a_run_that_says_done_has_brought_in_everything(redis_url: str) -> None:
    wrong, seen = outcome(redis_url, SEEDS)
    assert not wrong
    assert min(seen["restores"], seen["crashes"]) > 20


@pytest.mark.parametrize("rules", [{"union": HopefulUnion}, {"union": RewritingUnion}, {"progress_in_store": False}],
                         ids=["without compare-and-set", "read, modify, write", "progress kept elsewhere"])
def test_each_rule_that_is_left_out_loses_records(redis_url: str, rules: dict[str, Any]) -> None:
    wrong, _ = outcome(redis_url, SEEDS, **rules)
    assert wrong["lost"] > 0


def test_copies_and_what_was_trimmed_are_not_missing() -> None:
    a, b, c = (PACK(Outcome(f"e{i}", NOW + i, "c", "t", True)) for i in range(3))
    floor, size = floor_record(RECENT, NOW + 1), len(a)
    assert missing_records([a, a, b], None, size)[1] == [a, b]
    assert missing_records([a, b, c, c], b + floor + floor_record(RECENT, NOW), size)[1] == [c]
    assert missing_records([a, b, c], c + b + a, size)[1] == []


@pytest.mark.parametrize(("pace", "records", "store_s", "pause"), [
    (Pace(2), 100, 0.25, 0.5), (Pace(2, 1000), 100, 0.05, 0.15), (Pace(1, 1000), 100, 1.0, 0.0), (Pace(4, float("inf")), 100, 0.5, 0.0)])
def test_a_pause_is_what_the_rate_leaves_or_what_the_store_took(pace: Pace, records: int, store_s: float, pause: float) -> None:
    assert pace.pause_s(records, store_s) == pytest.approx(pause)


def write(url: str, offset: int, began: tuple[int, int] | None = None, name: str = "c1") -> None:
    writer = SetWriter(url, [RECENT], [SERVICE], 1, timeout_ms=30_000)
    writer.marks.adopt(0, writer.held(0))
    event = Outcome("e", NOW, name, "t", True)
    assert writer.apply(0, offset, [[(event, NOW)]], began)
    writer.close()


def refused(url: str, name: str, at_ms: int) -> bool:
    reader = SetReader(url, 30_000, 1)
    event = Outcome("now", at_ms, name, "t", True)
    builder = VectorBuilder(SERVICE)
    stamp = builder.build([event], reader.read(builder.wanted([event]))).stamps[0][0]
    reader.close()
    return bool(stamp[REFUSED])


def test_sets_begun_where_the_log_had_lost_records_refuse_reads_that_need_them_until_they_are_made_up_for(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.flushdb()
        write(redis_url, 500, (500, NOW))
        window = RECENT.longest_window_ms + RECENT.max_skew_ms
        assert [refused(redis_url, name, NOW + after) for name in ("c1", "unheard-of") for after in (0, window - 1, window)] == [
            True, True, False] * 2
        fills = Fills(redis_url, RECENT)
        assert fills.shortages() == {0: (500, NOW)}
        fill = fills.begin(Plan(0, 1, None, None, None))
        assert not fills.finish(fill, 1, fills.shortages()), "no unit is done"
        union = SetUnion(redis_url, RECENT, fill, FAST)
        assert union.unit(0, [("c1", [])]) is not None
        assert not fills.finish(Fill("another", fill.plan), 1, fills.shortages())
        assert fills.finish(fill, 1, {0: (499, NOW)}), "of another life of the store: done, and nothing is made up for"
        assert refused(redis_url, "c1", NOW)
        fill = fills.begin(Plan(0, 1, None, None, None))
        union = SetUnion(redis_url, RECENT, fill, FAST)
        assert union.unit(0, [("c1", [])]) is not None
        assert fills.finish(fill, 1, fills.shortages())
        assert not refused(redis_url, "c1", NOW)
        assert fills.shortages() == {}
        union.close()
        fills.close()
        store.flushdb()


def test_sets_begun_with_the_log_s_first_record_refuse_nothing_and_a_later_chunk_does_not_say_otherwise(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.flushdb()
        write(redis_url, 0)
        write(redis_url, 7, (7, NOW))
        assert not refused(redis_url, "c1", NOW)
        assert store.hgetall(applied_key(RECENT)) == {b"0": b"7"}
        marks = AppliedMarks([RECENT])
        marks.adopt(0, [3])
        assert marks.commands(0, 9, (5, NOW)) == marks.commands(0, 9), "it had something before"
        store.flushdb()
