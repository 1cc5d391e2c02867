"""Monitors in simulation: what is found, what blocks, and that neither cuts nor crashes change a word of what is said."""

from __future__ import annotations

import doctest
from dataclasses import replace

import msgspec
import pytest

from schemas import monitoring
from schemas.contracts import MAX_VALUE_BYTES
from schemas.evaluations import EVALUATIONS
from schemas.fraud import PREDICTIONS
from schemas.monitoring import DECISIONS, DETECTIONS, REQUESTS, Detection, RetrainDecision, RetrainRequest
from streams.monitors import losses
from streams.monitors.counts import Counts, count_evaluations, count_predictions, pass_time
from streams.monitors.monitor import Monitor
from streams.monitors.state import MonitorState
from tests.monitor_runs import PLANTED, STREAM, WATCH, WINDOWS_RUN, detected, reasons, run, said, undisturbed
from tests.monitor_simulation import Memory, Workers, end_of_time, parts_of, state_of
from tests.monitor_world import POLICY, SPEC, START, WINDOW, Change, Record, Stream, make_reference, make_stream, make_watch


def test_examples_run() -> None:
    for module in (losses, monitoring):
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0


def test_a_changed_concept_is_found_once_and_asks_for_one_retrain_with_all_that_makes_it_reproducible() -> None:
    found = said(undisturbed(), DETECTIONS, Detection)
    assert {each.signal for each in found} <= {"error", "error/night", "missed"}
    assert [each.signal for each in found].count("error") == 1
    (error,) = (each for each in found if each.signal == "error")
    assert error.statistic >= error.threshold
    assert error.effect > 0.05
    assert error.n > 0
    assert error.reference == "fraud@1"
    assert error.suspected_start_ms is not None
    assert abs(error.suspected_start_ms - START - PLANTED.since * WINDOW) <= WINDOW
    assert error.contributors
    assert error.false_alarms_per_90_days == pytest.approx(0.2), "five signals share one false alarm in 90 days"
    assert len({each.episode for each in found}) == 1
    (request,) = said(undisturbed(), REQUESTS, monitoring.RetrainRequest)
    assert set(request.detections) <= {each.detection_id for each in found}
    asked = (request.at_ms - START) // WINDOW
    assert request.pins["predictions/0"] == sum(each.arrival < asked for each in windows_of(STREAM.predictions[0]))
    assert request.pins["evaluations/1"] > 0
    assert request.pins["transactions/0"] > request.pins["predictions/0"]
    assert "this cause has had its retrain" in reasons(undisturbed(), "governor")


class Placed(msgspec.Struct):
    arrival_ms: int

    @property
    def arrival(self) -> int:
        return (self.arrival_ms - START) // WINDOW


def windows_of(log: list[Record]) -> list[Placed]:
    return [msgspec.json.decode(record.value, type=Placed) for record in log]


@pytest.mark.parametrize(("trigger", "episodes"), [
    ({"calendar_ms": 8 * WINDOW}, ["calendar"] * 3), ({"label_volume": 7_000}, ["labels", "labels"]), ({}, [])])
def test_the_calendar_and_the_volume_of_labels_ask_although_nothing_has_drifted(trigger: dict[str, int], episodes: list[str]) -> None:
    memory = Memory(make_stream(24))
    end_of_time(memory, START + 24 * WINDOW)
    policy = replace(POLICY, **trigger, retrains_per_week=9, cooldown_ms=0, labels=0)
    Workers(memory, make_watch(spec=replace(SPEC, drift=policy))).run()
    decided = [msgspec.json.decode(value, type=RetrainDecision) for value in memory.said(DECISIONS).values()]
    assert [each.episode.partition(":")[0] for each in decided if each.by == "governor" and each.episode] == episodes
    assert len(said(memory, REQUESTS, RetrainRequest)) == min(len(episodes), 1), "nobody has carried out the first yet"


