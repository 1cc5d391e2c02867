"""Policy and governor: what earns a retrain, and invariants over random histories.

Over 300 lines: the invariants and the examples are of one machine and share its drawn histories.
"""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import DefinitionError
from streams import governor, policy
from streams.detectors.losses import LossBatch, LossDetector, LossReference
from streams.governor import DAY_MS, WEEK_MS, Ask, Beat, Claim, Event, Governor, Input, Result, Rules, Tick, govern
from streams.policy import Decision, History, Signal, Window, decide

RULES = Rules()
BUSY = frozenset({"requested"})
CLOSED = frozenset({"promoted", "rejected", "inconclusive", "failed"})


def signal(family: Any, alarm: bool = True, name: str = "", strength: float | None = None, judged: bool = True) -> Signal:
    return Signal(name or family, family, alarm, (2.0 if alarm else 0.1) if strength is None else strength, judged)


def judged(*windows: list[Signal]) -> list[Decision]:
    history, found = History(), []
    for i, signals in enumerate(windows):
        history, decision = decide(history, Window(i, tuple(signals)))
        history = msgspec.json.decode(msgspec.json.encode(history), type=History)
        found.append(decision)
    return found


def test_one_alarm_warns_and_two_of_three_windows_with_loss_ask() -> None:
    found = judged([signal("concept")], [signal("concept", False)], [signal("concept")], [signal("concept")])
    assert [(d.level, d.request) for d in found] == [("WARNING", False), ("WARNING", False), ("DRIFT", True), ("DRIFT", True)]
    assert {d.episode for d in found} == {"drift:0"}


def test_data_drift_alone_is_never_a_reason_and_with_the_predictions_it_is() -> None:
    alone = judged(*[[signal("data")]] * 5)
    assert alone[-1].level == "DRIFT"
    assert not any(d.request for d in alone)
    assert alone[-1].reason.startswith("no measured loss")
    both = judged(*[[signal("data"), signal("prediction")]] * 2)
    assert [d.request for d in both] == [False, True]


def test_loss_confirmed_by_a_second_family_asks_at_once() -> None:
    assert [d.request for d in judged([signal("concept"), signal("data")])] == [True]


def test_a_feed_fault_blocks_says_pipeline_and_confirms_nothing() -> None:
    faulty = [signal("feed", name="null-share"), signal("concept"), signal("data")]
    found = judged(*[faulty] * 4, [signal("concept")])
    assert {d.reason for d in found[:4]} == {"pipeline: null-share"}
    assert [(d.level, d.request) for d in found] == [("OK", False)] * 4 + [("WARNING", False)]
    without = judged(*[faulty[1:]] * 4)
    assert any(d.request for d in without), "control: the same alarms without the fault do ask"


def test_the_way_back_takes_three_calm_windows_and_near_misses_are_not_calm() -> None:
    drift, calm, near = [signal("concept")], [signal("concept", False)], [signal("concept", False, strength=0.8)]
    found = judged(drift, drift, calm, calm, near, calm, calm, calm, drift)
    assert [d.level for d in found] == ["WARNING", *["DRIFT"] * 6, "OK", "WARNING"]
    assert found[-1].episode == "drift:8" != found[0].episode


def test_windows_without_data_neither_confirm_nor_calm() -> None:
    nothing = [signal("concept", False, judged=False)]
    found = judged([signal("concept")], nothing, nothing, nothing, nothing, [signal("concept")])
    assert [d.reason for d in found[1:5]] == ["insufficient data"] * 4
    assert found[-1].request


def test_a_window_is_judged_once() -> None:
    history, _ = decide(History(), Window(5, (signal("concept"),)))
    with pytest.raises(DefinitionError, match="ends at 5 ms"):
        decide(history, Window(5, (signal("concept"),)))


SIGNALS = st.lists(st.builds(signal, st.sampled_from(["feed", "data", "prediction", "concept", "performance"]), st.booleans(),
                             judged=st.booleans()), max_size=5)


@given(st.lists(SIGNALS, max_size=25))
@settings(max_examples=200, deadline=None)
def test_a_request_has_loss_or_two_families_behind_it_and_never_a_feed_fault(windows: list[list[Signal]]) -> None:
    for i, decision in enumerate(found := judged(*windows)):
        if decision.request:
            recent = [s for signals in windows[: i + 1] for s in signals if s.alarm and s.judged and s.family != "feed"]
            families = {s.family for s in recent}
            assert families & {"concept", "performance"} or len(families) > 1
            assert not any(s.alarm and s.family == "feed" for s in windows[i])
            assert decision.level == "DRIFT"
            assert decision.episode is not None
    assert len(found) == len(windows)


