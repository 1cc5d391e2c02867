"""Joins predictions with their outcomes, whichever comes first: write one side, read the other, publish, then move the mark.

A worker joins one topic: predictions of a model, or outcomes that workers have found valid. Nothing is forgotten by a crash in between: the
mark stands before what was begun, and what is done again gives the same evaluations with the same ids.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from feature_repo.join_marks import JoinMarks
from feature_repo.marks import NOTHING, scored_ms_key
from feature_repo.models import ModelSpec, Outcomes
from feature_repo.pairs import (
    LAST_MS,
    Label,
    beyond,
    encode,
    evaluations,
    headers_of,
    joined_models,
    prediction_decoder,
    scored_of,
)
from feature_repo.pending import Pending
from feature_repo.use_cases import models
from feature_repo.views import DAY_MS
from schemas.admission import MAX_SKEW_MS
from schemas.contracts import Contract
from schemas.envelope import clock
from schemas.evaluations import EVALUATIONS, Evaluation
from schemas.settings import Settings
from schemas.topics import SOURCES, valid_topic
from streams.publisher import LogEnds, Publisher, log_start, next_offset
from streams.resuming import Resuming

__all__ = ["Joiner", "OutcomeJoiner", "PredictionJoiner", "joined_topics", "joiner"]

log = logging.getLogger(__name__)
CHECKED_SHARE, MOST_PAIR_BYTES = 16, 300
"""Memory is measured when a worker may have added this fraction of the budget since it last was, and once a day of arrivals."""
Row = tuple[str, int, Any]
"""Event id, event time, and what to keep of the record."""
Found = list[tuple[int, Evaluation]]
"""Evaluations, each after the partition that it goes to."""


class Joiner(Resuming):
    """What both sides have in common. ``pairs`` belongs to this worker alone; for the rest see Resuming."""

    def __init__(self, pairs: Pending, publisher: Publisher, next_record: Callable[[int, int], int], log_start: Callable[[int], int],
                 stopping: threading.Event) -> None:
        super().__init__(pairs.marks.topic, pairs.marks, next_record, log_start, stopping)
        self._pairs, self._publisher = pairs, publisher
        self._check_after = self._unchecked = max(1, pairs.budget_bytes // (CHECKED_SHARE * MOST_PAIR_BYTES))
        self._checked_day = 0

    @abstractmethod
    def _read(self, partition: int, records: Sequence[Any], counts: Counter[str]) -> tuple[list[Row], int]:
        """The rows of ``records``, and the latest arrival among these that contracts know; 0 where there is none."""

    @abstractmethod
    def _meet(self, partition: int, offset: int, rows: Sequence[Row], counts: Counter[str]) -> Found | None:
        """Write ``rows`` and read what they meet; None where the store went back in time."""

    def _work(self, partition: int, records: Sequence[Any]) -> bool:
        done, offset = self._pairs.marks.lowest(partition), records[-1].offset
        if done == NOTHING and self._retry(lambda: self._log_start(partition)) > 0:
            # What came before is gone from the log; no record of a later event can be among it.
            self._retry(lambda: self._pairs.raise_floor(min(records[0].timestamp, LAST_MS) + MAX_SKEW_MS))
        new = [record for record in records if record.offset > done]
        if not new:
            return True
        counts: Counter[str] = Counter()
        met = self._retry(lambda: self._attempt(partition, new, counts))
        if met is None:
            return False
        found, arrived_ms = met
        once = {evaluation.evaluation_id: (into, evaluation) for into, evaluation in found}
        self._publish(once.values())
        counts["evaluations"] += len(once)
        if not self._retry(lambda: self._pairs.finish(partition, offset, arrived_ms, counts)):
            return False
        self._unchecked -= len(new)
        day = arrived_ms // DAY_MS
        if self._unchecked <= 0 or day > self._checked_day:
            self._retry(self._pairs.keep_within)
            self._unchecked, self._checked_day = self._check_after, day
        return True

    def _attempt(self, partition: int, records: Sequence[Any], counts: Counter[str]) -> tuple[Found, int] | None:
        counts.clear()
        if not self._pairs.confirm(partition):
            return None
        rows, arrived_ms = self._read(partition, records, counts)
        found = self._meet(partition, records[-1].offset, rows, counts)
        return (found, arrived_ms) if found is not None else None

    def _publish(self, found: Iterable[tuple[int, Evaluation]]) -> None:
        for into, evaluation in found:
            self._publisher.send(EVALUATIONS, into, evaluation.subject.encode(), encode(evaluation), evaluation.at_ms,
                                 headers_of(evaluation))
        self._publisher.wait()

    def _kept(self, event_time: int, arrival_ms: int, counts: Counter[str]) -> bool:
        """Whether a record is joined here; else it is left to the tables, and counted."""
        if self._pairs.floor_ms <= event_time and not beyond(event_time, arrival_ms, self._pairs.horizon_ms):
            return True
        counts["beyond"] += 1
        return False

    def _held(self, partition: int) -> bytes:
        return self._pairs.held(partition)

    def _went_back(self) -> None:
        self._pairs.forget_store()


class OutcomeJoiner(Joiner):
    """Joins what ``told`` tells, in valid records of ``contract``, to predictions."""

    def __init__(self, told: Outcomes, contract: Contract, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._decode, self._label = contract.decoder.decode, attrgetter(told.field)

    def _read(self, partition: int, records: Sequence[Any], counts: Counter[str]) -> tuple[list[Row], int]:
        rows = []
        for record in records:
            if not record.value and clock(record.headers):
                continue
            event = self._decode(record.value)
            if self._kept(event.event_time, record.timestamp, counts):
                label = Label(getattr(event, "revision", 0), bool(self._label(event)), record.timestamp)
                rows.append((event.event_id, event.event_time, label))
        return rows, max((record.timestamp for record in records if record.timestamp <= LAST_MS), default=0)

    def _meet(self, partition: int, offset: int, rows: Sequence[Row], counts: Counter[str]) -> Found | None:
        answers = self._pairs.told(partition, offset, rows)
        if answers is None:
            return None
        found: Found = []
        for (event_id, event_time, label), told in zip(rows, answers, strict=True):
            if told.index is None:
                counts[_why_not(label, told.labels)] += 1
            else:
                found += [(scored.partition, evaluations(event_id, event_time, scored, told.labels)[told.index]) for scored in told.scored]
        return found


class PredictionJoiner(Joiner):
    """Joins the predictions of ``spec`` to what is known of their events. ``log_end`` is of partition: the offset after the last."""

    def __init__(self, spec: ModelSpec, log_end: Callable[[int], int], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._spec, self._log_end = spec, log_end
        self._decode = prediction_decoder(spec).decode

    def tick(self, partition: int) -> None:
        """What the scorer has passed is passed here too, where every prediction that it had published by then is joined."""
        marks = self._pairs.marks
        if not marks.known(partition):
            return
        scored_ms = self._retry(lambda: self._pairs.passed_ms(scored_ms_key(self._spec.service.name), partition))  # before the end
        if scored_ms is None or scored_ms <= marks.passed_ms(partition):
            return
        done = marks.lowest(partition)
        if self._retry(lambda: self._log_end(partition)) == done + 1:
            self._retry(lambda: self._pairs.finish(partition, done, scored_ms, {}))

    def _read(self, partition: int, records: Sequence[Any], counts: Counter[str]) -> tuple[list[Row], int]:
        rows, latest_ms = [], 0
        for record in records:
            try:
                prediction = self._decode(record.value or b"")
            except (msgspec.DecodeError, UnicodeDecodeError):  # not one of ours
                counts["unreadable"] += 1
                continue
            if prediction.arrival_ms <= LAST_MS:
                latest_ms = max(latest_ms, prediction.arrival_ms)
            if prediction.model != self._spec.name:
                counts["of another model"] += 1
            elif self._kept(prediction.event_time, prediction.arrival_ms, counts):
                rows.append((prediction.event_id, prediction.event_time, scored_of(prediction, partition)))
        return rows, latest_ms

    def _meet(self, partition: int, offset: int, rows: Sequence[Row], counts: Counter[str]) -> Found | None:
        answers = self._pairs.predicted(partition, offset, rows)
        if answers is None:
            return None
        return [(partition, evaluation) for (event_id, event_time, scored), labels in zip(rows, answers, strict=True)
                for evaluation in evaluations(event_id, event_time, scored, labels)]


def joined_topics(settings: Settings) -> frozenset[str]:
    """What the join reads: predictions, and outcomes that are valid, of the models whose labels somebody tells."""
    joined = joined_models(models(settings))
    predictions = {spec.service.predictions for specs in joined.values() for spec in specs}
    return frozenset({valid_topic(told.topic) for told in joined} | predictions)


def joiner(topic: str, settings: Settings, stopping: threading.Event) -> Joiner:
    """The worker of one of ``joined_topics``."""
    assert settings.kafka is not None
    assert settings.redis is not None
    told, specs = next((told, specs) for told, specs in joined_models(models(settings)).items()
                       if topic == valid_topic(told.topic) or topic in {spec.service.predictions for spec in specs})
    reads = dict.fromkeys([valid_topic(told.topic), *(spec.service.predictions for spec in specs)], settings.partitions)
    pairs = Pending(settings.redis.get_secret_value(), told.topic, JoinMarks(topic), [spec.name for spec in specs], reads,
                    settings.outcome_horizon_ms, settings.outcome_memory_mb << 20)
    common = (pairs, Publisher(settings.kafka, stopping.is_set), partial(next_offset, settings.kafka, topic),
              partial(log_start, settings.kafka, topic), stopping)
    if topic == valid_topic(told.topic):
        return OutcomeJoiner(told, SOURCES[told.topic], *common)
    spec = next(spec for spec in specs if spec.service.predictions == topic)
    return PredictionJoiner(spec, partial(LogEnds(settings.kafka), topic), *common)


def _why_not(label: Label, counting: Sequence[Label]) -> str:
    if not counting:
        return "beyond"
    same = next((other for other in counting if other.revision == label.revision), None)
    return "overtaken" if same is None else "repeated" if same.label == label.label else "conflicting"
