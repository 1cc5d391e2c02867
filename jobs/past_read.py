"""What the archive holds of one prediction: the record itself, the event it is of, and all that its reads can have seen. No JVM.

Each topic is read once, over the arrival times that matter, from the files and row groups whose statistics allow them; what does not
name one of the prediction's entities is dropped as it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feature_repo.archive_table import FOR_EVER, ArchiveTable, contradicted
from feature_repo.archived import Wanted, read_events
from feature_repo.layout import hash_id, packer
from feature_repo.models import Absence, ModelSpec, Outcomes
from feature_repo.positions import asked_position, position_of
from feature_repo.views import FeatureView
from schemas.admission import MAX_SKEW_MS
from schemas.envelope import SCORED_EVENT
from schemas.errors import ContractError, JobError
from schemas.topics import PREDICTION_TOPICS, SOURCES, answered_topic

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Copy", "Found", "History", "Rows", "find_answer", "find_prediction", "reach", "read_history"]


@dataclass(frozen=True, order=True)
class Copy:
    """Where a record of a prediction stands on its topic."""

    partition: int
    offset: int
    arrival_ms: int


@dataclass(frozen=True)
class Found:
    """*The* prediction of an id, the one with the lowest place, and where all its ``copies`` stand, that one first.

    Of an answer to a request, ``event`` is what was asked about; it has no place in the log.
    """

    spec: ModelSpec
    prediction: Any
    copies: tuple[Copy, ...]
    event: Any = None

    @property
    def topic(self) -> str:
        """Where it was logged."""
        return answered_topic(self.spec.service.predictions) if self.event is not None else self.spec.service.predictions

    @property
    def position(self) -> int:
        """That of the scored event, as parity has it."""
        source, first = self.spec.service.source, self.copies[0]
        if self.event is not None:
            return int(asked_position(source, first.partition, first.offset))
        return int(position_of(source, self.prediction.source_partition, self.prediction.source_offset))


@dataclass(frozen=True)
class Rows:
    """Records that name an entity: int64[m, words], int64[m, 2] (arrival ms, position), bool[m]."""

    records: Any
    arrivals: Any
    admitted: Any


@dataclass(frozen=True)
class History:
    """``event`` is the scored one (None: not archived), ``of_views`` the records of each view's entity by view name, ``values`` the bytes
    of the newest of them by position; ``label_rows`` are (arrival ms, position, value) of what the label is made of."""

    event: Any
    of_views: dict[str, Rows]
    values: dict[int, bytes]
    label_rows: list[tuple[int, int, bytes]] = field(default_factory=list)


def find_prediction(archive: ArchiveTable, specs: Iterable[ModelSpec], prediction_id: str) -> Found:
    """Raises JobError where no model's predictions have that id."""
    for spec in specs:
        copies = _held(archive, spec, spec.service.predictions, prediction_id)
        if copies:
            return Found(spec, copies[0][1], tuple(copy for copy, _, _ in copies))
    raise JobError(f"no archived prediction has the id {prediction_id!r}",
                   hint="`headrace archive` brings what Kafka has; ids are in the records of the predictions topic; `headrace explain "
                        "--answer` looks among what was answered by request")


def find_answer(archive: ArchiveTable, specs: Iterable[ModelSpec], prediction_id: str) -> Found:
    """The newest answer that was given under that id by request, and where others stand. Raises JobError where there is none."""
    for spec in specs:
        held = _held(archive, spec, answered_topic(spec.service.predictions), prediction_id)
        held.sort(key=lambda each: each[0].arrival_ms, reverse=True)
        for copy, prediction, headers in held:
            asked = next((item["value"] for item in headers or () if item["key"] == SCORED_EVENT), None)
            event = _decoded(spec.service.source, asked)
            if event is not None:
                return Found(spec, prediction, (copy, *(other for other, _, _ in held if other != copy)), event)
    raise JobError(f"no archived answer to a request has the id {prediction_id!r}", hint="`headrace archive` brings what Kafka has")


def read_history(archive: ArchiveTable, found: Found, most_values: int) -> History:
    """All of it; ``most_values`` bounds how many values of a view's records are kept, newest first."""
    views = found.spec.service.views
    topics = dict.fromkeys((found.spec.service.source, *(view.source for view in views), found.spec.labels.topic))
    merged = History(None, {}, {})
    for topic in topics:
        need = _Need.of(topic, found, most_values)
        parts: list[History] = archive.batches(topic, need.first_ms, need.last_ms, need.pick)
        merged = History(
            merged.event or next((part.event for part in parts if part.event is not None), None),
            {**merged.of_views, **{view.name: _joined(view, [part.of_views[view.name] for part in parts])
                                   for view in views if view.source == topic}},
            {**merged.values, **{position: value for part in parts for position, value in part.values.items()}},
            [*merged.label_rows, *(row for part in parts for row in part.label_rows)])
    return merged if found.event is None else _with_asked(merged, found)


def _with_asked(history: History, found: Found) -> History:
    """The event that was asked about among the records of its entities: refused there, as a late one is, but in its own read."""
    of_views, at = dict(history.of_views), np.array([[found.prediction.arrival_ms, found.position]])
    for view in found.spec.service.views:
        if view.source == found.spec.service.source:
            rows, own = of_views[view.name], np.frombuffer(packer(view)(found.event), "<i8")[None]
            of_views[view.name] = Rows(np.concatenate((rows.records, own)), np.concatenate((rows.arrivals, at)),
                                       np.append(rows.admitted, False))
    return History(found.event, of_views, {**history.values, found.position: msgspec.json.encode(found.event)}, history.label_rows)


def reach(view: FeatureView, t: int) -> tuple[int, int]:
    """The event times that a read of ``view`` at ``t`` is over: left-open, right-closed."""
    return t - view.delay_ms - view.longest_window_ms, t - view.delay_ms