def ask(offset: int, at_ms: int, episode: str = "drift:1", champion: str = "7", matured: int = 0, source: str = "asks") -> Ask:
    return Ask(source, offset, at_ms, matured, "fraud", champion, "v12", episode, "loss rose", (("evaluations/0", 99),))


def run(inputs: list[Input], rules: Rules = RULES, state: Governor | None = None) -> tuple[Governor, list[Event]]:
    state, events = state or Governor(), []
    for one in inputs:
        state, said = govern(state, one, rules)
        state = msgspec.json.decode(msgspec.json.encode(state), type=Governor)
        events += said
    return state, events


def test_ten_alarms_about_one_change_are_one_retrain() -> None:
    _, events = run([ask(i, i) for i in range(10)])
    assert [e.what for e in events] == ["requested", *["declined"] * 9]
    assert len({e.retrain for e in events}) == 1
    assert events[0].pins == (("evaluations/0", 99),)
    assert events[1].reason == "this cause has had its retrain"


def test_a_whole_retrain_and_its_cool_down_by_time_and_labels() -> None:
    state, events = run([ask(0, 0), Claim("runs", 0, 1, 0, "r1")])
    name, lease = state.retrain, state.lease
    state, more = run([Beat("runs", 1, 2, 0, name, lease, True), Result("runs", 2, 3, 50, name, lease, "promoted"),
                       Tick("ticks", 0, 3 + 2 * DAY_MS, 1_049), ask(1, 3 + 2 * DAY_MS, "drift:2", "8", 1_049),
                       Tick("ticks", 1, 3 + 2 * DAY_MS, 1_050), ask(2, 3 + 2 * DAY_MS, "drift:2", "8", 1_050)], state=state)
    assert [e.what for e in events + more] == ["requested", "started", "evaluating", "promoted", "declined", "cooled-down", "requested"]
    assert more[2].reason == "cooling down for 1 more labels"


