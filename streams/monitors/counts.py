"""The first stage: what one partition holds of the open windows, as counts. Pure but for the state that it is given, which it moves on.

A record's time is the latest seen in its partition so far, so windows follow each other there, one is open at a time, and how the log
is cut into chunks changes nothing: a state and the windows that have closed are a function of the records up to its offset. Time may
also pass without records (``pass_time``); then windows close earlier, with the same in them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from xxhash import xxh3_64_intdigest

from feature_repo.bins import BINS, MISSING, UNSEEN, bin_counts, count_columns
from feature_repo.pairs import LAST_MS
from feature_repo.reference import Reference, loss_streams
from schemas.envelope import clock
from schemas.errors import ContractError
from schemas.evaluations import EVALUATION, EVALUATIONS, Evaluation
from schemas.monitoring import Evaluated, Predicted, WindowPart
from schemas.records import TimeMs
from streams.monitors.losses import HOUR_MS, append, retract
from streams.monitors.watch import NO_VERSION, Watch

__all__ = ["Counts", "count_evaluations", "count_predictions", "next_close_ms", "pass_time"]

SAMPLE = 512
RECENT = 8192
"""Evaluations of which it is remembered that they were counted: more than are published again when their joiner died."""
SKEW_MS, STALE_MS = 60_000, HOUR_MS


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What is read of a prediction."""

    prediction_id: str
    event_time: TimeMs
    source_partition: int
    source_offset: Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
    arrival_ms: TimeMs
    model_version: str | None
    score: float | None
    degraded: bool
    late: bool
    features: list[float | None]
    candidate: bool = False


DECODE_ALL = msgspec.json.Decoder(list[Seen]).decode
DECODE = msgspec.json.Decoder(Seen).decode


class Counts(msgspec.Struct):
    """One partition up to and with ``offset``: by model the window that is open, and when the last one that closed ended."""

    offset: int = -1
    source_offset: int = -1
    now_ms: int = 0
    open: dict[str, WindowPart] = {}
    until: dict[str, int] = {}
    position: dict[str, int] = {}
    recent: list[int] = []