def test_a_request_waits_until_labels_since_the_change_have_come_of_age() -> None:
    def asked(labelled_ms: int) -> tuple[list[RetrainDecision], list[RetrainRequest]]:
        memory = Memory(make_stream(24, change=Change(8, wrong=0.15)))
        end_of_time(memory, START + 24 * WINDOW)
        Workers(memory, make_watch(spec=replace(SPEC, drift=replace(POLICY, labelled_ms=labelled_ms)))).run()
        decided = [msgspec.json.decode(value, type=RetrainDecision) for value in memory.said(DECISIONS).values()]
        return ([each for each in decided if each.by == "policy"],
                [msgspec.json.decode(value, type=RetrainRequest) for value in memory.said(REQUESTS).values()])

    at_once, waiting = asked(0), asked(8 * WINDOW)
    assert len(at_once[1]) == len(waiting[1]) == 1
    assert waiting[1][0].at_ms > at_once[1][0].at_ms
    waits = [each for each in waiting[0] if "waits for labels" in each.reason]
    assert waits
    assert not any(each.request for each in waits)
    assert all(each.at_ms < waiting[1][0].at_ms for each in waits)
    assert asked(99 * WINDOW)[1] == [], "the control: it would wait for ever"


@pytest.mark.parametrize("echo", [0, 4])
def test_what_a_fault_leaves_in_windows_of_features_earns_no_retrain(echo: int) -> None:
    """Nulls in one window, then four in which features still lack what was lost, and alerts are wrong for it. The control sees a drift."""
    fault = (Change(6, 7, nulls=0.5), Change(7, 11, shift=0.7, score=1.5, wrong=0.25))
    memory = Memory(make_stream(20, change=fault))
    end_of_time(memory, START + 20 * WINDOW)
    Workers(memory, make_watch(spec=replace(SPEC, drift=replace(POLICY, echo_ms=echo * WINDOW)))).run()
    families = {each.family for each in said(memory, DETECTIONS, Detection)}
    assert ("feed" in families, len(said(memory, REQUESTS, RetrainRequest))) == (True, 0 if echo else 1)
    assert families == {"feed"} or not echo


@pytest.mark.parametrize("topic", [PREDICTIONS, EVALUATIONS])
def test_windows_in_which_a_partition_had_nothing_are_told_by_the_first_record_after_them(topic: str) -> None:
    """Labels that were held back come all at once, at the end of a window: everybody waits for that very window."""
    watch, stream, state = make_watch(), make_stream(8), Counts()
    log = stream.predictions[0] if topic == PREDICTIONS else stream.evaluations[0]
    first = START + 3 * WINDOW

    def count(records: list[Record]) -> list[monitoring.WindowPart]:
        if topic == PREDICTIONS:
            return count_predictions(state, 0, records, watch)
        return count_evaluations(state, 0, records, {watch.model: watch})

    count([record for record in log if record.timestamp < first])
    assert [part.until_ms for part in pass_time(state, 0, first, topic, [watch])] in ([first], [])
    told = count([next(record for record in log if record.timestamp >= first + 2 * WINDOW)])
    assert [(part.until_ms, part.counts) for part in told] == [(first + 2 * WINDOW, {})]
    assert state.open[watch.model].window_ms == first + 2 * WINDOW


def test_a_stream_that_does_not_change_is_silent() -> None:
    for seed in range(8):
        memory = run(make_stream(WINDOWS_RUN, seed=100 + seed))
        assert detected(memory) == []
        assert set(reasons(memory)) == {"no alarm"}
        assert memory.said(REQUESTS) == {}
        assert len(reasons(memory)) == WINDOWS_RUN, "every window has its decision"


def test_shifted_features_and_scores_are_two_signals() -> None:
    memory = run(make_stream(WINDOWS_RUN, change=Change(6, shift=0.7, score=1.5)))
    assert {(6, "features"), (6, "score")} <= set(detected(memory))
    (features,) = (each for each in said(memory, DETECTIONS, Detection) if each.signal == "features")
    assert features.contributors[0].name == "card_count_1m"
    assert len(memory.said(REQUESTS)) == 1


@pytest.mark.parametrize(("change", "sign"), [
    (Change(6, volume=0.2, wrong=0.3), "volume"), (Change(6, volume=4.0, wrong=0.3), "volume"),
    (Change(6, nulls=0.4, wrong=0.3), "null-share"),
    (Change(6, scale=100, wrong=0.3), "scale"), (Change(6, copies=0.3, wrong=0.3), "duplicates"),
    (Change(6, ahead_ms=3_600_000, wrong=0.3), "clock-skew"), (Change(6, ahead_ms=-7_200_000, wrong=0.3), "freshness"),
    (Change(6, degraded=0.4, wrong=0.3), "degraded")], ids=lambda x: x if isinstance(x, str) else "")
