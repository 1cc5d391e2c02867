"""Compaction on a real Redis: no fault changes a value, each rule left out does, and a killed compactor leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis
from confluent_kafka import Producer
from pydantic import SecretStr

from feature_repo import kernel
from feature_repo.appends import LONG_RECORDS, SetWriter
from feature_repo.bounds import MOST_RAW, check_size, raw_records
from feature_repo.compaction import EntityCompactor
from feature_repo.fraud import SERVICE
from feature_repo.layout import entity_key, join_sets, tiles_key
from feature_repo.marks import NOTHING, hot_key
from feature_repo.online import SetReader
from feature_repo.removal import remove_sets
from feature_repo.tiles import events_in, tiles_of
from feature_repo.views import Column, Feature, FeatureService, FeatureView
from schemas.envelope import clock
from schemas.errors import DefinitionError
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from services.cli import main
from services.compactor import Compactor
from services.ledger import end_offsets, read_topic
from services.runtime.endpoints import Endpoints
from tests.deadline import eventually
from tests.tiled_store import Rules, TiledStore

BUSY = FeatureView("busy", "card_id", TRANSACTIONS, (Column("amount_minor", scale=100),),
                   (Feature("n", "count", 600_000, hop_ms=1_000), Feature("s", "std", 3_600_000, "amount_minor", hop_ms=60_000)),
                   allowed_lateness_ms=200, max_skew_ms=0, peak_per_s=1_000)
READER = FeatureService("busy-reader", TRANSACTIONS, (BUSY,))
BASE_MS = 1_700_000_000_000
ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as store:
        store.flushdb()
        yield store
        store.flushdb()


def payment(number: int, time_ms: int) -> Any:
    return SimpleNamespace(event_id=f"e{number}", card_id="c", event_time=time_ms, amount_minor=number % 997)


def written(url: str, n: int, first: int = 0) -> int:
    """``n`` payments, a millisecond apart, applied to partition 0; returns when the last one arrived."""
    writer = SetWriter(url, [BUSY], [READER], 1, timeout_ms=30_000)
    writer.marks.adopt(0, writer.held(0))
    for start in range(first, first + n, 500):
        batch = [(payment(i, BASE_MS + i), BASE_MS + i) for i in range(start, min(start + 500, first + n))]
        assert writer.apply(0, batch[-1][1] - BASE_MS, [batch], arrival_ms=batch[-1][1])
    writer.close()
    return BASE_MS + first + n - 1


def features(url: str, t: int) -> tuple[list[float], list[int]]:
    reader = SetReader(url, 30_000, 1)
    reading = reader.read([(BUSY, ["c"])])
    reader.close()
    records, edges = join_sets(BUSY, reading.sets[0].values())
    at = np.zeros(1, np.int64)
    values, stamps = kernel.read_sets(BUSY, records, edges[at], edges[at + 1], np.array([t]), np.zeros((1, 3), np.int64), at,
                                      tiles_of(BUSY, reading.tiles[0], at))
    return values[0].tolist(), stamps[0].tolist()


def test_no_fault_on_the_way_changes_a_value_or_a_fingerprint(redis_url: str) -> None:
    seen: Counter[str] = Counter()
    for seed in (*range(30), 382):
        world = TiledStore(redis_url, seed)
        assert not +world.run(), seed
        seen += world.seen
    assert min(seen[what] for what in ("reads", "tiled", "compactions", "script refused", "restores")) > 20, seen


@pytest.mark.parametrize("left_out", [field.name for field in dataclasses.fields(Rules)])
def test_a_rule_left_out_shows(redis_url: str, left_out: str) -> None:
    assert any(+TiledStore(redis_url, seed, Rules(**{left_out: False})).run() for seed in range(60))


def test_a_compactor_killed_between_its_look_and_its_script_changes_nothing(redis_url: str, store: redis.Redis) -> None:
    now_ms = written(redis_url, 3_000)
    before = features(redis_url, now_ms)
    program = ("import sys; from feature_repo.compaction import EntityCompactor; from tests.test_compaction import BUSY\n"
               f"compactor = EntityCompactor({redis_url!r}, BUSY); seen = compactor.look('c', {now_ms}, {now_ms - 200}, 1)\n"
               "print(len(compactor.fold(seen)[1]), flush=True); sys.stdin.read(); compactor.compact(seen)")
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert int(child.stdout.readline()) > 0, "it had something to fold"
    child.kill()
    child.wait()
    assert (features(redis_url, now_ms), store.exists(tiles_key(BUSY, "c"))) == (before, 0)

    other = EntityCompactor(redis_url, BUSY)
    seen = other.look("c", now_ms, now_ms - 200, 1)
    assert seen is not None
    late = other.look("c", now_ms, now_ms - 200, 1)
    later_ms = written(redis_url, 700, first=3_000)
    expected = features(redis_url, later_ms)
    assert other.compact(seen).done
    assert store.strlen(entity_key(BUSY, "c")) == 24 * (201 + 700), "what was appended meanwhile stays"
    assert features(redis_url, later_ms) == expected
    assert late is not None
    assert not other.compact(late).done, "somebody else was there first"
    assert features(redis_url, later_ms) == expected
    other.close()


def test_the_worker_names_the_entities_that_have_grown_long(redis_url: str, store: redis.Redis) -> None:
    written(redis_url, LONG_RECORDS)
    assert store.smembers(hot_key(BUSY)) == set()
    written(redis_url, 1_000, first=LONG_RECORDS)  # it is said with the next chunk
    assert store.smembers(hot_key(BUSY)) == {b"c"}


def test_memory_is_that_of_tiles_and_of_what_is_still_open(redis_url: str, store: redis.Redis) -> None:
    compactor = EntityCompactor(redis_url, BUSY)
    sizes, now_ms = [], 0
    for first in range(0, 60_000, 5_000):
        now_ms = written(redis_url, 5_000, first)
        seen = compactor.look("c", now_ms, now_ms - 200, 1)
        assert seen is not None
        assert compactor.compact(seen).done
        sizes.append(store.strlen(entity_key(BUSY, "c")) + store.strlen(tiles_key(BUSY, "c")))
    assert events_in(BUSY, *store.mget(entity_key(BUSY, "c"), tiles_key(BUSY, "c"))) == 60_000
    assert max(sizes) < 24 * 60_000 / 50
    assert features(redis_url, now_ms)[0][0] == 60_000.0
    compactor.close()


def test_an_entity_that_is_erased_leaves_no_tiles_and_nobody_brings_them_back(redis_url: str, store: redis.Redis) -> None:
    now_ms = written(redis_url, LONG_RECORDS + 500)
    written(redis_url, 1_000, first=LONG_RECORDS + 500)  # the worker says with the second chunk that the set is long
    compactor = EntityCompactor(redis_url, BUSY)
    seen = compactor.look("c", now_ms, now_ms - 200, 1)
    assert seen is not None
    assert compactor.compact(seen).done
    held, later = store.exists(entity_key(BUSY, "c"), tiles_key(BUSY, "c")), compactor.look("c", now_ms + 300, now_ms + 100, 1)
    assert (held, store.smembers(hot_key(BUSY))) == (2, {b"c"}), "the control"
    assert remove_sets(redis_url, [BUSY], "c", dry_run=True) == {BUSY.versioned_name: LONG_RECORDS + 1_500}
    assert store.exists(entity_key(BUSY, "c"), tiles_key(BUSY, "c")) == 2
    assert remove_sets(redis_url, [BUSY], "c") == {BUSY.versioned_name: LONG_RECORDS + 1_500}
    assert later is not None
    assert not compactor.compact(later).done
    assert store.exists(entity_key(BUSY, "c"), tiles_key(BUSY, "c"), hot_key(BUSY)) == 0
    assert remove_sets(redis_url, [BUSY], "c") == {BUSY.versioned_name: 0}
    compactor.close()


def test_nothing_is_folded_before_every_partition_has_passed_it(engines: Endpoints, store: redis.Redis, tmp_path: Path) -> None:
    """Real log, real role; the worker and the scorer are the few lines of ``work``, idle partitions are told the time by ``folded``."""
    settings = Settings(home=tmp_path, kafka=engines.kafka, redis=SecretStr(engines.redis))
    start = {p: high for p, (_, high) in end_offsets(engines.kafka, TRANSACTIONS).items()}
    writer = SetWriter(engines.redis, [BUSY], [READER], len(start), timeout_ms=30_000)
    reader = SetReader(engines.redis, 30_000, len(start))
    for p in start:
        writer.marks.adopt(p, [NOTHING])

    def work() -> None:
        """Applies and scores what came."""
        for message in read_topic(engines.kafka, TRANSACTIONS):
            p, offset, arrival = message.partition(), message.offset(), message.timestamp()[1]
            if offset >= start[p]:
                event = None if clock(message.headers()) else SimpleNamespace(**json.loads(message.value()))
                assert writer.apply(p, offset, [[(event, arrival)] if event else []], arrival_ms=arrival)
                reader.publish_scored(READER.name, {p: (offset, arrival)})

    compactor = Compactor(settings, [BUSY], [READER])
    producer = Producer({"bootstrap.servers": engines.kafka, "acks": "all"})
    for i in range(LONG_RECORDS + 200):
        producer.produce(TRANSACTIONS, json.dumps(payment(i, time.time_ns() // 1_000_000).__dict__), partition=0)
    producer.flush()
    work()
    assert [done.b_ms for done in compactor.round()] == [None], "three partitions have no mark"

    def folded() -> bool:
        producer.produce(TRANSACTIONS, json.dumps(payment(1, BASE_MS).__dict__), partition=0)  # the broker's clock goes on
        producer.flush()
        for p in range(1, len(start)):
            producer.produce(TRANSACTIONS, b"", partition=p, headers=[("ce_type", b"headrace.clock.v1")])
        producer.flush()
        work()
        compactor.round()
        return bool(store.strlen(entity_key(BUSY, "c")) < 24 * LONG_RECORDS)  # a first fold may have been in the middle of them

    t = time.time_ns() // 1_000_000 + 5_000
    before = features(engines.redis, t)
    eventually(folded)
    assert features(engines.redis, t)[0] == before[0]
    for each in (compactor, writer, reader):
        each.close()


def test_the_command_says_that_there_is_nothing_to_compact(engines: Endpoints, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA", engines.kafka)
    monkeypatch.setenv("HEADRACE_REDIS", engines.redis)
    assert main(["compact", "--once"]) == 0
    assert capsys.readouterr().out == "no view declares a hop: nothing to compact\n"
    assert main(["compact", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dry_run": True, "views": []}


def test_a_view_that_would_hold_too_many_records_is_refused() -> None:
    assert check_size(BUSY, READER.scored_lateness_ms, lag_ms=5_000) == pytest.approx(5.2 * 1000, rel=0.01)
    with pytest.raises(DefinitionError, match="would hold 60,201 raw records"):
        check_size(BUSY, READER.scored_lateness_ms, lag_ms=60_000)
    skewed = dataclasses.replace(BUSY, max_skew_ms=60_000)
    assert raw_records(skewed, 200, 0) > MOST_RAW
    assert [raw_records(view, SERVICE.scored_lateness_ms, 60_000) for view in SERVICE.views] == [0.0] * 3, "no peak is declared"
