"""The Delta archive read in this process, without a JVM: one version of it, the files that can hold what is wanted, and no others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.archived import Events, Wanted, read_events
from feature_repo.delta_files import open_dataset, read_file
from feature_repo.positions import position_of
from schemas.contracts import Contract
from schemas.envelope import ATTRIBUTES, SPECIFICATION
from schemas.errors import JobError, UnreadableError
from schemas.settings import Settings
from schemas.topics import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FOR_EVER", "ArchiveTable", "Arrived", "bronze_path", "complete_path", "contradicted", "control_path", "control_records",
           "events_in", "newest_archived", "no_archive", "open_archive", "read_group"]

BATCH_ROWS = 1 << 17
"""Values decoded at once: some 20 MB a thread."""
COLUMNS = ["partition", "offset", "arrival_ms", "value", "headers"]
FOR_EVER = 2**63 - 1


def bronze_path(settings: Settings) -> str:
    return f"{settings.tables}/bronze"


def control_path(settings: Settings) -> str:
    """The table of what monitors, governor, runners and people said, and of releases: columns as those of bronze."""
    return f"{settings.tables}/control"


def complete_path(settings: Settings) -> str:
    """The file that holds the table's last version in which every prediction stands with all that its scorer can have seen."""
    return f"{settings.tables}/_checkpoints/bronze/complete"


@dataclass(frozen=True)
class Arrived:
    """Events of one source and the order in which they came: ``arrivals`` int64[m, 2] (arrival ms, position), as ``kernel.sweep`` wants.

    ``texts`` are chunked; ``events.rows`` and ``events.texts`` are empty.
    """

    events: Events
    arrivals: Any
    texts: dict[str, pa.ChunkedArray]

    def __len__(self) -> int:
        return len(self.arrivals)


