"""Tables made of parts: a version names all of them or none, whoever else writes, and Spark reads the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from feature_repo.archive_table import bronze_path, open_archive
from feature_repo.delta_files import Part, replace_by_parts, table_files, table_version, write_part, write_table
from feature_repo.identity import digest, row_digests
from jobs.parts import PARTS, PartWriter, written
from schemas.errors import JobError
from schemas.settings import Settings

SCHEMA = pa.schema([("event_time", pa.int64()), ("text", pa.string()), ("value", pa.float64())])
PROPERTIES = {"delta.dataSkippingStatsColumns": "event_time"}


def rows(first: int, n: int) -> pa.RecordBatch:
    numbers = range(first, first + n)
    return pa.RecordBatch.from_pydict({"event_time": list(numbers), "text": [f"t{i}" if i % 3 else None for i in numbers],
                                       "value": [i / 7 if i % 5 else None for i in numbers]}, SCHEMA)


def table(path: str, version: int | None = None) -> pa.Table:
    found = deltalake.DeltaTable(path, version=version).to_pyarrow_table()
    return found.sort_by("event_time")


def replace(path: str, *parts: Part) -> None:
    replace_by_parts(path, SCHEMA, parts, PROPERTIES)


def test_a_version_has_the_rows_of_its_parts_and_none_besides(tmp_path: Path) -> None:
    path = str(tmp_path / "sets" / "one")
    first, second = write_part(path, SCHEMA, [rows(0, 10), rows(10, 5)]), write_part(path, SCHEMA, [rows(15, 5)])
    write_part(path, SCHEMA, [rows(0, 10)])  # of a task that was tried again
    replace(path, first, second)
    assert (first.rows, first.first_ms, first.last_ms, second.rows) == (15, 0, 14, 5)
    assert table(path).equals(pa.Table.from_batches([rows(0, 20)]))
    assert deltalake.DeltaTable(path).metadata().configuration == PROPERTIES
    before = pa.table({"other": [1, 2]})
    write_table(path, before)
    replace(path, write_part(path, SCHEMA, [rows(30, 3)]))
    assert table(path).equals(pa.Table.from_batches([rows(30, 3)]))
    assert table(path, 0).num_rows == 20
    assert deltalake.DeltaTable(path, version=1).to_pyarrow_table().equals(before)
    assert deltalake.DeltaTable(path).metadata().configuration == PROPERTIES
    replace(path)
    assert (table(path).num_rows, table(path).schema.names) == (0, SCHEMA.names)
    assert table_files(path) == ([], 3)


def test_of_two_who_build_one_set_the_slower_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path)
    replace(path, write_part(path, SCHEMA, [rows(0, 3)]))
    mine, others = (write_part(path, SCHEMA, [rows(first, 3)]) for first in (10, 20))
    commit = deltalake.DeltaTable.create_write_transaction

    def overtaken(self: Any, *arguments: Any) -> None:
        monkeypatch.undo()
        replace(path, others)
        commit(self, *arguments)

    monkeypatch.setattr(deltalake.DeltaTable, "create_write_transaction", overtaken)
    with pytest.raises(JobError, match="somebody else"):
        replace(path, mine)
    assert table(path).equals(pa.Table.from_batches([rows(20, 3)]))
    assert table_version(path) == 1


def test_spark_writes_a_file_a_task_and_reads_what_they_hold(spark: Any, tmp_path: Path) -> None:
    path, whole = str(tmp_path), pa.Table.from_batches([rows(0, 1000)])
    tasks = spark.createDataFrame(whole).repartitionByRange(3, "event_time").union(spark.createDataFrame(whole).where("event_time < 0"))
    parts, content = written(tasks.mapInArrow(PartWriter(path, SCHEMA), PARTS))
    replace(path, *parts)
    assert len(parts) == 3
    assert content == digest(row_digests(whole))
    assert table(path).equals(whole)
    read = spark.read.format("delta").load(path)
    assert read.sort("event_time").toArrow().equals(whole)
    assert {Path(file).name for file in read.where("event_time < 100").inputFiles()} == {part.file for part in parts if part.first_ms < 100}
    assert read.where("event_time < 100").count() == 100


def test_when_the_last_record_arrived_needs_no_statistics(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for known, ms in ((PROPERTIES, 7), (None, 5)):  # the first has none of arrivals
        bronze = pa.table({"topic": ["t"], "arrival_ms": [ms], "event_time": [1]})
        deltalake.write_deltalake(bronze_path(settings), bronze, mode="append", partition_by=["topic"], configuration=known)
    assert open_archive(settings).newest_ms == 7