@dataclass(frozen=True)
class _Need:
    """What is looked for in one topic, and among which arrivals."""

    topic: str
    found: Found
    views: tuple[FeatureView, ...]
    first_ms: int
    last_ms: int
    most_values: int

    @classmethod
    def of(cls, topic: str, found: Found, most_values: int) -> _Need:
        prediction, spec = found.prediction, found.spec
        views = tuple(view for view in spec.service.views if view.source == topic)
        ranges = [(reach(view, prediction.event_time)[0] - view.max_skew_ms,
                   max(reach(view, prediction.event_time)[1] + view.allowed_lateness_ms, prediction.arrival_ms)) for view in views]
        if topic == spec.service.source:
            ranges.append((prediction.arrival_ms, prediction.arrival_ms))
        if topic == spec.labels.topic:
            ranges.append((prediction.event_time - MAX_SKEW_MS, FOR_EVER))
        return cls(topic, found, views, min(first for first, _ in ranges), max(last for _, last in ranges), most_values)

    def pick(self, batch: pa.RecordBatch) -> History:
        import pyarrow as pa
        import pyarrow.compute as pc

        prediction, spec = self.found.prediction, self.found.spec
        subject = (spec.subject,) if isinstance(spec.labels, Absence) and self.topic == spec.labels.topic else ()
        texts = tuple(dict.fromkeys((*(view.entity for view in self.views), *subject)))
        arrival = batch["arrival_ms"].to_numpy()
        events = read_events(Wanted(self.topic, spec.service.views, texts), batch["value"], arrival,
                             ~contradicted(batch["headers"], SOURCES[self.topic]))
        partition, offset = (batch[name].to_numpy().astype(np.int64) for name in ("partition", "offset"))
        at = np.stack((arrival, position_of(self.topic, partition, offset)), axis=1)
        names = {name: pc.equal(events.texts[name], getattr(prediction, name)).to_numpy(zero_copy_only=False) for name in texts}
        of_views, kept = {}, np.zeros(len(batch), bool)
        for view in self.views:
            left, right = reach(view, prediction.event_time)
            mine = np.flatnonzero(names[view.entity] & (events.event_time > left) & (events.event_time <= right))
            admitted = (events.admitted[mine] >> spec.service.views.index(view) & 1).astype(bool)
            of_views[view.name] = Rows(events.records(view)[mine], at[events.rows[mine]], admitted)
            kept[events.rows[mine[np.argsort(-arrival[events.rows[mine]], kind="stable")[:self.most_values]]]] = True
        values = dict(zip(at[kept, 1].tolist(), batch["value"].filter(pa.array(kept)).to_pylist(), strict=True))
        told = events.rows[self._of_label(events, names)]
        label_rows = list(zip(*at[told].T.tolist(), batch["value"].take(pa.array(told)).to_pylist(), strict=True)) if len(told) else []
        return History(self._scored(batch, partition, offset), of_views, values, label_rows)

    def _scored(self, batch: pa.RecordBatch, partition: Any, offset: Any) -> Any:
        prediction = self.found.prediction
        if self.topic != self.found.spec.service.source:
            return None
        if self.found.event is not None:
            return self.found.event
        own = np.flatnonzero((partition == prediction.source_partition) & (offset == prediction.source_offset))
        return _decoded(self.topic, batch["value"][int(own[0])].as_py()) if len(own) else None

    def _of_label(self, events: Any, names: dict[str, Any]) -> Any:
        """Which of ``events`` the label of this prediction is made of."""
        prediction, spec = self.found.prediction, self.found.spec
        if self.topic != spec.labels.topic:
            return np.empty(0, np.int64)
        if isinstance(spec.labels, Outcomes):
            identity = np.uint64(hash_id(prediction.event_id)).astype(np.int64)
            return np.flatnonzero((events.event_time == prediction.event_time) & (events.id_hash == identity))
        within = (events.event_time > prediction.event_time) & (events.event_time <= prediction.event_time + spec.label_delay_ms)
        return np.flatnonzero(names[spec.subject] & within)


def _held(archive: ArchiveTable, spec: ModelSpec, topic: str, prediction_id: str) -> list[tuple[Copy, Any, Any]]:
    """Each record of that prediction on ``topic``: its place, itself, its headers; in the order of places."""
    parts = archive.batches(topic, 0, FOR_EVER, lambda batch: _holding(batch, f'"prediction_id":"{prediction_id}"'.encode()))
    decoded = [(copy, _decoded(spec.service.predictions, value), headers) for part in parts for copy, value, headers in part]
    return sorted(((copy, prediction, headers) for copy, prediction, headers in decoded
                   if prediction is not None and prediction.prediction_id == prediction_id and prediction.model == spec.name),
                  key=lambda each: each[0])


def _holding(batch: pa.RecordBatch, text: bytes) -> list[tuple[Copy, bytes, Any]]:
    import pyarrow.compute as pc

    some = batch.filter(pc.fill_null(pc.match_substring(batch["value"], text), False))
    columns = (some[name].to_pylist() for name in ("partition", "offset", "arrival_ms", "value", "headers"))
    return [(Copy(partition, offset, arrival), value, headers) for partition, offset, arrival, value, headers in zip(*columns, strict=True)]


def _decoded(topic: str, value: bytes | None) -> Any:
    try:
        return (PREDICTION_TOPICS | SOURCES)[topic].decode(value)
    except ContractError:
        return None


def _joined(view: FeatureView, parts: list[Rows]) -> Rows:
    nothing = Rows(np.empty((0, view.record_words), np.int64), np.empty((0, 2), np.int64), np.empty(0, bool))
    parts = [nothing, *parts]
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("records", "arrivals", "admitted")))
