"""Pairs in Redis: what is kept of a record comes back as it was, memory stays within its budget, and the tables are told what went."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from feature_repo.join_marks import JoinMarks
from feature_repo.models import Outcomes
from feature_repo.pair_bytes import pack_label, pack_release, pack_scored, release_of, unpack_labels, unpack_release, unpack_scored
from feature_repo.pairs import LAST_MS, Label, Scored, evaluations, joined_models
from feature_repo.pending import Pending, read_layout
from feature_repo.removal import remove_pairs
from feature_repo.use_cases import USE_CASES
from feature_repo.views import DAY_MS
from schemas.errors import DefinitionError
from tests.join_oracle import expected
from tests.join_world import JoinWorld

TOPIC, READ = "outcomes", "predictions"
START = 600 * DAY_MS
BUDGET = 2 << 20

times = st.integers(0, LAST_MS)
labels = st.builds(Label, st.integers(0, 1_000_000), st.booleans(), times)
floats = st.none() | st.floats(allow_nan=False, allow_infinity=False)
scores = st.builds(Scored, st.text(), st.none() | st.text(), floats, floats, st.none() | st.booleans(), st.booleans(), times,
                   st.integers(0, 1023), st.text(min_size=1, max_size=128))


@given(st.lists(labels, max_size=5), times)
def test_labels_come_back_as_they_were(told: list[Label], event_time: int) -> None:
    assert unpack_labels(b"".join(pack_label(label, event_time) for label in told), event_time) == told


@given(scores)
@example(Scored("m", None, None, -0.0, None, False, 0, 0, "c"))
def test_a_prediction_comes_back_as_it_was(scored: Scored) -> None:
    release, value = pack_release((scored.model, scored.model_version, scored.threshold))
    packed = pack_scored(scored, release)
    assert release_of(packed) == release
    back = unpack_scored(packed, unpack_release(value))
    assert repr(back) == repr(scored), "-0.0 is not 0.0"


@given(scores, st.lists(labels, max_size=5))
def test_labels_taken_back_and_added_leave_the_last_one(scored: Scored, told: list[Label]) -> None:
    """What a reader does with ``previous``."""
    count = {True: 0, False: 0}
    for one in evaluations("e", 5, scored, told):
        if one.previous is not None:
            count[one.previous] -= 1
        count[one.label] += 1
        assert one.at_ms == max(one.predicted_ms, one.outcome_ms)
    assert sum(count.values()) == bool(told)
    assert not told or count[told[-1].label] == 1


def test_models_whose_labels_are_absences_take_no_part() -> None:
    specs = [spec for case in USE_CASES for spec in case.models]
    assert {told.topic: [spec.name for spec in specs] for told, specs in joined_models(specs).items()} == {"outcomes": ["fraud"]}
    other = dataclasses.replace(specs[0], name="x", labels=Outcomes("outcomes", "chargeback"))
    with pytest.raises(DefinitionError, match="different fields"):
        joined_models([specs[0], other])


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url.rsplit("/", 1)[0] + "/7") as store:
        store.flushdb()
        yield store
        store.flushdb()


def pending(store: redis.Redis, budget_bytes: int = BUDGET) -> Pending:
    at = store.connection_pool.connection_kwargs
    marks = JoinMarks(READ)
    pairs = Pending(f"redis://{at['host']}:{at['port']}/7", TOPIC, marks, ["fraud"], {READ: 1}, 60 * DAY_MS, budget_bytes,
                    timeout_ms=30_000)
    marks.adopt(0, pairs.held(0))
    assert pairs.confirm(0)
    return pairs


def write(pairs: Pending, first: int, number: int, step_ms: int) -> None:
    rows = []
    for i in range(first, first + number):
        at_ms = START + i * step_ms
        rows.append((f"t{i}", at_ms, Scored("fraud", "1", 0.5, i / 7, False, False, at_ms, 0, f"card{i % 500}")))
    assert pairs.predicted(0, first + number, rows) == [[]] * number
    assert pairs.finish(0, first + number, START + (first + number) * step_ms, {})


def held_bytes(store: redis.Redis) -> int:
    return sum(store.memory_usage(key) for key in store.scan_iter(f"pairs:{TOPIC}:[0-9]*", count=1000))


@pytest.mark.parametrize("step_ms", [1, 200, 60_000, 3_600_000])
def test_memory_stays_within_its_budget_at_any_rate_and_the_oldest_go_first(store: redis.Redis, step_ms: int) -> None:
    pairs, most = pending(store), 0
    for first in range(0, 80_000, 4_000):
        write(pairs, first, 4_000, step_ms)
        told = pairs.keep_within()
        most = max(most, held_bytes(store))
        assert abs(told - held_bytes(store)) <= 0.1 * BUDGET
    assert most <= 1.1 * BUDGET
    layout = read_layout(pairs._wire, TOPIC)
    assert layout is not None
    newest = START + 80_000 * step_ms
    if step_ms < 3_600_000:
        assert 0 < layout.floor_ms <= newest + layout.slice_ms, "something had to go"
    else:
        assert layout.floor_ms == 0, "what the horizon drops is not counted as what did not fit"
    slices = sorted(map(int, store.smembers(f"pairs:{TOPIC}:slices")))
    assert all((number + 1) * layout.slice_ms > max(layout.floor_ms, newest - 60 * DAY_MS) for number in slices)
    assert {key.split(b":")[2] for key in store.scan_iter(f"pairs:{TOPIC}:[0-9]*", count=1000)} <= {b"%d" % number for number in slices}
    # Negative control: without looking after it, it grows.
    if step_ms == 200:
        for first in range(80_000, 120_000, 4_000):
            write(pairs, first, 4_000, step_ms)
        assert held_bytes(store) > 1.5 * BUDGET


def test_a_pending_prediction_costs_as_little_as_it_is_said_to(store: redis.Redis) -> None:
    pairs = pending(store, 256 << 20)
    for first in range(0, 200_000, 4_000):
        write(pairs, first, 4_000, 60 * DAY_MS // 5_000_000)
    kinds = {store.object("encoding", key) for key in list(store.scan_iter(f"pairs:{TOPIC}:[0-9]*", count=1000))[:50]}
    assert kinds <= {b"ziplist", b"listpack"}
    assert held_bytes(store) / 200_000 < 50


def test_an_entitys_events_are_taken_out_of_the_pairs_and_no_others(store: redis.Redis) -> None:
    pairs = pending(store)
    write(pairs, 0, 1_000, 60_000)
    url = f"redis://{store.connection_pool.connection_kwargs['host']}:{store.connection_pool.connection_kwargs['port']}/7"
    mine = [(f"t{i}", START + i * 60_000) for i in range(7, 1_000, 500)]
    answers = pairs.told(0, 2_000, [(*event, Label(0, True, event[1])) for event in mine])
    assert answers is not None
    assert [[scored.subject for scored in told.scored] for told in answers] == [["card7"], ["card7"]]
    assert [remove_pairs(url, TOPIC, ["fraud"], mine, dry_run=dry) for dry in (True, False, False)] == [4, 4, 0]
    values = [value for key in store.scan_iter(f"pairs:{TOPIC}:[0-9]*") for value in store.hvals(key)]
    assert len(values) == 998
    assert not any(value.endswith(b"card7") for value in values)


def test_what_is_not_published_under_a_small_budget_is_what_the_floor_says(redis_url: str) -> None:
    missed = 0
    for seed in range(12):
        world = JoinWorld(redis_url.rsplit("/", 1)[0] + "/8", seed, records=500, budget_bytes=2_500).run()
        within, every = expected(world.log), expected(world.log, 2**62)
        floor_ms = int(world.store.hget("pairs:outcomes", "floor_ms") or 0)
        found = [(partition, json.loads(value)) for partition, _, value in world.published]
        assert all(every[record["evaluation_id"]] == (partition, record) for partition, record in found), seed
        lost = within.keys() - {record["evaluation_id"] for _, record in found}
        assert all(within[name][1]["event_time"] < floor_ms for name in lost), seed
        missed += len(lost)
    assert missed > 50, "the budget was no bound"
