"""Training rows computed in this process: the scored events of a period with their labels and their features, from the archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.archive_table import FOR_EVER, ArchiveTable, Arrived
from feature_repo.archived import Wanted
from feature_repo.history import Needed, Queries, entity_codes, features_at
from feature_repo.identity import first_of_each, number_identities
from feature_repo.models import Absence, ModelSpec, Outcomes
from feature_repo.vector import request_features
from feature_repo.views import FeatureService

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LABEL_RANGE", "Labelled", "key_columns", "labelled_records", "labelled_rows"]

LABEL_RANGE = 2**32
"""Labels are below it: revision and label make one number to compare."""
NOT_KNOWN = -1


@dataclass(frozen=True)
class Labelled:
    """``table``: event_id, event_time, the entities, label, features in service order (null: no value), by event time; and counts."""

    table: pa.Table
    counts: dict[str, int]


def key_columns(service: FeatureService) -> tuple[str, ...]:
    return ("event_id", "event_time", *service.entities)


def labelled_records(archive: ArchiveTable, spec: ModelSpec, start_ms: int, end_ms: int, as_of_ms: int) -> int:
    """How many archived records ``labelled_rows`` reads at most; told by statistics."""
    number = _needed(spec, start_ms, end_ms, as_of_ms).count(archive)
    if isinstance(spec.labels, Absence):
        wanted = _done(spec, spec.labels, start_ms, end_ms)
        number += archive.count(wanted.source, wanted.arrived_from_ms, as_of_ms)
    return number


def labelled_rows(archive: ArchiveTable, spec: ModelSpec, start_ms: int, end_ms: int, as_of_ms: int, *, ideal: bool) -> Labelled:
    """The rows of mode ``known`` or ``ideal``: one per labelled event with start_ms <= event time < end_ms.

    What arrived after ``as_of_ms`` is not there. Of events of one identity (event time and id hash, as in the online store) the first
    to arrive counts.
    """
    import pyarrow as pa

    service, needed = spec.service, _needed(spec, start_ms, end_ms, as_of_ms)
    sources = needed.load(archive)
    source = sources[service.source]
    if isinstance(spec.labels, Outcomes):
        codes, known = _told(source, sources[spec.labels.topic], spec.labels.field)
    else:
        done = archive.read(_done(spec, spec.labels, start_ms, end_ms), as_of_ms)
        codes, known = _absences(source, done, spec, as_of_ms)
    rows = np.flatnonzero(first_of_each(codes, source.arrivals) & (source.events.event_time >= start_ms))
    label = known[codes[rows]]
    counts = {"transactions": len(rows), "unlabelled": int((label == NOT_KNOWN).sum()), "positives": int(label[label != NOT_KNOWN].sum())}
    rows, label = rows[label != NOT_KNOWN], label[label != NOT_KNOWN]
    in_order = np.argsort(source.events.event_time[rows], kind="stable")
    rows, label = rows[in_order], label[in_order]
    time = source.events.event_time[rows]
    keys = {name: column.take(pa.array(rows)) for name, column in source.texts.items()}
    horizons = np.full((len(rows), 2), FOR_EVER) if ideal else source.arrivals.take(rows, axis=0)
    matrix = features_at(service, sources, Queries(time, keys, horizons, rows))
    fields = {name: source.events.numbers[name][rows] for name in needed.numbers[service.source]}
    request_features(service, matrix, {"event_time": time, **fields})
    names = [*key_columns(service), "label", *service.feature_names]
    columns = [*(pa.array(time) if name == "event_time" else keys[name] for name in key_columns(service)), pa.array(label)]
    return Labelled(pa.table([*columns, *(pa.array(column, from_pandas=True) for column in matrix.T)], names), counts)


def _needed(spec: ModelSpec, start_ms: int, end_ms: int, as_of_ms: int) -> Needed:
    fields = tuple(name for name in spec.service.event_columns if name != "event_time")
    texts = tuple(name for name in key_columns(spec.service) if name != "event_time")
    told = {spec.labels.topic: ("revision", spec.labels.field)} if isinstance(spec.labels, Outcomes) else {}
    return Needed(spec.service, start_ms, end_ms, as_of_ms, texts, {spec.service.source: fields, **told})


def _done(spec: ModelSpec, absent: Absence, start_ms: int, end_ms: int) -> Wanted:
    return Wanted(absent.topic, spec.service.views, (spec.subject,), (), start_ms, end_ms + spec.label_delay_ms)


def _told(source: Arrived, outcomes: Arrived, field: str) -> tuple[Any, Any]:
    """A number for the identity of each row of ``source``, and by that number the label of the highest (revision, label)."""
    both = [np.concatenate((getattr(source.events, word), getattr(outcomes.events, word))) for word in ("id_hash", "event_time")]
    codes, of_outcomes = np.split(number_identities(*both), [len(source)])
    newest = np.full(max(codes.max(initial=-1), of_outcomes.max(initial=-1)) + 1, NOT_KNOWN)
    numbers = outcomes.events.numbers
    np.maximum.at(newest, of_outcomes, numbers["revision"] * LABEL_RANGE + numbers[field])
    return codes, np.where(newest == NOT_KNOWN, NOT_KNOWN, newest % LABEL_RANGE)


def _absences(source: Arrived, done: Arrived, spec: ModelSpec, as_of_ms: int) -> tuple[Any, Any]:
    """As ``_told``; known is 1 where the subject did nothing in (t, t + label delay], and nothing where that time is not over."""
    codes = number_identities(source.events.id_hash, source.events.event_time)
    doers, subjects = entity_codes([done.texts[spec.subject], source.texts[spec.subject]])
    order = np.lexsort((done.events.event_time, doers))
    times, t = done.events.event_time[order], source.events.event_time
    moments = np.sort(times)
    place = doers[order] * len(moments) + np.searchsorted(moments, times)
    following = np.searchsorted(place, subjects * len(moments) + np.searchsorted(moments, t, "right"))
    did = following < len(times)
    at = following[did]
    did[did] = (doers[order][at] == subjects[did]) & (times[at] <= t[did] + spec.label_delay_ms)
    known = np.full(codes.max(initial=-1) + 1, NOT_KNOWN)
    over = t <= as_of_ms - spec.label_delay_ms
    np.maximum.at(known, codes[over], (~did[over]).astype(np.int64))
    return codes, known
