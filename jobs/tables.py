"""The Delta tables under the table root, and what each costs: files, bytes, small files, versions, log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["FILE_BYTES", "SMALL_BYTES", "Figures", "data_files", "figures", "file_sizes", "table_paths"]

FILE_BYTES = 128 << 20
"""What compaction makes: one core reads such a file in seconds, and a day of a busy topic is a handful."""
SMALL_BYTES = 32 << 20
"""A file below this costs a reader more to open than to read."""
DEPTH = 3


@dataclass(frozen=True)
class Figures:
    """A table at one moment.

    ``files`` and ``bytes`` are those of the newest version, ``disk_files`` and ``disk_bytes`` all data files in its folder, older
    versions' too; ``versions`` are the commits that the log still holds.
    """

    files: int
    bytes: int
    small_files: int
    disk_files: int
    disk_bytes: int
    versions: int
    log_files: int
    log_bytes: int


def table_paths(spark: SparkSession, settings: Settings) -> list[str]:
    """Every Delta table under ``settings.tables``, bronze first."""
    root = settings.tables
    return sorted(_tables_in(spark, root, DEPTH), key=lambda path: (path != f"{root}/bronze", path))


def figures(spark: SparkSession, path: str) -> Figures:
    from pyspark.sql import functions as F

    now = data_files(spark, path).agg(F.count("*"), F.sum("size"), F.count_if(F.col("size") < SMALL_BYTES)).collect()[0]
    everything, log = file_sizes(spark, path), file_sizes(spark, f"{path}/_delta_log")
    commits, files = _folder(spark, f"{path}/_delta_log/*.json")
    return Figures(now[0], now[1] or 0, now[2], everything[0] - log[0], everything[1] - log[1], len(files.globStatus(commits)), *log)


def data_files(spark: SparkSession, path: str) -> DataFrame:
    """The files of the newest version: path, partitionValues, size, ... Never read from the log by hand: it has checkpoints."""
    from pyspark.sql import DataFrame

    assert spark._jvm is not None
    log: Any = spark._jvm.org.apache.spark.sql.delta.DeltaLog
    snapshot = log.forTableWithSnapshot(spark._jsparkSession, path)._2()
    return DataFrame(snapshot.allFiles().toDF(), spark)


def file_sizes(spark: SparkSession, path: str) -> tuple[int, int]:
    """(files, bytes) under the folder ``path``; 0 where there is none."""
    target, files = _folder(spark, path)
    if not files.exists(target):
        return 0, 0
    summary = files.getContentSummary(target)
    return summary.getFileCount(), summary.getLength()


def _tables_in(spark: SparkSession, path: str, depth: int) -> Iterator[str]:
    folders = _folders(spark, path)
    if "_delta_log" in folders:
        yield path
    elif depth:
        for name in folders:
            if not name.startswith(("_", ".")):
                yield from _tables_in(spark, f"{path}/{name}", depth - 1)


def _folders(spark: SparkSession, path: str) -> list[str]:
    target, files = _folder(spark, path)
    listed = files.listStatus(target) if files.exists(target) else []
    return [entry.getPath().getName() for entry in listed if entry.isDirectory()]


def _folder(spark: SparkSession, path: str) -> tuple[Any, Any]:
    """(path, its file system), as Hadoop has them."""
    assert spark._jvm is not None
    target = spark._jvm.org.apache.hadoop.fs.Path(path)
    return target, target.getFileSystem(spark._jsc.hadoopConfiguration())
