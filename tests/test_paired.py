"""Paired evidence: order changes nothing, looking on and on costs nothing, a subject counts once, and bounds hold."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.fraud import FRAUD
from feature_repo.views import HOUR_MS
from schemas.errors import FindingError
from schemas.evaluations import Evaluation, evaluation_id
from schemas.shadow import ShadowScore, shadow_id
from services.pair_book import PairBook, Told
from services.paired import ACROSS, ALPHA, BETS, BLOCK_MS, Decided, confidence, enough, first_of_subjects, losses, should_roll_back
from services.shadow_list import maturity_ms
from services.shadow_report import compare_pairs, decided, lines
from tests.shadow_simulation import NULLS, PLANTED, WAVES, Setting, by_card, rates, world

AGE_MS = maturity_ms(FRAUD)
UNTIL_MS = 100 * BLOCK_MS
flags = st.booleans()
events_ = st.builds(Decided, st.uuids().map(str), st.sampled_from("abcdefghijklmnop"), st.integers(0, 50 * HOUR_MS), flags, flags, flags)
some = st.lists(events_, max_size=60, unique_by=lambda each: each.prediction_id)


@given(some, st.floats(0.05, 0.95), st.randoms())
def test_the_answer_follows_from_the_set_of_disagreements(events: list[Decided], threshold: float, order: random.Random) -> None:
    trial = should_roll_back(events, threshold, UNTIL_MS)
    shuffled = order.sample(events, len(events))
    assert should_roll_back(shuffled, threshold, UNTIL_MS) == trial
    first: dict[str, Decided] = {}
    for each in sorted(events, key=lambda each: (each.at_ms, each.prediction_id)):
        if each.first != each.second:
            first.setdefault(each.subject, each)
    assert trial.ids == tuple(each.prediction_id for each in first.values())[:len(trial.ids)], "each subject once"
    sums: dict[int, float] = defaultdict(float)
    for name, value in zip(trial.ids, trial.values, strict=True):
        sums[next(each.at_ms for each in events if each.prediction_id == name) // BLOCK_MS] += value
    wealth = sum(math.prod(1 + math.tanh(bet * value) for value in sums.values()) for bet in BETS) / len(BETS)
    assert trial.e_value == pytest.approx(wealth)
    assert (trial.worse, trial.blocks) == (wealth >= enough(ALPHA), len(sums))
    swapped = should_roll_back([replace(each, first=each.second, second=each.first) for each in events], threshold, UNTIL_MS)
    assert not (trial.worse and swapped.worse)


@given(some, st.floats(0.05, 0.95), st.integers(0, 6))
def test_a_block_counts_once_it_is_over_and_what_comes_later_changes_nothing(events: list[Decided], threshold: float, over: int) -> None:
    early = [each for each in events if each.at_ms < over * BLOCK_MS]
    told = should_roll_back(early, threshold, over * BLOCK_MS)
    for until_ms in (over * BLOCK_MS, (over + 1) * BLOCK_MS - 1):
        assert should_roll_back(events, threshold, until_ms) == told
    assert not told.worse or should_roll_back(events, threshold, UNTIL_MS) == told


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_wave_over_many_cards_is_one_coin(waves: list[int]) -> None:
    """The mean over which side each wave falls on: 1, however many cards they hit."""
    def worth(against: Sequence[bool]) -> float:
        events = [Decided(f"{n}-{card}", f"{n}-{card}", n * BLOCK_MS, not bad, bad, False) for n, (cards, bad)
                  in enumerate(zip(waves, against, strict=True)) for card in range(cards)]
        return should_roll_back(events, 0.5, len(waves) * BLOCK_MS, alpha=1e-9).e_value

    assert np.mean([worth(sides) for sides in product((False, True), repeat=len(waves))]) == pytest.approx(1.0)
    assert worth([True] * len(waves)) <= 2 ** len(waves)


@given(st.integers(1, 60))
def test_one_wave_may_lie_across_three_blocks(cards: int) -> None:
    """It is a coin that is counted three times: worth at most ``ACROSS`` on average, which is what more is asked for."""
    def worth(bad: bool) -> float:
        events = [Decided(f"{block}-{card}", f"{block}-{card}", block * BLOCK_MS, not bad, bad, False)
                  for block in range(3) for card in range(cards)]
        return should_roll_back(events, 0.5, 3 * BLOCK_MS).e_value

    assert (worth(True) + worth(False)) / 2 <= ACROSS


def test_one_wave_is_enough_for_a_rule_that_bets_on_cards() -> None:
    wave = [Decided(f"p{n}", f"c{n}", n, True, False, True) for n in range(50)]
    assert by_card(wave, 0.5)
    assert should_roll_back(wave, 0.5, BLOCK_MS).e_value < 2


@given(flags, flags, flags, st.floats(0.01, 0.99))
def test_a_loss_is_what_the_threshold_says_a_mistake_costs(first: bool, second: bool, label: bool, threshold: float) -> None:
    found = losses(Decided("p", "s", 0, first, second, label), threshold)
    assert all(0 <= loss <= 1 for loss in found)
    assert [loss > 0 for loss in found] == [first != label, second != label]
    miss, _ = losses(Decided("p", "s", 0, False, True, True), threshold)
    false, _ = losses(Decided("p", "s", 0, True, False, False), threshold)
    assert miss * threshold == pytest.approx(false * (1 - threshold))


@given(st.lists(st.floats(-1, 1), max_size=200))
def test_bounds_hold_the_mean_mirror_and_agree_with_the_test(values: list[float]) -> None:
    told, mirrored = confidence(values), confidence([-value for value in values])
    assert -1 <= told.low <= told.mean + 1e-9
    assert told.mean - 1e-9 <= told.high <= 1
    assert (told.low, told.high) == (pytest.approx(-mirrored.high), pytest.approx(-mirrored.low))
    wealth = sum(math.prod(1 + bet * value for value in values) for bet in BETS) / len(BETS)
    if abs(wealth - 40) > 1e-6:
        assert (told.low > 0) == (wealth > 40), "as 1 / 2.5 % of evidence against 0"


def test_bounds_are_missed_at_any_of_400_looks_less_often_than_they_may_be() -> None:
    random_, missed, worlds = np.random.default_rng(3), 0, 150
    for _ in range(worlds):
        mean = random_.uniform(-0.6, 0.6)
        values = np.where(random_.random(400) < (1 + mean) / 2, 1.0, -1.0)
        missed += any(not found.low <= mean <= found.high for n in range(20, 401, 20) for found in [confidence(values[:n])])
    assert missed <= 0.05 * worlds
    assert missed > 0 or worlds < 100, "bounds that never miss would be too wide to be these"


def test_a_version_that_is_as_good_is_hardly_ever_rolled_back_and_one_that_is_worse_is() -> None:
    """The whole table: docs/shadow.md. By the naive test, which looks as often and counts each event, equal versions are rolled back."""
    for setting in (*NULLS[:4], WAVES[1], WAVES[3]):
        told = rates(setting, 100)
        assert told["rolled_back"] <= 0.04, setting  # at a rate of 1 % more than 4 of 100 come once in 270
    assert rates(NULLS[0], 100)["naive"] > 0.1, "negative control"
    assert told["by_card"] > 0.2, "negative control: who takes cards for independent takes a wave for many"
    told = rates(next(each for each in PLANTED if each.worse == 2.0), 20)
    assert told["rolled_back"] == 1.0
    assert told["days"] < 8


def pair(n: int, *, alert: bool, champion_alert: bool, swapped: bool = False, degraded: bool = False) -> ShadowScore:
    versions = ("B", "A") if swapped else ("A", "B")
    return ShadowScore(shadow_id(f"p{n}", versions[1]), f"p{n}", f"e{n}", n, f"c{n % 7}", "fraud", versions[1],
                       0.9 if alert else 0.1, 0.4, alert, versions[0], 1, 0.8 if champion_alert else 0.2, 0.4, champion_alert, degraded, n)


def told_of(n: int, revision: int, label: bool, delay_ms: int) -> Evaluation:
    return Evaluation(evaluation_id(f"p{n}", revision), f"p{n}", f"e{n}", n, f"c{n % 7}", "fraud", "A", 0.5, 0.4, True, False, label, None,
                      revision, n, n + delay_ms, n + delay_ms)


@given(st.data())
def test_pairs_and_labels_meet_in_whatever_order_they_are_read(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    pairs = [pair(i, alert=data.draw(flags), champion_alert=True, degraded=data.draw(st.integers(0, 5)) == 0) for i in range(n)]
    labels = [told_of(i, revision, data.draw(flags), data.draw(st.sampled_from([5, AGE_MS - 1, AGE_MS, AGE_MS + 1])))
              for i in range(n) for revision in range(data.draw(st.integers(0, 3)))]
    until = data.draw(st.sampled_from([0, AGE_MS, AGE_MS + n // 2, AGE_MS + 99]))
    expected = {}
    for each in pairs:
        known = [label for label in labels if label.prediction_id == each.prediction_id and label.at_ms - each.predicted_ms <= AGE_MS]
        if known and not each.degraded and each.predicted_ms + AGE_MS < until:
            expected[each.prediction_id] = max(known, key=lambda label: label.revision).label
    book = PairBook(lambda each: True, AGE_MS)
    waiting, others = list(pairs), data.draw(st.permutations([*labels, *labels]))
    while waiting or others:  # pairs come in the order of their partition, labels in any
        if waiting and (not others or data.draw(flags)):
            each = waiting.pop(0)
            book.take_pair(0, each)
            if data.draw(flags):
                book.take_pair(0, each)
        else:
            book.take_evaluation(0, others.pop())
    assert {told.pair.prediction_id: told.label for told in book.matured({0: until})} == expected
    assert list(book.matured({1: until})) == [], "of a partition of which nothing is known"
    assert (book.of_age_ms({0: until, 1: 0}), book.of_age_ms({1: until})) == (until - AGE_MS, -AGE_MS)


def test_what_is_not_wanted_is_forgotten() -> None:
    book: Any = PairBook(lambda each: each.alert != each.champion_alert, AGE_MS)
    for n in range(5):
        book.take_pair(0, pair(n, alert=n == 2, champion_alert=True))
        book.take_evaluation(0, told_of(n, 0, True, 5))
    assert [told.pair.prediction_id for told in book.pairs()] == ["p0", "p1", "p3", "p4"]
    book.take_evaluation(0, told_of(9, 0, True, 5))
    assert list(book._early) == ["p2", "p9"], "what its pair has not passed waits, that of its own millisecond too"
    book.take_pair(0, pair(10, alert=True, champion_alert=True))
    book.take_evaluation(0, told_of(8, 0, True, 5))
    assert list(book._early) == ["p2", "p9"]


def test_a_comparison_says_who_was_right_whichever_was_live() -> None:
    r = random.Random(4)
    facts = []
    for swapped in (False, True):
        found = []
        for n in range(3000):
            label, good, bad = n % 10 == 0, (n % 10 == 0) != (r.random() < 0.02), (n % 10 == 0) != (r.random() < 0.1)
            one = pair(n, alert=good if swapped else bad, champion_alert=bad if swapped else good, swapped=swapped)
            found.append(Told(replace_subject(one, n), 0, 0, label))
        facts.append(compare_pairs(found, found[:2000], "A", "B"))
        assert {decided(each, "A").first for each in found} == {True, False}
    for told in facts:
        assert (told["pairs"], told["matured"], told["loss"]["threshold"]) == (3000, 2000, 0.4)
        assert told["loss"]["difference"] > 0, "B is worse"
        assert told["loss"]["of_first_disagreements"]["low"] > 0
        assert told["precision"]["difference"]["high"] < 0
        assert 0.85 < told["agreement"]["same_decision"] < 0.95
        assert "A" in lines(told)[1]
    with pytest.raises(FindingError, match="no event was scored by both"):
        compare_pairs([], [], "A", "B")
    unripe = compare_pairs(found, [], "A", "B")
    assert unripe["loss"]["difference"] is None
    assert len(lines(unripe)) == len(lines(facts[0])) - 1


def replace_subject(one: ShadowScore, n: int) -> ShadowScore:
    import msgspec

    return msgspec.structs.replace(one, subject=f"c{n}")


def test_a_world_is_what_its_setting_says() -> None:
    found = world(Setting("equal"), 0)
    assert len(first_of_subjects(found)) < len(found), "cards disagree more than once"
    assert all(each.first != each.second for each in found)