def test_each_rejected_candidate_doubles_the_cool_down_and_from_the_second_a_person_is_asked() -> None:
    rules = Rules(labels=0, per_week=9)
    state, now, waits, events = Governor(), 0, [], []
    for i in range(4):
        state, said = run([ask(3 * i, now, f"calendar:{i}"), Claim("asks", 3 * i + 1, now, 0, "r")], rules, state)
        state, more = run([Result("asks", 3 * i + 2, now, 0, state.retrain, state.lease, "failed" if i == 3 else "rejected")], rules, state)
        events += said + more
        ended = now
        while state.phase == "COOLDOWN":
            now += DAY_MS
            state, _ = govern(state, Tick("ticks", now, now, 0), rules)
        waits.append((now - ended) // DAY_MS)
    assert waits == [4, 8, 16, 16]
    assert [e.what for e in events if e.what == "person-asked"] == ["person-asked"] * 3


def test_a_dead_runner_s_retrain_is_taken_over_and_its_late_answer_is_ignored() -> None:
    state, _ = run([ask(0, 0), Claim("runs", 0, 0, 0, "r1")])
    name = state.retrain
    state, events = run([Tick("ticks", 0, RULES.lease_ms, 0), Claim("runs", 1, RULES.lease_ms, 0, "r2"),
                         Result("runs", 2, RULES.lease_ms + 1, 0, name, 1, "promoted")], state=state)
    assert [e.what for e in events] == ["lease-expired", "started", "ignored"]
    assert state.phase == "RUNNING"
    state, events = run([Tick("ticks", i, i * 3 * RULES.lease_ms, 0) if i % 2 else Claim("runs", i + 3, i * 3 * RULES.lease_ms, 0, "r")
                         for i in range(1, 7)], state=state)
    assert "failed" in [e.what for e in events], "three attempts died"


def test_the_third_in_a_week_waits_for_the_week() -> None:
    rules, state, said = Rules(cooldown_ms=0, labels=0), Governor(), []
    for i, day in enumerate((0, 1, 2, 6, 7)):
        state, asked = run([ask(3 * i, day * DAY_MS, f"drift:{i}"), Claim("asks", 3 * i + 1, day * DAY_MS, 0, "r")], rules, state)
        state, _ = run([Result("asks", 3 * i + 2, day * DAY_MS, 0, state.retrain, state.lease, "promoted")], rules, state)
        said += [(day, e.what) for e in asked if e.what in ("requested", "declined")]
    assert said == [(0, "requested"), (1, "requested"), (2, "declined"), (6, "declined"), (7, "requested")]


QUICK = Rules(cooldown_ms=DAY_MS // 8, labels=100)
TIMES = st.integers(0, 60).map(lambda days: days * DAY_MS // 2)
KINDS = st.tuples(st.sampled_from(["ask", "ask", "claim", "beat", *sorted(CLOSED), "inconclusive", "tick"]), TIMES, st.integers(0, 5),
                  st.integers(0, 3), st.integers(0, 3), st.booleans())


@st.composite
def inputs(draw: Any) -> list[Input]:
    """A log whose time mostly grows; runners speak of the retrain in flight, or of another."""
    state, found, now, matured = Governor(), [], 0, 0
    for offset, (kind, far, episode, labels, lease, right) in enumerate(draw(st.lists(KINDS, max_size=40))):
        at = now + far // 20
        now, matured = at if right else now, matured + 500 * labels
        name, held = (state.retrain, state.lease) if right else ("another", lease)
        head = ("log", offset, at, matured)
        one: Input = {
            "ask": lambda h=head, e=episode, c=lease: Ask(*h, "fraud", "7", "v1", f"drift:{e}", "why", (), h[3] // c if c else None),
            "claim": lambda h=head: Claim(*h, "r"), "tick": lambda h=head: Tick(*h),
            "beat": lambda h=head, n=name, k=held, x=right: Beat(*h, n, k, x),
            **{each: lambda h=head, n=name, k=held, o=each: Result(*h, n, k, o) for each in CLOSED},
        }[kind]()
        found.append(one)
        state, _ = govern(state, one, QUICK)
    return found


@given(inputs())
@settings(max_examples=300, deadline=None)
def test_at_most_one_is_in_flight_and_the_week_has_its_budget(log: list[Input]) -> None:
    _, events = run(log, QUICK)
    flying: set[str] = set()
    for event in events:
        if event.what in BUSY:
            assert not flying
            flying.add(event.retrain)
        elif event.what in CLOSED:
            flying.remove(event.retrain)
        elif event.what in ("started", "evaluating", "lease-expired"):
            assert flying == {event.retrain}
    asked = [event.at_ms for event in events if event.what == "requested"]
    assert all(sum(a <= ms < a + WEEK_MS for ms in asked) <= QUICK.per_week for a in asked)
    assert len({event.retrain for event in events if event.what == "requested"}) == len(asked)
    assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)
    leases = [event.lease for event in events if event.what == "started"]
    assert leases == list(range(1, len(leases) + 1))


@given(inputs())
@settings(max_examples=200, deadline=None)
def test_every_request_gets_exactly_one_decision_with_a_reason(log: list[Input]) -> None:
    _, events = run(log, QUICK)
    for one in log:
        decisions = [e for e in events if e.offset == one.offset and e.what in ("requested", "declined")]
        assert len(decisions) == isinstance(one, Ask)
        assert all(e.reason for e in decisions)


@given(inputs(), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_a_replayed_prefix_changes_nothing(log: list[Input], crash: int, checkpoint: int) -> None:
    """Killed after input ``crash`` with the state of an earlier checkpoint: the events published twice are the same events."""
    whole, events = run(log, QUICK)
    assert run([*log, *log[:crash]], QUICK) == (whole, events)
    early, first = run(log[:min(checkpoint, crash)], QUICK)
    _, second = run(log[min(checkpoint, crash):crash], QUICK, early)
    again, rest = run(log, QUICK, early)
    assert again == whole
    assert first + rest == events
    assert rest[: len(second)] == second


def test_one_change_in_a_stream_is_one_retrain_however_often_it_is_replayed() -> None:
    random, per = np.random.default_rng(5), 500
    losses = (random.random(40 * per) < np.where(np.arange(40 * per) < 20 * per, 0.05, 0.15)) * 1.0
    detector = LossDetector(LossReference("v12", (5_000.0,), (100_000,)), 1e6)
    seen, history, asks, levels = detector.start(), History(), [], []
    for window in range(40):
        at = slice(window * per, (window + 1) * per)
        seen = detector.update(seen, LossBatch(losses[at], np.arange(40 * per)[at]))
        verdict = detector.judge(seen)
        found = Signal("losses", "concept", verdict.status == "ALARM", verdict.statistic / verdict.threshold)
        history, decision = decide(history, Window(window, (found,)))
        levels.append(decision.level)
        if decision.request and decision.episode:
            asks.append(ask(window, window, decision.episode))
    assert levels[:20] == ["OK"] * 20
    assert levels[22:] == ["DRIFT"] * 18
    assert len(asks) > 10
    state, events = run([*asks, *asks])
    assert [e.what for e in events].count("requested") == 1
    assert len({e.retrain for e in events}) == 1
    assert state.phase == "PENDING"


def test_an_inconclusive_retrain_is_tried_again_once_there_are_twice_as_many_labels_and_is_not_a_wasted_one() -> None:
    rules, state, said = Rules(labels=100, cooldown_ms=0, per_week=99), Governor(), []
    for now, matured in enumerate(range(500, 4_000, 50)):  # it began when 400 had matured, and is asked for at 500
        state, events = run([replace(ask(now, now, matured=matured), began=400)], rules, state)
        said += [(matured, event.what, event.retrain) for event in events if event.what == "requested"]
        if state.phase == "PENDING":
            state, _ = run([Claim("runs", 2 * now, now, matured, "r")], rules, state)
            state, _ = run([Result("runs", 2 * now + 1, now, matured, state.retrain, state.lease, "inconclusive")], rules, state)
    assert [matured for matured, *_ in said] == [500, 600, 800, 1_200, 2_000, 3_600]
    assert len({name for *_, name in said}) == 6, "each is a retrain of its own"
    assert (state.rejected, state.ended) == (0, {"inconclusive": 6})
    state, (event,) = run([replace(ask(99, 99, matured=3_950), began=400)], rules, state)
    assert (event.what, event.reason) == ("declined", "retrain 6 of this cause was inconclusive; waits for 2850 more labels")
    for outcome in ("rejected", "failed", "promoted"):  # control: what was judged, or broke, is not tried again
        state, _ = run([ask(0, 0), Claim("runs", 0, 0, 0, "r")])
        state, _ = run([Result("runs", 1, 0, 0, state.retrain, 1, outcome)], state=state)
        _, events = run([Tick("ticks", 0, 99 * DAY_MS, 1 << 40), ask(1, 99 * DAY_MS, matured=1 << 40)], state=state)
        assert (events[-1].what, events[-1].reason) == ("declined", "this cause has had its retrain")


ROUNDS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["inconclusive"] * 5 + sorted(CLOSED)), st.integers(0, 600),
                            st.integers(0, 3)), max_size=30)


@given(ROUNDS)
@settings(max_examples=300, deadline=None)
def test_a_cause_is_tried_again_only_after_an_inconclusive_retrain_and_with_twice_the_labels(rounds: list[Any]) -> None:
    """In each round labels have matured, one of two causes is asked for, and what is granted is run."""
    state, now, matured, ended = Governor(), 0, 1_000, dict[str, int]()
    granted: dict[int, tuple[int, int, str]] = {}
    for episode, outcome, labels, earlier in rounds:
        now, matured = now + WEEK_MS, matured + labels
        asked = replace(ask(now, now, str(episode), matured=matured), began=matured // earlier if earlier else None)
        state, events = run([asked], QUICK, state)
        if events[-1].what != "requested":
            continue
        if episode in granted:
            began, then, before = granted[episode]
            assert before == "inconclusive"
            assert matured - began >= 2 * (then - began)
            assert matured >= then + QUICK.labels
        granted[episode] = matured if asked.began is None else asked.began, matured, outcome
        ended[outcome] = ended.get(outcome, 0) + 1
        state, _ = run([Claim("runs", 2 * now, now, matured, "r")], QUICK, state)
        state, _ = run([Result("runs", 2 * now + 1, now, matured, state.retrain, state.lease, outcome)], QUICK, state)
    assert state.ended == ended
    assert len(state.unsettled) <= 2


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(DefinitionError, match="a governor was given a Input"):
        govern(Governor(), Input("log", 0, 0, 0), RULES)


def test_examples_run() -> None:
    assert doctest.testmod(governor) == doctest.testmod(policy) == (0, 1)