@dataclass(frozen=True)
class ArchiveTable:
    """One version of the archive; ``dataset`` is Arrow's view of its files and of what their statistics guarantee. ``oldest``: topic ->
    when its first record arrived."""

    version: int
    newest_ms: int
    dataset: Any
    oldest: dict[str, int]

    def row_groups(self, topic: str, arrived_from_ms: int = 0, arrived_until_ms: int = FOR_EVER) -> list[Any]:
        """The row groups that can hold records of ``topic`` with arrived_from_ms <= arrival <= arrived_until_ms, by their statistics."""
        within = _within(topic, arrived_from_ms, arrived_until_ms)
        return [group for fragment in self.dataset.get_fragments(filter=within)
                for group in fragment.split_by_row_group(filter=within, schema=self.dataset.schema)]

    def count(self, topic: str, arrived_from_ms: int = 0, arrived_until_ms: int = FOR_EVER) -> int:
        """How many records those row groups hold: an upper bound that reads no data."""
        return sum(group.count_rows() for group in self.row_groups(topic, arrived_from_ms, arrived_until_ms))

    def spans(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> first and last offset of ``topic``; reads two columns of it."""
        rows = self.dataset.to_table(columns=["partition", "offset"], filter=_within(topic, 0, FOR_EVER))
        found = rows.group_by("partition").aggregate([("offset", "min"), ("offset", "max")])
        return {row["partition"]: (row["offset_min"], row["offset_max"]) for row in found.to_pylist()}

    def oldest_ms(self, topics: Sequence[str]) -> int | None:
        """When the first record of ``topics`` arrived, by the statistics of their files; None where there is none."""
        return min((self.oldest[topic] for topic in topics if topic in self.oldest), default=None)

    def batches(self, topic: str, arrived_from_ms: int, arrived_until_ms: int, decode: Callable[[pa.RecordBatch], Any],
                threads: int | None = None) -> list[Any]:
        """``decode`` of each batch with COLUMNS, in the table's order, by ``threads``: None stands for as many as there are cores."""
        def of_group(group: Any) -> list[Any]:
            return list(map(decode, read_group(group, self.dataset.schema, topic, arrived_from_ms, arrived_until_ms)))

        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            return list(chain.from_iterable(pool.map(of_group, self.row_groups(topic, arrived_from_ms, arrived_until_ms))))

    def read(self, wanted: Wanted, arrived_until_ms: int = FOR_EVER) -> Arrived:
        """The wanted events that arrived by ``arrived_until_ms``."""
        parts = self.batches(wanted.source, wanted.arrived_from_ms, arrived_until_ms, partial(events_in, wanted))
        return _joined(parts, wanted)


def read_group(group: Any, schema: pa.Schema, topic: str, arrived_from_ms: int, arrived_until_ms: int) -> Iterator[pa.RecordBatch]:
    """COLUMNS of what a row group, one of ``ArchiveTable.row_groups`` of a dataset of ``schema``, holds of that."""
    batches = group.to_batches(columns=COLUMNS, filter=_within(topic, arrived_from_ms, arrived_until_ms), schema=schema,
                               batch_size=BATCH_ROWS, use_threads=False)
    return (batch for batch in batches if batch.num_rows)


def events_in(wanted: Wanted, batch: pa.RecordBatch) -> tuple[Events, Any]:
    """The wanted events of a batch with COLUMNS, and their ``Arrived.arrivals``."""
    arrival = batch["arrival_ms"].to_numpy()
    found = read_events(wanted, batch["value"], arrival, ~contradicted(batch["headers"], SOURCES[wanted.source]))
    partition, offset = (batch[name].to_numpy()[found.rows].astype(np.int64) for name in ("partition", "offset"))
    return found, np.stack((arrival[found.rows], position_of(wanted.source, partition, offset)), axis=1)


def newest_archived(settings: Settings) -> int:
    """The archive's newest version, be it complete or not. Raises what ``open_archive`` raises."""
    from deltalake import DeltaTable

    with _reading(settings):
        return int(DeltaTable(bronze_path(settings)).version())


def open_archive(settings: Settings, version: int | None = None) -> ArchiveTable:
    """The archive at ``version``, by default the newest complete one. Raises JobError where there is none, or no such version,
    UnreadableError where it, or the place it is in, cannot be read without a JVM."""
    import pyarrow as pa
    from deltalake import DeltaTable

    path = bronze_path(settings)
    try:
        with _reading(settings):
            table = DeltaTable(path, version=complete_version(settings) if version is None else version)
            files = pa.table(table.get_add_actions(flatten=True))
            dataset = open_dataset(table, path)
            return ArchiveTable(table.version(), _newest_ms(files, dataset), dataset, _oldest(files))
    except UnreadableError as error:
        if version is not None and version > (newest := newest_archived(settings)):
            raise JobError(f"the archive has no version {version}", hint=f"the newest is {newest}") from error
        raise


def no_archive(settings: Settings) -> JobError:
    return JobError(f"there is no archive in {bronze_path(settings)}", hint="headrace archive")


@contextmanager
def _reading(settings: Settings) -> Iterator[None]:
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        yield
    except TableNotFoundError as error:
        raise no_archive(settings) from error
    except (DeltaError, OSError) as error:
        raise UnreadableError(f"the archive in {bronze_path(settings)} cannot be read in process: {error}",
                              hint="--engine spark") from error


def _newest_ms(files: pa.Table, dataset: Any) -> int:
    """When the last record arrived: by the statistics, and where a file has none by the records. 0 where there is no record."""
    import pyarrow.compute as pc

    told = files["max.arrival_ms"] if "max.arrival_ms" in files.column_names else None
    arrivals = told if told is not None and not told.null_count else dataset.to_table(columns=["arrival_ms"])["arrival_ms"]
    return pc.max(arrivals).as_py() or 0


def _oldest(files: pa.Table) -> dict[str, int]:
    wanted = ["partition.topic", "min.arrival_ms"]
    if not set(wanted) <= set(files.column_names):
        return {}
    first = files.select(wanted).group_by("partition.topic").aggregate([("min.arrival_ms", "min")])
    told = zip(first["partition.topic"].to_pylist(), first["min.arrival_ms_min"].to_pylist(), strict=True)
    return {topic: ms for topic, ms in told if ms is not None}


def control_records(settings: Settings, topics: Sequence[str], found: dict[tuple[str, int], bytes]) -> int | None:
    """Put what the archive has of ``topics``, which have one partition, into ``found`` by topic and offset; the version it was read at.

    None where none was archived.
    """
    import pyarrow.compute as pc
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    path = control_path(settings)
    try:
        table = DeltaTable(path)
        rows = open_dataset(table, path).to_table(columns=["topic", "offset", "value"], filter=pc.field("topic").isin(list(topics)))
    except TableNotFoundError:
        return None
    except DeltaError as error:
        raise JobError(f"the table {path} cannot be read in process: {error}") from error
    for topic, offset, value in zip(*(rows[name].to_pylist() for name in ("topic", "offset", "value")), strict=True):
        found[topic, offset] = value or b""
    return int(table.version())


def complete_version(settings: Settings) -> int | None:
    """The version that the last whole archive run left; None where there is none: the newest."""
    told = read_file(complete_path(settings))
    return None if told is None else int(told)


def contradicted(headers: pa.Array, contract: Contract) -> Any:
    """bool[n]: whether a record's headers contradict ``contract``, as ``schemas.envelope.check_cloud_event`` has it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wrong = np.zeros(len(headers), bool)
    if headers.null_count < len(headers):
        pairs, rows = headers.flatten(), pc.list_parent_indices(headers).to_numpy()
        keys, values = pc.struct_field(pairs, "key"), pc.struct_field(pairs, "value")
        for name, only in zip(ATTRIBUTES, (contract.type_bytes, SPECIFICATION), strict=True):
            fits = pc.fill_null(pc.equal(values, pa.scalar(only, values.type)), False)
            wrong[rows[pc.and_(pc.equal(keys, name), pc.invert(fits)).to_numpy(zero_copy_only=False)]] = True
    return wrong


def _within(topic: str, arrived_from_ms: int, arrived_until_ms: int) -> Any:
    import pyarrow.compute as pc

    arrival = pc.field("arrival_ms")
    return (pc.field("topic") == topic) & (arrival >= arrived_from_ms) & (arrival <= arrived_until_ms)


def _joined(parts: Sequence[tuple[Events, Any]], wanted: Wanted) -> Arrived:
    import pyarrow as pa

    nothing = read_events(wanted, pa.array([], pa.binary()), np.empty(0, np.int64), np.empty(0, bool))
    parts = [(nothing, np.empty((0, 2), np.int64)), *parts]
    events = [found for found, _ in parts]

    def column(pick: Any) -> Any:
        return np.concatenate([pick(found) for found in events])

    whole = Events(np.empty(0, np.int64), column(lambda e: e.admitted),
                   {name: column(lambda e, name=name: e.words[name]) for name in wanted.words},
                   {name: column(lambda e, name=name: e.numbers[name]) for name in wanted.numbers}, {})
    return Arrived(whole, np.concatenate([arrivals for _, arrivals in parts]),
                   {name: pa.chunked_array([found.texts[name] for found in events]) for name in wanted.texts})