def test_a_feed_fault_blocks_says_pipeline_and_is_no_evidence_of_drift(change: Change, sign: str) -> None:
    memory = run(make_stream(WINDOWS_RUN, per_window=1_200, change=change))
    found = detected(memory)
    assert found[0] == (6, sign)
    assert reasons(memory)[6] == f"pipeline: {sign}"
    assert not any(window == 6 and signal in ("features", "score") for window, signal in found)
    if sign not in ("volume", "freshness"):  # those become what is usual
        assert memory.said(REQUESTS) == {}


@pytest.mark.parametrize("share", [0.02, 0.08])
def test_predictions_without_history_are_no_drift_of_the_rest(share: float) -> None:
    """No reference has any; below a tenth of all they are no fault of the feed either."""
    memory = run(make_stream(WINDOWS_RUN, per_window=2_000, seed=7, change=Change(2, degraded=share)))
    assert detected(memory) == []
    counted = [part.counts.get("degraded", 0) for part in parts_of(memory) if part.topic == PREDICTIONS]
    assert sum(counted) > 0.8 * share * 2_000 * (WINDOWS_RUN - 2), "they are counted as what they are"


def test_a_fault_that_is_mended_leaves_no_alarm_behind() -> None:
    broken, sound = make_stream(8, change=Change(6, nulls=0.4, score=2.0), seed=1), make_stream(WINDOWS_RUN, seed=1)
    for partition, log in enumerate(sound.predictions):
        log[:len(broken.predictions[partition])] = broken.predictions[partition]
    memory = run(sound)
    assert detected(memory) == [(6, "null-share")]
    assert set(reasons(memory)[8:]) == {"no alarm"}


