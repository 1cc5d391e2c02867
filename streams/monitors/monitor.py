"""The second stage: a model's windows, judged in one order; verdicts become decisions, decisions at most one governed retrain.

``step`` moves a state on by one record and leaves in its ``outbox`` what is to be said. State and outbox are written together before
anything is published: what was decided once is what is said, however often the process dies and whatever else has arrived meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from feature_repo.reference import Reference
from schemas.monitoring import (
    ASKS,
    DECISIONS,
    DETECTIONS,
    ECHOING,
    REQUESTS,
    RUNS,
    WINDOWS,
    Contributor,
    Detection,
    RetrainDecision,
    RetrainRequest,
    RunRecord,
    SignalSeen,
    WindowPart,
    derived_id,
)
from streams.governor import Ask, Beat, Claim, Event, Input, Result, Rules, Tick, govern
from streams.monitors.counts import SAMPLE
from streams.monitors.feed import copies_share, feed_verdicts
from streams.monitors.instruments import Instrument, instruments
from streams.monitors.state import MonitorState, Said, VersionState
from streams.monitors.versions import Judged, Performance, Signed, count_features, judge_version, take_part
from streams.monitors.watch import NO_VERSION, Watch
from streams.policy import History, Signal, Window, change_began, decide, labels_missing

__all__ = ["Monitor"]

QUIET = 7
"""So many windows in a row without anything are judged; then the stream is asleep, not at fault."""
KEPT_VERSIONS, KEPT_DECISIONS = 3, 14
OF_VALUES = frozenset({"null-share", "scale"})
"""Faults that leave every event its label."""
NONE = "none"
"""The reference of a version that has none."""


class Monitor:
    """Of one model. Holds no state of the stream."""

    def __init__(self, watch: Watch) -> None:
        policy = watch.policy
        self._watch = watch
        self._tools: dict[str, dict[str, Instrument]] = {}
        self._rules = Rules(per_week=policy.retrains_per_week, cooldown_ms=policy.cooldown_ms, labels=policy.labels)

    def step(self, state: MonitorState, topic: str, offset: int, at_ms: int, record: Any) -> None:
        """Take the ``record`` at ``offset`` of ``topic``, which came at ``at_ms``; one that was taken before changes nothing."""
        if offset <= state.marks.get(topic, -1):
            return
        state.marks[topic] = offset
        if topic == WINDOWS:
            self._take(state, record)
        elif topic == RUNS:
            self._hear(state, offset, at_ms, record)
        elif topic == ASKS:
            self._ask(state, topic, offset, at_ms, f"manual:{record.ask_id}", record.why, self._alarming(state), record.champion)

    def _take(self, state: MonitorState, part: WindowPart) -> None:
        place, size = f"{part.topic}/{part.partition}", self._watch.policy.window_ms
        if part.window_ms >= state.until.get(place, 0):
            state.parts.setdefault(part.window_ms, []).append(part)
        state.until[place] = max(part.until_ms, state.until.get(place, 0))
        if any(each not in state.until for each in self._watch.places):
            return
        complete = min(state.until[each] for each in self._watch.places)
        if state.judged_ms is None:
            begun = (at for at, parts in state.parts.items() if at + size <= complete and any(map(_told, parts)))
            state.judged_ms = min(begun, default=None)
        while state.judged_ms is not None and state.judged_ms + size <= complete:
            window_ms, state.judged_ms = state.judged_ms, state.judged_ms + size
            parts = sorted(state.parts.pop(window_ms, []), key=lambda one: (one.topic, one.partition))
            state.quiet = 0 if any(map(_told, parts)) else state.quiet + 1
            if state.quiet <= QUIET:
                self._judge(state, window_ms, parts)
        state.parts = {at: parts for at, parts in state.parts.items() if state.judged_ms is None or at >= state.judged_ms}

    def _judge(self, state: MonitorState, window_ms: int, parts: list[WindowPart]) -> None:
        watch, until = self._watch, window_ms + self._watch.policy.window_ms
        state.windows += 1
        state.began_ms = window_ms if state.began_ms is None else state.began_ms
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update({name: n for name, n in part.counts.items() if name == "labels" or part.topic == watch.predictions})
            state.pins[f"{part.topic}/{part.partition}"] = part.position
            if part.source_position >= 0:
                state.pins[f"{watch.source}/{part.partition}"] = part.source_position
            take_part(state.versions, part, watch.policy)
        state.matured += counts["labels"]
        self._crown(state, parts)
        champion = state.champion or NO_VERSION
        reference = watch.reference(champion)
        copies = copies_share([(part.sample, part.seen) for part in parts if part.sample], SAMPLE)
        feed = [Signed(verdict.detector, "feed", "", verdict)
                for verdict in feed_verdicts(counts, copies, count_features(parts, champion), reference, state.usual)]
        oldest = until - watch.policy.age_ms - 2 * watch.policy.window_ms
        state.tainted = sorted(at for at in {*state.tainted, *self._tainted(window_ms, feed)} if at >= oldest)
        if any(each.verdict.status == "ALARM" and each.name not in OF_VALUES for each in feed):
            state.miscounted.append(window_ms)
        state.miscounted = [at for at in state.miscounted if at >= oldest]
        judged = {version: self._judge_version(state, version, window_ms, parts) for version in sorted(state.versions)}
        of_champion = judged.get(champion, Judged((), Performance()))
        signed = [*feed, *of_champion.performance.feed, *of_champion.signals]
        self._say_window(state, window_ms, until, champion, reference, signed, of_champion.performance)

    def _tainted(self, window_ms: int, feed: list[Signed]) -> range:
        """The windows whose predictions are no evidence of drift because of what is wrong in this one."""
        faults, policy = {each.name for each in feed if each.verdict.status == "ALARM"}, self._watch.policy
        until = window_ms + policy.window_ms if faults else window_ms
        return range(window_ms, until + policy.echo_ms if faults & ECHOING else until, policy.window_ms)

    def _judge_version(self, state: MonitorState, version: str, window_ms: int, parts: list[WindowPart]) -> Judged:
        watch, reference = self._watch, self._watch.reference(version)
        if reference is None:
            state.versions[version] = VersionState(state.versions[version].used_ms)
            return Judged((), Performance())
        if version not in self._tools:
            self._tools[version] = instruments(reference, watch.policy)
        return judge_version(state.versions[version], version, reference, self._tools[version], watch.policy, window_ms, parts,
                             state.tainted, state.miscounted)

    def _crown(self, state: MonitorState, parts: list[WindowPart]) -> None:
        """The champion is the version that predicted last. With another one the levels begin anew; its own detectors come back."""
        newest = max(((found.last_ms, version) for part in parts for version, found in part.versions.items()), default=None)
        if newest is not None and newest[1] != state.champion:
            state.champion = newest[1]
            state.history = History(last_ms=state.history.last_ms)
        for version in sorted(state.versions, key=lambda each: -state.versions[each].used_ms)[KEPT_VERSIONS:]:
            del state.versions[version]
            state.alarming = {key: name for key, name in state.alarming.items() if key.partition("|")[0] != version}

    def _alarming(self, state: MonitorState) -> list[str]:
        """The detections that are on, of the champion and of the feed."""
        return sorted(name for key, name in state.alarming.items() if key.partition("|")[0] in (NO_VERSION, state.champion))

    def _say_window(self, state: MonitorState, window_ms: int, until: int, champion: str, reference: Reference | None,
                    signed: list[Signed], performance: Performance) -> None:
        model = self._watch.model
        signals = tuple(Signal(each.name, each.family, each.verdict.status == "ALARM", each.verdict.statistic / each.verdict.threshold,
                               each.judged) for each in signed)
        episode_ms = state.history.episode_ms
        state.history, decision = decide(state.history, Window(until, signals))
        if state.history.episode_ms != episode_ms:
            state.episode_matured = state.matured
        policy = self._watch.policy
        began_ms = change_began((each.family, each.verdict.suspected_start_ms) for each in signed if each.name in decision.evidence)
        if decision.request and (waits := labels_missing(until, policy.age_ms, policy.labelled_ms, began_ms)):
            decision = replace(decision, request=False, reason=f"{decision.reason}; {waits}")
        for each in signed:
            key = f"{NO_VERSION if each.family == 'feed' else champion}|{each.name}"
            if each.verdict.status != "ALARM":
                if each.judged:
                    state.alarming.pop(key, None)
            elif key not in state.alarming:
                name = derived_id(model, champion, each.name, each.slice, window_ms)
                state.alarming[key] = name
                state.detected[each.family] = state.detected.get(each.family, 0) + 1
                self._say(state, DETECTIONS, name, until, _detection(name, model, champion, window_ms, until, each, decision.episode))
        keys = [f"{version}|{name}" for version in (NO_VERSION, champion) for name in decision.evidence]
        evidence = sorted({state.alarming[key] for key in keys if key in state.alarming})
        blocked = any(each.family == "feed" and each.verdict.status == "ALARM" for each in signed)
        reason = decision.reason if reference is not None or blocked else f"insufficient data: no reference of version {champion or NONE}"
        if reference is not None or blocked or champion not in state.told:
            if reference is None and not blocked:
                state.told = [*state.told, champion][-KEPT_DECISIONS:]
            seen = [SignalSeen(each.name, each.family, each.slice, each.verdict.status, each.verdict.statistic, each.verdict.threshold,
                               each.verdict.effect, each.verdict.n) for each in signed]
            name = derived_id(model, "policy", until)
            told = RetrainDecision(name, model, champion, until, "policy", decision.level, decision.request, reason, decision.episode,
                                   evidence, "", 0, "windows", until, seen, performance.figures)
            state.decisions = [*state.decisions, told][-KEPT_DECISIONS:]
            self._say(state, DECISIONS, name, until, told)
        self._govern(state, Tick("windows", until, until, state.matured), None, [])
        if decision.request and decision.episode is not None:
            self._ask(state, "policy", until, until, decision.episode, decision.reason, evidence, began=state.episode_matured)
        for source, number, why in self._due(state, until) if not blocked else ():
            self._ask(state, source, until, until, f"{source}:{number}", why, [])

    def _due(self, state: MonitorState, until: int) -> Iterator[tuple[str, int, str]]:
        """What asks for a retrain although nothing has drifted. What a feed fault has put off is asked for when it is over."""
        policy = self._watch.policy
        for source, so_far, unit, why in (("calendar", until, policy.calendar_ms, "the calendar says so"),
                                          ("labels", state.matured, policy.label_volume, f"{state.matured:,} labels have matured")):
            if unit is not None:
                before, state.asked[source] = state.asked.get(source), so_far // unit
                if before is not None and so_far // unit > before:
                    yield source, so_far // unit, why

    def _ask(self, state: MonitorState, source: str, offset: int, at_ms: int, episode: str, why: str, evidence: list[str],
             champion: str | None = None, began: int | None = None) -> None:
        champion = champion or state.champion or NO_VERSION
        reference = self._watch.reference(champion)
        self._govern(state, Ask(source, offset, at_ms, state.matured, self._watch.model, champion,
                                reference.name if reference is not None else NONE, episode, why, tuple(sorted(state.pins.items())), began),
                     episode, evidence)

    def _hear(self, state: MonitorState, offset: int, at_ms: int, said: RunRecord) -> None:
        given: Input
        match said.what:
            case "claim":
                given = Claim(RUNS, offset, at_ms, state.matured, said.runner)
            case "beat" | "evaluating":
                given = Beat(RUNS, offset, at_ms, state.matured, said.retrain_id, said.lease, said.what == "evaluating")
            case outcome:
                given = Result(RUNS, offset, at_ms, state.matured, said.retrain_id, said.lease, outcome)
        self._govern(state, given, None, [])

    def _govern(self, state: MonitorState, given: Input, episode: str | None, evidence: list[str]) -> None:
        state.governor, events = govern(state.governor, given, self._rules)
        for number, event in enumerate(events):
            name = derived_id(self._watch.model, "governor", event.source, event.offset, number)
            self._say(state, DECISIONS, name, event.at_ms, RetrainDecision(
                name, self._watch.model, state.champion or NO_VERSION, event.at_ms, "governor", event.what, event.what == "requested",
                event.reason, episode, evidence, event.retrain, event.lease, event.source, event.offset, [], {}))
            if event.what == "requested" and isinstance(given, Ask):
                self._say(state, REQUESTS, event.retrain, event.at_ms, self._request(given, event, evidence))

    def _request(self, asked: Ask, event: Event, evidence: list[str]) -> RetrainRequest:
        return RetrainRequest(event.retrain, asked.model, asked.champion, asked.reference, self._watch.service_hash, asked.episode,
                              asked.why, event.at_ms, dict(event.pins), evidence)

    def _say(self, state: MonitorState, topic: str, key: str, at_ms: int, record: msgspec.Struct) -> None:
        state.outbox.append(Said(topic, key, at_ms, msgspec.json.encode(record).decode()))


def _told(part: WindowPart) -> bool:
    return bool(part.counts)


def _detection(name: str, model: str, champion: str, window_ms: int, until: int, signed: Signed, episode: str | None) -> Detection:
    verdict = signed.verdict
    return Detection(name, model, champion, signed.name, signed.family, signed.slice, window_ms, until, verdict.statistic,
                     verdict.threshold, verdict.effect, verdict.n, verdict.reference, verdict.suspected_start_ms,
                     [Contributor(*each) for each in verdict.contributors], signed.per_90_days, episode)
