"""Bringing records into sets that workers append to meanwhile: read a set, append what it lacks.

Appends commute and copies are dropped where a set is read, so what a worker appends or trims between the read and the append can
neither be lost nor do harm. What does harm is a store that goes back in time after the read; see ``feature_repo.fills``.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from feature_repo.appends import ADVANCE
from feature_repo.fills import DONE, Fill, fill_key, unit_field
from feature_repo.layout import entity_key, floor_record
from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack
from schemas.errors import StoreError

__all__ = ["Counts", "Pace", "SetUnion", "missing_records"]

BATCH_RECORDS = 4096
NO_ID = bytes(8)
NO_FLOOR = -(1 << 63)
PATIENCE_S = 60.0

Entity = tuple[str, Sequence[bytes]]


@dataclass
class Counts:
    """``records`` were compared (copies count once), ``added`` of them were missing; ``bytes_added`` holds floor records too."""

    entities: int = 0
    records: int = 0
    added: int = 0
    entities_added_to: int = 0
    bytes_added: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Pace:
    """How fast one of ``tasks`` that write at the same time may go.

    With ``rate`` records a second for all of them together; without it each waits, after a pipeline, ``tasks`` times as long as
    the store took for it: at most half of the store's time goes to the backfill, and less where others keep it busy.
    """

    tasks: int
    rate: float | None = None

    def pause_s(self, records: int, store_s: float) -> float:
        """How long to wait after ``records`` that took the store ``store_s``."""
        if self.rate is None:
            return store_s * self.tasks
        return max(0.0, records * self.tasks / self.rate - store_s)


def missing_records(wanted: Iterable[bytes], held: bytes | None, size: int) -> tuple[dict[bytes, None], list[bytes], int]:
    """``wanted`` without copies, those of them that a read of ``held`` would not see but could use, and the floor of ``held``.

    A record at or below the floor was trimmed, and no read can use it.
    """
    distinct = dict.fromkeys(wanted)
    if not held:
        return distinct, list(distinct), NO_FLOOR
    present = {held[at:at + size] for at in range(0, len(held), size)}
    floor = max((_time(record) for record in present if record[8:16] == NO_ID), default=NO_FLOOR)
    return distinct, [record for record in distinct if record not in present and _time(record) > floor], floor


class SetUnion:
    """Fills the sets of one view, unit by unit. One connection, one thread.

    Parameters
    ----------
    fill
        The run that this belongs to; None: look, and change nothing.
    """

    def __init__(self, url: str, view: FeatureView, fill: Fill | None, pace: Pace, timeout_ms: int = 5000) -> None:
        self._wire = Wire(url, timeout_ms, (ADVANCE,))
        self._view, self._fill, self._pace = view, fill, pace
        self._size = 8 * view.record_words
        self._ttl_s = 2 * view.retention_ms // 1000
        floor_ms = fill.plan.floor_ms if fill is not None and fill.plan.everything else None
        self._floor = (floor_ms, floor_record(view, floor_ms)) if floor_ms is not None else None
        self._wait = threading.Event().wait
        self._mark = b""

    def unit(self, unit: int, entities: Iterable[Entity]) -> Counts | None:
        """Bring in ``entities``, all that the unit has. None where the store failed or went back meanwhile: do it again.

        On return the store answers; StoreError where it does not for a minute.
        """
        counts, field = Counts(), unit_field(self._fill.number, unit) if self._fill is not None else ""
        try:
            if self._fill is not None:
                self._mark = uuid.uuid4().hex.encode()
                self._wire.call("HSET", fill_key(self._view), field, self._mark)
            for batch in _batches(entities):
                if not self._bring(batch, field, counts):
                    return None
            return counts if self._moved(field, DONE + json.dumps(asdict(counts)).encode()) else None
        except StoreError:
            self._until_it_answers()
            return None

    def close(self) -> None:
        self._wire.close()

    def _bring(self, batch: Sequence[Entity], field: str, counts: Counts) -> bool:
        keys = [entity_key(self._view, name) for name, _ in batch]
        began = time.perf_counter()
        sets = self._wire.exchange([pack(("GET", key)) for key in keys])
        store_s = time.perf_counter() - began
        commands, records = [], 0
        for key, (_, wanted), held in zip(keys, batch, sets, strict=True):
            distinct, lacking, floor = missing_records(wanted, held, self._size)
            records += len(distinct)
            if lacking:
                counts.added += len(lacking)
                counts.entities_added_to += 1
                if self._floor is not None and floor < self._floor[0]:
                    lacking.append(self._floor[1])  # what lies below was left out: a read that needs it is refused
                value = b"".join(lacking)
                counts.bytes_added += len(value)
                commands += [pack(("APPEND", key, value)), pack(("EXPIRE", key, self._ttl_s))]
        counts.entities += len(batch)
        counts.records += records
        went_well = True
        if self._fill is not None:  # also without commands: what was found there must still be there
            began = time.perf_counter()
            went_well = self._moved(field, uuid.uuid4().hex.encode(), commands)
            store_s += time.perf_counter() - began
        self._wait(self._pace.pause_s(records, store_s))
        return went_well

    def _moved(self, field: str, mark: bytes, commands: Sequence[bytes] = ()) -> bool:
        """Whether, with ``commands`` done, the field was still as last written; it is ``mark`` then."""
        if self._fill is None:
            return True
        move = pack(("EVALSHA", ADVANCE.sha, 1, fill_key(self._view), field, self._mark, mark))
        if self._wire.exchange([*commands, move])[-1] != mark:
            return False
        self._mark = mark
        return True

    def _until_it_answers(self) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._wire.call("PING")
                return
            except StoreError:
                if time.monotonic() > give_up:
                    raise
                self._wait(0.2)


def _batches(entities: Iterable[Entity]) -> Iterable[list[Entity]]:
    """Pipelines of a bounded size; an entity is never cut."""
    batch: list[Entity] = []
    records = 0
    for entity in entities:
        batch.append(entity)
        records += len(entity[1])
        if records >= BATCH_RECORDS:
            yield batch
            batch, records = [], 0
    if batch:
        yield batch


def _time(record: bytes) -> int:
    return int.from_bytes(record[:8], "little", signed=True)
