"""Maintenance of real Delta tables: what it changes, and what it must not."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from feature_repo.delta_files import write_file
from jobs import maintain as maintaining
from jobs import tables
from jobs.events import bronze_path, bronze_version, complete_path, newest_version
from jobs.maintain import maintain
from jobs.retention import DEFAULT_HOURS
from jobs.spark import write_text
from jobs.tables import data_files, figures, table_paths
from schemas.errors import JobError
from schemas.fraud import PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings
from services.cli import main
from services.commands.maintain import KEEP_HOURS
from tests.appended_bronze import ROWS, append, copied, rows_of

pytestmark = pytest.mark.usefixtures("generated_code")

DAY_MS = 86_400_000


@pytest.fixture
def settings(appended: Settings, tmp_path: Path) -> Settings:
    return copied(appended, tmp_path)


def files_for(spark: Any, settings: Settings, column: str, low: int, high: int) -> int:
    """How many files of one topic a reader must open for a range of ``column``, by their statistics."""
    from pyspark.sql import functions as F

    least, most = (F.get_json_object("stats", f"$.{bound}.{column}").cast("long") for bound in ("minValues", "maxValues"))
    files = data_files(spark, bronze_path(settings)).where(F.col("partitionValues")["topic"] == TRANSACTIONS)
    return files.where((least <= high) & (most >= low)).count()


def age(spark: Any, settings: Settings, days: float) -> None:
    """Let everything in the tables have happened ``days`` earlier than it did."""
    for path in [path for path in Path(settings.tables).rglob("*") if path.is_file()]:
        then = path.stat().st_mtime - days * 86_400
        if path.parent.name == "_delta_log":
            if path.suffix != ".json":  # checksums of what was there before
                path.unlink()
                continue
            path.write_text(re.sub(r'"(timestamp|deletionTimestamp|modificationTime)":(\d+)',
                                   lambda m: f'"{m[1]}":{int(m[2]) - int(days * DAY_MS)}', path.read_text()))
        os.utime(path, (then, then))
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


def pin(spark: Any, settings: Settings, version: int) -> None:
    path = f"{settings.tables}/training_sets/pinned"
    spark.range(3).write.format("delta").save(path)
    write_text(spark, f"{path}/_manifest.json", "{}")  # of an earlier build, by Spark: with a checksum beside it
    write_file(f"{path}/_manifest.json", json.dumps({"bronze_version": version}))


def test_small_files_become_large_ones_and_no_row_changes(spark: Any, settings: Settings) -> None:
    before, version, rows = figures(spark, bronze_path(settings)), newest_version(spark, settings), rows_of(spark, settings)
    told: list[str] = []
    plan = maintain(settings, dry_run=True, tell=told.append, spark=spark)
    assert newest_version(spark, settings) == version, "a dry run changes nothing"
    assert figures(spark, bronze_path(settings)) == before

    (report,) = maintain(settings, spark=spark).tables
    assert report.sorted == plan.tables[0].sorted == [f"topic <=> '{PREDICTIONS}'", f"topic <=> '{TRANSACTIONS}'"]
    assert any("sort topic" in line for line in told)
    assert report.before == before
    assert before.files == before.small_files > 12
    assert report.after is not None
    assert (report.after.files, report.after.versions) == (2, before.versions + 2)
    assert rows_of(spark, settings) == rows
    assert rows_of(spark, settings, version) == rows, "older versions stay readable"
    newest = newest_version(spark, settings)
    (again,) = maintain(settings, spark=spark).tables
    assert (again.sorted, again.packed, newest_version(spark, settings)) == ([], [], newest), "what is done stays done"


def test_readers_of_a_time_or_an_offset_open_fewer_files(spark: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    files = figures(spark, bronze_path(settings)).files // 2
    assert files_for(spark, settings, "arrival_ms", 1000, 1100) > files / 2
    monkeypatch.setattr(maintaining, "FILE_BYTES", 12_000)
    maintain(settings, spark=spark)
    after = figures(spark, bronze_path(settings)).files // 2
    assert after >= 6
    assert files_for(spark, settings, "arrival_ms", 1000, 1100) <= 2
    assert files_for(spark, settings, "arrival_ms", 0, 6 * ROWS) == after


def test_what_came_since_is_packed_and_what_is_large_is_left_alone(spark: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (maintaining, tables):
        monkeypatch.setattr(module, "SMALL_BYTES", 20_000)
    maintain(settings, spark=spark)
    large = {row.path for row in data_files(spark, bronze_path(settings)).collect()}
    append(spark, settings, 6)
    (report,) = maintain(settings, spark=spark).tables
    assert report.sorted == []
    assert len(report.packed) == 2
    assert large < {row.path for row in data_files(spark, bronze_path(settings)).collect()}
    assert report.after is not None
    assert report.after.files == 4


def test_replaced_files_go_when_no_kept_version_has_them(spark: Any, settings: Settings) -> None:
    rows, files = rows_of(spark, settings), figures(spark, bronze_path(settings)).files
    maintain(settings, spark=spark)
    age(spark, settings, 6)
    (young,) = maintain(settings, spark=spark).tables
    assert young.unused_files == 0
    age(spark, settings, 2)
    assert maintain(settings, 240.0, spark=spark).tables[0].unused_files == 0, "they may be asked for longer"
    plan = maintain(settings, dry_run=True, spark=spark).tables[0]
    assert plan.unused_files == files
    assert plan.before.disk_files == files + 2
    (report,) = maintain(settings, spark=spark).tables
    assert report.unused_files == files
    assert report.after is not None
    assert report.after.disk_files == report.after.files == 2
    assert rows_of(spark, settings) == rows


def test_a_version_that_a_training_set_was_made_from_stays_readable(spark: Any, settings: Settings) -> None:
    rows = rows_of(spark, settings, 3)
    pin(spark, settings, 3)
    maintain(settings, spark=spark)
    age(spark, settings, 20)
    held = maintain(settings, spark=spark)
    assert [(pin.name, pin.version, pin.readable) for pin in held.pins] == [("pinned", 3, True)]
    assert held.keep_hours > 20 * 24
    assert rows_of(spark, settings, 3) == rows
    assert Path(settings.tables, "training_sets/pinned/_manifest.json").exists(), "VACUUM knows it for no rubbish"
    # Negative control: it was the pin that held it.
    released = maintain(settings, release_pins=True, spark=spark)
    assert released.keep_hours == DEFAULT_HOURS
    with pytest.raises(Exception, match=r"FILE_NOT_EXIST|does not exist"):
        rows_of(spark, settings, 3)


def test_jobs_read_on_from_the_compacted_version(spark: Any, settings: Settings) -> None:
    """Else the first VACUUM after a pause of the archive would take the files of the version that they read."""
    write_text(spark, complete_path(settings), "4")
    maintain(settings, spark=spark)
    assert bronze_version(spark, settings) == 4, "version 5 adds rows, and perhaps not all that belong together"
    write_text(spark, complete_path(settings), "5")
    maintain(settings, spark=spark)
    assert bronze_version(spark, settings) == newest_version(spark, settings) == 7

    write_text(spark, complete_path(settings), "4")
    age(spark, settings, 20)
    held = maintain(settings, release_pins=True, spark=spark)
    assert [(pin.version, pin.needed) for pin in held.pins] == [(4, True)]
    assert rows_of(spark, settings, 4).total() == 5 * ROWS, "not even then"


def test_too_short_a_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    for hours in ("23.9", "0", "-1", "nan"):
        assert main(["maintain", "--keep-hours", hours]) == JobError.exit_code
        assert "at least 24 h" in capsys.readouterr().err
    assert main(["maintain", "--keep-hours", "721"]) == JobError.exit_code
    assert KEEP_HOURS == DEFAULT_HOURS


def test_tables_of_any_partitioning_are_packed(spark: Any, tmp_path: Path) -> None:
    settings, path = Settings(home=tmp_path), f"{tmp_path}/tables/odd"
    for _ in range(2):
        rows = spark.createDataFrame([(i, [None, "it's", "a\\b"][i % 3], i % 2) for i in range(6)], "id long, name string, part long")
        rows.coalesce(1).write.format("delta").mode("append").partitionBy("name", "part").save(path)
    (report,) = maintain(settings, spark=spark).tables
    assert report.after is not None
    assert (report.before.files, len(report.packed), report.after.files) == (12, 6, 6)
    assert spark.read.format("delta").load(path).count() == 12


def test_tables_are_found_wherever_they_lie_and_nothing_else_is(spark: Any, settings: Settings) -> None:
    pin(spark, settings, 3)
    spark.range(1).write.format("delta").save(f"{settings.tables}/another")
    spark.range(1).write.parquet(f"{settings.tables}/no_table")
    shutil.copytree(bronze_path(settings), f"{settings.tables}/_checkpoints/hidden")
    assert [path.removeprefix(settings.tables) for path in table_paths(spark, settings)] == [
        "/bronze", "/another", "/training_sets/pinned"]
    assert table_paths(spark, Settings(home=settings.home / "nothing")) == []
