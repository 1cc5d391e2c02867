"""Tables made of parts: a version names all of them or none, whoever else writes, and Spark reads the same rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from pyarrow import fs

from feature_repo.archive_table import bronze_path, open_archive
from feature_repo.delta_files import Part, begin_replacing, replace_by_parts, table_files, write_part, write_table
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


def part(path: str, *batches: pa.RecordBatch) -> Part:
    begin_replacing(path, SCHEMA, PROPERTIES)
    return write_part(path, SCHEMA, batches)


def replace(path: str, *parts: Part) -> None:
    replace_by_parts(begin_replacing(path, SCHEMA, PROPERTIES), SCHEMA, parts)


def test_a_version_has_the_rows_of_its_parts_and_none_besides(tmp_path: Path) -> None:
    path = str(tmp_path / "sets" / "one")
    first, second = part(path, rows(0, 10), rows(10, 5)), part(path, rows(15, 5))
    part(path, rows(0, 10))  # of a task that was tried again
    replace(path, first, second)
    assert (first.rows, first.first_ms, first.last_ms, second.rows) == (15, 0, 14, 5)
    assert table(path).equals(pa.Table.from_batches([rows(0, 20)]))
    assert deltalake.DeltaTable(path).metadata().configuration == PROPERTIES
    before = pa.table({"other": [1, 2]})
    write_table(path, before)
    replace(path, part(path, rows(30, 3)))
    assert table(path).equals(pa.Table.from_batches([rows(30, 3)]))
    assert table(path, 1).num_rows == 20
    assert deltalake.DeltaTable(path, version=2).to_pyarrow_table().equals(before)
    assert deltalake.DeltaTable(path).metadata().configuration == PROPERTIES
    replace(path)
    assert (table(path).num_rows, table(path).schema.names) == (0, SCHEMA.names)
    assert table_files(path) == ([], 4)


def compacted(path: str) -> None:
    deltalake.DeltaTable(path).optimize.compact()


def replaced(path: str) -> None:
    replace(path, part(path, rows(20, 3)))


def replaced_in_process(path: str) -> None:
    write_table(path, pa.Table.from_batches([rows(20, 3)]))


@pytest.mark.parametrize(("before", "meanwhile"), [(0, replaced), (0, replaced_in_process), (2, replaced), (2, replaced_in_process),
                                                  (2, compacted)])
def test_of_two_who_write_one_table_the_slower_is_told(tmp_path: Path, before: int, meanwhile: Any) -> None:
    path = str(tmp_path)
    replace(path, *(part(path, rows(i, 1)) for i in range(before)))
    table_before = begin_replacing(path, SCHEMA, PROPERTIES)
    mine = part(path, rows(10, 3))
    meanwhile(path)
    theirs = table(path)
    with pytest.raises(JobError, match="somebody else"):
        replace_by_parts(table_before, SCHEMA, [mine])
    assert table(path).equals(theirs)


def by_parts(path: str, first: int) -> None:
    replace(path, part(path, rows(first, 3)))


def in_process(path: str, first: int) -> None:
    write_table(path, pa.Table.from_batches([rows(first, 3)]))


@pytest.mark.parametrize("write", [by_parts, in_process])
def test_of_many_who_make_one_table_one_does(tmp_path: Path, write: Any) -> None:
    def build(path: str, first: int) -> bool:
        try:
            write(path, first)
        except JobError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        for turn in range(10):
            path = str(tmp_path / str(turn))
            assert any(pool.map(build, [path] * 4, range(0, 12, 3)))
            assert table(path).num_rows == 3


def test_a_table_that_could_not_be_filled_has_no_rows(tmp_path: Path) -> None:
    path = str(tmp_path)
    begin_replacing(path, SCHEMA, PROPERTIES)
    part(path, rows(0, 3))
    assert (table(path).num_rows, table_files(path)) == (0, ([], 0))


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


def test_arrow_reads_the_archive_itself(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    bronze = pa.table({"topic": ["a.b", "c d"], "arrival_ms": [1, 2], "event_time": [1, 2]})
    deltalake.write_deltalake(bronze_path(settings), bronze, partition_by=["topic"])
    dataset = open_archive(settings).dataset
    assert isinstance(dataset.filesystem, fs.SubTreeFileSystem)
    assert isinstance(dataset.filesystem.base_fs, fs.LocalFileSystem), "one that calls Python back may abort a process that ends"
    assert sorted(dataset.to_table().to_pylist(), key=lambda row: row["arrival_ms"]) == bronze.to_pylist()


def test_a_version_that_the_archive_does_not_have_is_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    deltalake.write_deltalake(bronze_path(settings), pa.table({"topic": ["t"], "arrival_ms": [1], "event_time": [1]}))
    assert open_archive(settings, 0).version == 0
    with pytest.raises(JobError, match="no version 1") as caught:
        open_archive(settings, 1)
    assert caught.value.hint == "the newest is 0"


def test_when_the_last_record_arrived_needs_no_statistics(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for known, ms in ((PROPERTIES, 7), (None, 5)):  # the first has none of arrivals
        bronze = pa.table({"topic": ["t"], "arrival_ms": [ms], "event_time": [1]})
        deltalake.write_deltalake(bronze_path(settings), bronze, mode="append", partition_by=["topic"], configuration=known)
    assert open_archive(settings).newest_ms == 7