def test_labels_that_stay_away_are_a_fault_of_the_labels() -> None:
    stream = make_stream(WINDOWS_RUN, seed=2)
    for log in stream.evaluations:
        log[:] = [replace(record, offset=i) for i, record in enumerate(log[:len(log) // 3])]
    assert "pipeline: labels" in reasons(run(stream))


def test_labels_that_stay_away_are_seen_in_the_echo_of_another_fault() -> None:
    """Nulls make features wrong for a long time, and take no event its label."""
    stream = make_stream(WINDOWS_RUN, seed=2, change=Change(1, 3, nulls=0.4))
    for log in stream.evaluations:
        log[:] = [replace(record, offset=i) for i, record in enumerate(log[:len(log) // 3])]
    memory = Memory(stream)
    end_of_time(memory, START + WINDOWS_RUN * WINDOW)
    Workers(memory, make_watch(spec=replace(SPEC, drift=replace(POLICY, echo_ms=WINDOWS_RUN * WINDOW)))).run()
    assert {"null-share", "labels"} <= {each.signal for each in said(memory, DETECTIONS, Detection)}


def test_partitions_without_traffic_close_their_windows_by_marks_with_the_same_in_them() -> None:
    stream = make_stream(WINDOWS_RUN, quiet=range(3, 7))
    memory = run(stream)
    assert len(reasons(memory)) == WINDOWS_RUN
    counted = sum(part.counts.get("n", 0) for part in parts_of(memory) if part.topic == PREDICTIONS)
    assert counted == sum(map(len, stream.predictions))

    stalled = Memory(stream)
    Workers(stalled, WATCH).run()
    assert len(reasons(stalled)) == WINDOWS_RUN - 1, "without marks the last window waits"


def test_the_first_window_is_the_first_that_holds_anything_whoever_tells_first() -> None:
    def part(place: str, window: int, until: int, n: int) -> monitoring.WindowPart:
        topic, _, partition = place.partition("/")
        at, end = START + window * WINDOW, START + until * WINDOW
        return monitoring.WindowPart(f"{place}/{at}", "fraud", topic, int(partition), at, end, 0, counts={"n": n} if n else {})

    one, other, *rest = WATCH.places
    told = [part(one, 5, 7, 9), part(other, 1, 2, 0), *(part(place, 6, 7, 0) for place in rest), part(other, 3, 4, 9), part(other, 6, 7, 0)]
    state, monitor = MonitorState(), Monitor(WATCH)
    for offset, each in enumerate(told):
        monitor.step(state, monitoring.WINDOWS, offset, 0, each)
    assert (state.began_ms, state.windows) == (START + 3 * WINDOW, 4)


def test_a_part_may_be_larger_than_an_event_and_what_is_none_is_passed_over() -> None:
    memory = Memory(Stream([[]], [[]]))
    large = monitoring.WindowPart("large", "fraud", EVALUATIONS, 0, START, START + WINDOW, 9, sample=[1 << 50] * 100_000)
    for value in (msgspec.json.encode(large), b"none", b""):
        memory.logs[monitoring.WINDOWS, 0].append(Record(len(memory.logs[monitoring.WINDOWS, 0]), START, value))
    assert len(memory.logs[monitoring.WINDOWS, 0][0].value) > MAX_VALUE_BYTES
    Workers(memory, WATCH).run()
    state = state_of(memory)
    assert state.marks == {monitoring.WINDOWS: 0}
    assert state.until == {f"{EVALUATIONS}/0": START + WINDOW}


def test_counts_are_those_of_a_count_by_hand() -> None:
    stream = make_stream(4, change=Change(2, copies=0.5, degraded=0.2))
    stream.predictions[0].insert(50, stream.predictions[0][49])  # published again after a crash
    stream.predictions[0].insert(60, Record(0, START, b"no prediction"))
    stream.predictions[0][:] = [replace(record, offset=i) for i, record in enumerate(stream.predictions[0])]
    stream.evaluations[0][:0] = stream.evaluations[0][:30]
    stream.evaluations[0][:] = [replace(record, offset=i) for i, record in enumerate(stream.evaluations[0])]
    parts = parts_of(run(stream))
    total = {name: sum(part.counts.get(name, 0) for part in parts if part.topic == PREDICTIONS) for name in ("n", "copies", "unreadable")}
    assert total == {"n": sum(map(len, stream.predictions)) - 2, "copies": 1, "unreadable": 1}
    assert sum(part.counts.get("copies", 0) for part in parts if part.topic == EVALUATIONS) == 30
    whole = total["n"] - sum(part.counts.get("degraded", 0) for part in parts)
    assert sum(sum(sum(found.features[0]) for found in part.versions.values() if found.features) for part in parts) == whole


def test_a_revised_label_takes_the_old_one_back() -> None:
    stream, revised = make_stream(6, seed=3), make_stream(6, seed=3)
    for log in revised.evaluations:
        first = [msgspec.json.decode(record.value) for record in log]
        wrong = [{**one, "label": not one["label"]} for one in first[:200]]
        again = [{**one, "evaluation_id": one["prediction_id"] + ":1", "revision": 1, "previous": not one["label"]} for one in first[:200]]
        values = [msgspec.json.encode(one) for one in (*wrong, *again, *first[200:])]
        log[:] = [Record(i, 0, value) for i, value in enumerate(values)]
    tables = []
    for each in (stream, revised):
        memory = run(each)
        found = [one.performance for one in said(memory, DECISIONS, RetrainDecision) if one.performance]
        tables.append(found)
        assert state_of(memory).matured == sum(map(len, stream.evaluations))
    assert tables[0] == tables[1] != []
    assert state_of(run(stream)).versions["1"].losses["missed"].n == state_of(run(revised)).versions["1"].losses["missed"].n


def test_another_champion_has_its_own_detectors_and_one_without_reference_says_so_once() -> None:
    references = {"1": make_reference("1"), "2": make_reference("2", seed=2000)}
    watch = make_watch(read=references.get)
    stream = make_stream(WINDOWS_RUN, change=Change(3, wrong=0.15), version=lambda window: ("1", "2", "3", "1")[window // 3])
    memory = run(stream, watch=watch)
    state = state_of(memory)
    assert state.champion == "1"
    assert set(state.versions) == {"1", "2", "3"}
    decisions = [each for each in said(memory, DECISIONS, RetrainDecision) if each.by == "policy"]
    assert [each.reason for each in decisions if each.model_version == "3"] == ["insufficient data: no reference of version 3"]
    assert decisions[3].model_version == "2"
    assert decisions[3].what == "OK", "levels begin anew"
    assert state.versions["2"].losses["error"].n > 0
