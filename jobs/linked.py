"""What the archive holds under an id, or of a stretch of time: events, predictions, evaluations. No JVM; nothing is kept but what is told.

An id is looked for in the bytes first, so that only what holds it is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING, Any

import msgspec

from feature_repo.archive_table import FOR_EVER, ArchiveTable
from feature_repo.models import ModelSpec, Outcomes
from jobs.past_read import Copy
from schemas.admission import MAX_SKEW_MS
from schemas.errors import ContractError
from schemas.evaluations import EVALUATION, EVALUATIONS, Evaluation
from schemas.topics import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Found", "Seen", "Some", "evaluations_of", "events_of", "predictions_within", "wrong_within"]


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What is told of a prediction among many; ``epoch`` where it names the release that it was made under."""

    prediction_id: str
    event_id: str
    event_time: int
    arrival_ms: int
    model: str
    model_version: str | None
    score: float | None
    alert: bool | None
    epoch: int | None = None


@dataclass(frozen=True)
class Found:
    """A record and where it stands, the first place of several."""

    topic: str
    record: Any
    places: tuple[Copy, ...]


@dataclass(frozen=True)
class Some:
    """Of ``records`` that were asked for the first and the last by arrival, and the most telling ones."""

    records: int
    first: Any
    last: Any
    sample: tuple[Any, ...]


def events_of(archive: ArchiveTable, event_id: str, topics: Iterable[str]) -> list[Found]:
    """The valid records of source ``topics`` with this id, one entry for each topic and event time: copies are together."""
    found: dict[tuple[str, int, str], list[tuple[Copy, Any]]] = {}
    texts = {json.dumps(event_id).encode(), json.dumps(event_id, ensure_ascii=False).encode()}  # as producers may write it
    for topic in topics:
        for copy, record in _records(archive, topic, texts, SOURCES[topic].decode):
            if record.event_id == event_id:
                content = str(getattr(record, "revision", ""))  # revisions of an outcome are told apart
                found.setdefault((topic, record.event_time, content), []).append((copy, record))
    return [Found(topic, sorted(copies, key=lambda each: each[0].arrival_ms)[0][1], tuple(sorted(copy for copy, _ in copies)))
            for (topic, _, _), copies in sorted(found.items())]


def evaluations_of(archive: ArchiveTable, prediction_id: str, from_ms: int = 0) -> list[Found]:
    """Those of a prediction whose event arrived at ``from_ms``, by revision."""
    text = f'"prediction_id":"{prediction_id}"'.encode()
    found: dict[int, list[tuple[Copy, Any]]] = {}
    for copy, record in _records(archive, EVALUATIONS, {text}, EVALUATION.decode, from_ms):
        found.setdefault(record.revision, []).append((copy, record))
    return [Found(EVALUATIONS, copies[0][1], tuple(sorted(copy for copy, _ in copies))) for _, copies in sorted(found.items())]


def predictions_within(archive: ArchiveTable, spec: ModelSpec, version: str | None, first_ms: int, end_ms: int,
                       chosen: Callable[[Seen], bool], most: int) -> Some:
    """Predictions of events that arrived from ``first_ms`` on and before ``end_ms``, by ``version`` (None: by any); the highest scores.

    A prediction that was published again counts again.
    """
    def fits(one: Seen) -> bool:
        return one.model == spec.name and first_ms <= one.arrival_ms < end_ms and version in (None, one.model_version) and chosen(one)

    text = f'"model":"{spec.name}"' if version is None else f'"model_version":"{version}"'
    return _some(archive, spec.service.predictions, text, first_ms, msgspec.json.Decoder(Seen).decode, fits,
                 lambda one: (one.score or 0.0, one.prediction_id), lambda one: (one.arrival_ms, one.prediction_id), most)


def wrong_within(archive: ArchiveTable, spec: ModelSpec, version: str, first_ms: int, end_ms: int,
                 chosen: Callable[[Evaluation], bool], most: int) -> Some:
    """Evaluations of such predictions; those that were most wrong, by the distance of score and label."""
    assert isinstance(spec.labels, Outcomes)

    def fits(one: Evaluation) -> bool:
        return one.model == spec.name and first_ms <= one.predicted_ms < end_ms and version == one.model_version and chosen(one)

    def wrong(one: Evaluation) -> tuple[bool, float, str]:
        return one.alert != one.label, abs((one.score or 0.0) - one.label), one.evaluation_id

    return _some(archive, EVALUATIONS, f'"model_version":"{version}"', first_ms, EVALUATION.decode, fits, wrong,
                 lambda one: (one.predicted_ms, one.evaluation_id), most)


def _some(archive: ArchiveTable, topic: str, text: str, first_ms: int, decode: Callable[[bytes], Any], fits: Callable[[Any], bool],
          telling: Callable[[Any], Any], order: Callable[[Any], Any], most: int) -> Some:
    def of_batch(batch: pa.RecordBatch) -> Some:
        rows = [row for _, row in _decoded(batch, {text.encode()}, decode) if fits(row)]
        return Some(len(rows), min(rows, key=order, default=None), max(rows, key=order, default=None),
                    tuple(nlargest(most, rows, key=telling)))

    parts = [part for part in archive.batches(topic, first_ms - MAX_SKEW_MS, FOR_EVER, of_batch) if part.records]
    sample = {order(row): row for part in parts for row in part.sample}  # one that was published again is told once
    return Some(sum(part.records for part in parts), min((part.first for part in parts), key=order, default=None),
                max((part.last for part in parts), key=order, default=None), tuple(nlargest(most, sample.values(), key=telling)))


def _records(archive: ArchiveTable, topic: str, texts: set[bytes], decode: Callable[[bytes], Any],
             from_ms: int = 0) -> Iterator[tuple[Copy, Any]]:
    for part in archive.batches(topic, from_ms - MAX_SKEW_MS, FOR_EVER, lambda batch: list(_decoded(batch, texts, decode))):
        yield from part


def _decoded(batch: pa.RecordBatch, texts: set[bytes], decode: Callable[[bytes], Any]) -> Iterator[tuple[Copy, Any]]:
    """The records of ``batch`` that hold one of ``texts`` and can be decoded, with their places."""
    from functools import reduce

    import pyarrow.compute as pc

    holding = reduce(pc.or_, (pc.fill_null(pc.match_substring(batch["value"], text), False) for text in sorted(texts)))
    some = batch.filter(holding)
    for partition, offset, arrival, value in zip(*(some[name].to_pylist() for name in ("partition", "offset", "arrival_ms", "value")),
                                                 strict=True):
        try:
            yield Copy(partition, offset, arrival), decode(value)
        except (ContractError, msgspec.MsgspecError, UnicodeError):
            continue
