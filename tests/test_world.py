"""The simulated world: the same for the same seed, whole whatever way it is asked for, and right by the contract."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from schemas.fraud import TRANSACTION
from services.world import CARD_DAYS, TERMINAL_DAYS, World

DAYS = 60
DAY_MS = 86_400_000
START_MS = 1_700_006_400_000


@pytest.fixture(scope="module")
def days() -> list[pa.RecordBatch]:
    return list(World(seed=7, start_ms=START_MS).days(DAYS))


@pytest.fixture(scope="module")
def table(days: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(days)


def test_the_same_seed_gives_the_same_world_and_another_seed_another_one(days: list[pa.RecordBatch]) -> None:
    assert World(seed=7, start_ms=START_MS).day(5).equals(days[5])
    other = World(seed=8, start_ms=START_MS).day(5)
    assert not set(other["event_id"].to_pylist()) & set(days[5]["event_id"].to_pylist())
    assert other["amount_minor"].to_pylist()[:50] != days[5]["amount_minor"].to_pylist()[:50]


def test_a_day_is_the_same_whichever_days_are_drawn_before_it(days: list[pa.RecordBatch]) -> None:
    world = World(seed=7, start_ms=START_MS)
    backwards = {number: world.day(number) for number in (40, 17, 3)}
    assert all(batch.equals(days[number]) for number, batch in backwards.items())
    assert [batch.equals(days[number]) for number, batch in enumerate(world.days(3, first=10), 10)] == [True] * 3


def test_every_record_is_one_that_the_contract_takes(days: list[pa.RecordBatch]) -> None:
    fields = ("event_id", "event_time", "card_id", "terminal_id", "amount_minor")
    encode = msgspec.json.Encoder().encode
    events = [TRANSACTION.decode(encode(row)) for day in days for row in day.select(fields).to_pylist()]
    assert min(event.amount_minor for event in events) > 0
    assert len({event.event_id for event in events}) == len(events)


def test_days_hold_their_own_events_in_order_of_time(days: list[pa.RecordBatch]) -> None:
    for number, day in enumerate(days):
        times = np.asarray(day["event_time"])
        assert (np.diff(times) >= 0).all()
        assert times[0] >= START_MS + number * DAY_MS
        assert times[-1] < START_MS + (number + 1) * DAY_MS


@pytest.mark.parametrize("seed", [0, 1, 7, 42])
def test_about_one_in_a_hundred_is_fraud_of_all_three_kinds(seed: int) -> None:
    world = pa.Table.from_batches(World(seed).days(30))
    pattern, fraud = np.asarray(world["pattern"]), np.asarray(world["fraud"])
    assert ((pattern != "") == fraud).all()
    assert 0.006 < fraud.mean() < 0.015
    assert all((pattern == kind).mean() > 0.0005 for kind in ("large", "terminal", "card"))
    assert 4_500 * 30 < world.num_rows < 5_500 * 30


def test_terminals_are_compromised_for_28_days_and_cards_for_14() -> None:
    world = World(seed=3)
    for compromised, duration in ((world.compromised_terminals, TERMINAL_DAYS), (world.compromised_cards, CARD_DAYS)):
        runs = lengths({number: compromised(number) for number in range(-1, 120)})
        assert len(runs) > 10
        # One that is taken again while it is compromised stays so for longer; no other length may be.
        assert sum(run == duration for run in runs) >= 0.9 * len(runs)
        assert min(runs) == duration
    assert (TERMINAL_DAYS, CARD_DAYS) == (28, 14)


def test_a_compromised_terminal_commits_nothing_but_fraud_and_no_other_terminal_that_kind(table: pa.Table) -> None:
    world = World(seed=7, start_ms=START_MS)
    day = (np.asarray(table["event_time"]) - START_MS) // DAY_MS
    terminal = np.array([int(name[-6:]) for name in table["terminal_id"].to_pylist()])
    pattern, fraud = np.asarray(table["pattern"]), np.asarray(table["fraud"])
    for number in range(0, DAYS, 7):
        there = np.isin(terminal, world.compromised_terminals(number)) & (day == number)
        assert fraud[there].all()
        assert set(pattern[there]) <= {"terminal", "large"}
        assert not (pattern[(day == number) & ~there] == "terminal").any()


def test_a_thief_uses_some_of_a_cards_transactions_and_spends_five_times_as_much(table: pa.Table) -> None:
    world = World(seed=7, start_ms=START_MS)
    number = (np.asarray(table["event_time"]) - START_MS) // DAY_MS
    card = np.array([int(name[-6:]) for name in table["card_id"].to_pylist()])
    taken = np.zeros(table.num_rows, dtype=bool)
    for day in range(DAYS):
        taken |= (number == day) & np.isin(card, world.compromised_cards(day))
    pattern, amount = np.asarray(table["pattern"]), np.asarray(table["amount_minor"])
    stolen = pattern == "card"
    assert (taken | ~stolen).all()
    assert 0.25 < stolen[taken].mean() < 0.42
    honest = {c: amount[(card == c) & (pattern == "")].mean() for c in np.unique(card[stolen])}
    factor = np.mean(amount[stolen] / [honest[c] for c in card[stolen]])
    assert 4.5 < factor < 5.5


def test_a_card_pays_at_the_terminals_around_its_home(table: pa.Table) -> None:
    used = defaultdict(set)
    for card, terminal in zip(table["card_id"].to_pylist(), table["terminal_id"].to_pylist(), strict=True):
        used[card].add(terminal)
    counts = np.array([len(terminals) for terminals in used.values()])
    assert counts.max() < 60
    assert 6 < counts.mean() < 15


def lengths(members: dict[int, np.ndarray]) -> list[int]:
    """How many days each stay lasted, of those that began and ended within the days given."""
    first, last = min(members), max(members)
    days_of = defaultdict(list)
    for number, those in members.items():
        for one in those.tolist():
            days_of[one].append(number)
    runs = []
    for numbers in days_of.values():
        pieces = np.split(np.array(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1)
        runs += [len(piece) for piece in pieces if piece[0] > first and piece[-1] < last]
    return runs