def count_predictions(state: Counts, partition: int, records: Sequence[Any], watch: Watch) -> list[WindowPart]:
    """Count ``records`` (offset, timestamp, headers, value), which follow each other from ``state.offset`` on. Returns what closed.

    What was published again (its source offset lies behind) is counted as a copy only; what cannot be read, as such.
    """
    rows = _decode(records)
    arrival = np.array([row.arrival_ms if isinstance(row, Seen) else _stamp(record) for row, record in zip(rows, records, strict=True)],
                       np.int64)
    now = np.maximum(np.maximum.accumulate(arrival), state.now_ms)
    size = watch.policy.window_ms
    windows = np.maximum(now // size * size, state.until.get(watch.model, 0))
    closed: list[WindowPart] = []
    edges = [0, *(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(records)]
    for start, end in pairwise(edges):
        part = _opened(state, watch, watch.predictions, partition, int(windows[start]), closed)
        _add(part, state, [row for row in rows[start:end] if isinstance(row, Seen)], watch)
        _note(part.counts, "unreadable", rows[start:end].count(None))
        part.position = records[end - 1].offset + 1
        part.source_position = state.source_offset + 1 if state.source_offset >= 0 else -1
    state.offset, state.now_ms = records[-1].offset, int(now[-1])
    return closed


def count_evaluations(state: Counts, partition: int, records: Sequence[Any], watches: Mapping[str, Watch]) -> list[WindowPart]:
    """As ``count_predictions``, for all models in one topic. An evaluation that was counted lately is not counted again."""
    closed: list[WindowPart] = []
    known = set(state.recent)
    for record in records:
        if _told_time(record):
            state.now_ms = max(state.now_ms, _stamp(record))
            continue
        one = _evaluation(record.value)
        state.now_ms = max(state.now_ms, one.at_ms if one is not None else 0)
        watch = watches.get(one.model) if one is not None else None
        if one is None or watch is None:
            continue
        size = watch.policy.window_ms
        window_ms = max(state.now_ms // size * size, state.until.get(watch.model, 0))
        part = _opened(state, watch, EVALUATIONS, partition, window_ms, closed)
        part.position = record.offset + 1
        digest = xxh3_64_intdigest(one.evaluation_id.encode()) >> 32
        if digest in known:
            _note(part.counts, "copies", 1)
            continue
        known.add(digest)
        state.recent.append(digest)
        if len(state.recent) > RECENT:
            known.discard(state.recent.pop(0))
        _evaluate(part, one, watch)
    state.offset = records[-1].offset
    return closed + pass_time(state, partition, state.now_ms, EVALUATIONS, watches.values())


def pass_time(state: Counts, partition: int, now_ms: int, topic: str, watches: Iterable[Watch]) -> list[WindowPart]:
    """Nothing earlier than ``now_ms`` will come: the windows that end by then close, an empty one says so."""
    closed: list[WindowPart] = []
    for watch in watches:
        size = watch.policy.window_ms
        until = now_ms // size * size
        if until <= state.until.get(watch.model, 0):
            continue
        part = state.open.get(watch.model) or _part(state, watch, topic, partition, until - size)
        if part.window_ms < until:
            _close(state, part, until, closed)
    return closed


def next_close_ms(state: Counts, watch: Watch) -> int:
    """The time from which on ``pass_time`` has something to close."""
    part = state.open.get(watch.model)
    return watch.policy.window_ms + (part.window_ms if part is not None else state.until.get(watch.model, 0))


def _opened(state: Counts, watch: Watch, topic: str, partition: int, window_ms: int, closed: list[WindowPart]) -> WindowPart:
    part = state.open.get(watch.model)
    if part is not None and part.window_ms < window_ms:
        _close(state, part, window_ms, closed)
        part = None
    if part is None:
        if state.until.get(watch.model, window_ms) < window_ms:  # those between were empty, and nobody would say so before this one closes
            _close(state, _part(state, watch, topic, partition, window_ms - watch.policy.window_ms), window_ms, closed)
        part = state.open[watch.model] = _part(state, watch, topic, partition, window_ms)
    return part


def _part(state: Counts, watch: Watch, topic: str, partition: int, window_ms: int) -> WindowPart:
    source = state.source_offset + 1 if state.source_offset >= 0 else -1
    return WindowPart(f"{watch.model}/{topic}/{partition}/{window_ms}", watch.model, topic, partition, window_ms, 0,
                      state.position.get(watch.model, 0), source)


def _close(state: Counts, part: WindowPart, until_ms: int, closed: list[WindowPart]) -> None:
    part.until_ms = until_ms
    state.open.pop(part.model, None)
    state.until[part.model], state.position[part.model] = until_ms, part.position
    closed.append(part)


def _decode(records: Sequence[Any]) -> list[Seen | bool | None]:
    """True is a clock record, None what is no prediction. All at once; one by one where one of them is not as it should be."""
    try:
        rows: list[Seen | bool | None] = list(DECODE_ALL(b"[" + b",".join([record.value for record in records]) + b"]"))
        if len(rows) == len(records):
            return rows
    except (msgspec.MsgspecError, TypeError, UnicodeError):
        pass
    return [_told_time(record) or _read(record.value) for record in records]


def _stamp(record: Any) -> int:
    """When a record came that does not say so itself; what its producer stamped beyond all contracts moves no time."""
    return int(record.timestamp) if 0 <= record.timestamp <= LAST_MS else 0


def _told_time(record: Any) -> bool:
    return not record.value and clock(record.headers)


def _read(value: bytes | None) -> Seen | None:
    try:
        return DECODE(value) if value else None
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _evaluation(value: bytes | None) -> Evaluation | None:
    try:
        found: Evaluation = EVALUATION.decode(value)
    except ContractError:
        return None
    return found


def _note(counts: dict[str, int], name: str, number: int) -> None:
    if number:
        counts[name] = counts.get(name, 0) + number


def _add(part: WindowPart, state: Counts, rows: list[Seen], watch: Watch) -> None:
    if not rows:
        return
    source = np.array([row.source_offset for row in rows], np.int64)
    before = np.maximum.accumulate(np.concatenate(([state.source_offset], source)))
    new = (source > before[:-1]) | (source < 0)
    state.source_offset = int(before[-1])
    if not new.all():
        _note(part.counts, "copies", int((~new).sum()))
        rows = [row for row, fresh in zip(rows, new.tolist(), strict=True) if fresh]
    ages = np.array([row.arrival_ms - row.event_time for row in rows], np.int64)
    for name, number in (("n", len(rows)), ("degraded", sum(row.degraded for row in rows)), ("late", sum(row.late for row in rows)),
                         ("ahead", int((ages < -SKEW_MS).sum())), ("stale", int((ages > STALE_MS).sum()))):
        _note(part.counts, name, number)
    _sample(part, rows)
    by_version: dict[str, list[Seen]] = {}
    for row in rows:
        by_version.setdefault(row.model_version or NO_VERSION, []).append(row)
    for version, of_version in by_version.items():
        _histogram(part, version, of_version, watch.reference(version))


def _sample(part: WindowPart, rows: list[Seen]) -> None:
    """The smallest hashes of prediction ids, each with how often it was there: the share of events that came twice, of any number."""
    hashes = np.array([xxh3_64_intdigest(row.prediction_id.encode()) >> 11 for row in rows], np.int64)
    if len(part.sample) == SAMPLE:
        hashes = hashes[hashes <= part.sample[-1]]
    found, of_each = np.unique(np.concatenate((np.array(part.sample, np.int64), hashes)), return_inverse=True)
    times = np.concatenate((np.array(part.seen, np.int64), np.ones(len(hashes), np.int64)))
    seen = np.bincount(of_each, times, len(found)).astype(np.int64)
    part.sample, part.seen = found[:SAMPLE].tolist(), seen[:SAMPLE].tolist()


def _histogram(part: WindowPart, version: str, rows: list[Seen], reference: Reference | None) -> None:
    held = part.versions.get(version)
    if held is None:
        empty = [[0] * (BINS + 2) for _ in reference.features] if reference is not None else None
        held = part.versions[version] = Predicted(0, 0, empty, [0] * (BINS + 2) if reference is not None else None)
    held.n += len(rows)
    deciding_ms = next((row.arrival_ms for row in reversed(rows) if not row.candidate), 0)  # one in canary is not crowned
    held.last_ms = max(held.last_ms, deciding_ms)
    if reference is None or held.features is None or held.score is None:
        return
    width = len(reference.features)
    usable = [row for row in rows if len(row.features) == width and not row.degraded]  # a reference has none that was
    matrix = np.array([row.features for row in usable], float).reshape(len(usable), width)
    scores = np.array([row.score for row in usable], float)
    held.features = (np.array(held.features) + count_columns(matrix, reference.edges)).tolist()
    held.score = (np.array(held.score) + bin_counts(scores, np.array(reference.score_edges))).tolist()


def _evaluate(part: WindowPart, one: Evaluation, watch: Watch) -> None:
    """Its losses, and in the table of its window, where it came in time; a revision takes back what was said before it."""
    policy = watch.policy
    _note(part.counts, "labels", one.previous is None)
    if one.degraded or one.alert is None or one.score is None:
        return _note(part.counts, "unjudged", 1)
    if one.outcome_ms - one.predicted_ms > policy.age_ms:
        return _note(part.counts, "overdue", 1)
    version = one.model_version or NO_VERSION
    found = part.evaluated.setdefault(version, Evaluated({}, {}, {}, {}))
    hour, window = one.predicted_ms // HOUR_MS * HOUR_MS, one.predicted_ms // policy.window_ms * policy.window_ms
    table = found.table.setdefault(window, [0, 0, 0, 0])
    scores = found.scores.setdefault(window, [[0] * (BINS + 2), [0] * (BINS + 2)])
    reference = watch.reference(version)
    at = _bin(one.score, reference.score_edges) if reference is not None else UNSEEN
    for stream, wrong in loss_streams(policy, one.event_time, one.alert, one.label):
        append(found, stream, hour, wrong)
    table[2 * one.label + one.alert] += 1
    scores[one.label][at] += 1
    if one.previous is not None:
        for stream, wrong in loss_streams(policy, one.event_time, one.alert, one.previous):
            retract(found, stream, hour, wrong)
        table[2 * one.previous + one.alert] -= 1
        scores[one.previous][at] -= 1
    return None


def _bin(value: float, edges: Sequence[float]) -> int:
    """As ``bin_counts``, of one value that is not missing; beyond the ends it belongs to the last bin there, for ranks are compared."""
    if not edges or value != value:
        return MISSING
    return min(max(bisect_right(edges, value) - 1, 0), max(bisect_left(edges, edges[-1]) - 1, 0))
