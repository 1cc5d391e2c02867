"""Spark sessions with Delta and Kafka: made here, used by the jobs, gone with their JVM when the job is done."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from jobs.arrow_batches import BATCH_ROWS
from schemas.errors import JobError
from schemas.jars import archive_classes, class_archive, jars
from schemas.java import java_home
from schemas.niceness import group_as_nice
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["DELETED_FILE_RETENTION", "LOG_HOURS", "archive_spark_classes", "read_text", "session", "session_options", "spark_archive",
           "use_session", "write_text"]

QUIET = """
status = error
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{yyyy-MM-dd HH:mm:ss} %p %c{1}: %m%n%ex
"""
LOG_HOURS = 720
"""Delta's logs reach back 30 days: no version can be read for longer, but the newest."""
DELETED_FILE_RETENTION = f"interval {LOG_HOURS} hours"
"""How long a table remembers which files were replaced; stock is a week, and older versions are then refused, files or not."""
ROW_GROUP_BYTES = 16 << 20
"""Of a table's Parquet files, about, before compression."""


@contextmanager
def session(settings: Settings, app: str, options: str = "") -> Iterator[SparkSession]:
    """A Spark session; its JVM and Python workers are gone on leaving. What the JVM says goes to ``<home>/logs/spark.log``.

    ``options`` are further ones of its JVM.

    Raises JobError when the JVM does not start, and for what Spark says of a failed job.
    """
    from py4j.protocol import Py4JError  # type: ignore[import-untyped]
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    log = settings.home.resolve() / "logs" / "spark.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    found = {"JAVA_HOME": str(java_home(settings)), "PYSPARK_PYTHON": sys.executable}
    if settings.spark_master.startswith("local"):
        found["SPARK_LOCAL_IP"] = "127.0.0.1"
    for chatty in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):  # print a JVM's stack for what is raised anyway
        logging.getLogger(chatty).disabled = True
    with tempfile.TemporaryDirectory(prefix="headrace-spark-") as folder, log.open("ab") as file, _environment(found):
        quiet = Path(folder, "log4j2.properties")
        quiet.write_text(QUIET)
        conf = SparkConf(loadDefaults=False).setAll(_options(settings, app, Path(folder), quiet, options))
        try:
            behind = os.nice(0) > 0  # a session of its own: niceness counts within one only
            gateway = launch_gateway(conf, {"stdout": file, "stderr": file, "start_new_session": behind})  # type: ignore[no-untyped-call]
        except PySparkException as error:
            raise JobError("spark's JVM did not start", hint=f"see {log}") from error
        if behind:
            group_as_nice(gateway.proc.pid)
        try:
            spark = SparkSession(SparkContext(gateway=gateway, conf=conf))
            try:
                yield spark
            finally:
                spark.stop()
        except (PySparkException, Py4JError) as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise JobError(f"spark job {app!r} failed: {first}", hint=f"see {log}") from error
        finally:
            gateway.shutdown()
            gateway.proc.stdin.close()  # its end of file is what ends the JVM
            gateway.proc.wait(60)
            SparkContext._gateway = SparkContext._jvm = None  # else this process's next session would call the dead one


@contextmanager
def use_session(spark: SparkSession | None, settings: Settings, app: str) -> Iterator[SparkSession]:
    """``spark`` as it is, or a session of its own for as long as the block lasts."""
    if spark is not None:
        yield spark
    else:
        with session(settings, app) as own:
            yield own


@contextmanager
def session_options(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Set SQL options for a block: the session goes on to other tables, for which they are not meant."""
    before = {name: spark.conf.get(name, None) for name in values}
    try:
        for name, value in values.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, former in before.items():
            if former is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, former)


def archive_spark_classes(settings: Settings) -> None:
    """See to it that Spark's ``class_archive`` is there: a session writes and reads one small table, and leaves its classes."""
    import pyspark

    def run(option: str) -> None:
        with tempfile.TemporaryDirectory(prefix="headrace-classes-") as folder:
            own = settings.model_copy(update={"home": Path(folder), "spark_master": "local[*]"})
            with session(own, "classes", f"-XX:TieredStopAtLevel=1 {option}") as spark:
                spark.range(10).selectExpr("id", "id % 2 part").write.format("delta").partitionBy("part").save(f"{folder}/table")
                spark.read.format("delta").load(f"{folder}/table").groupBy("part").count().collect()

    archive_classes(spark_archive(settings), Path(pyspark.__file__).parent / "jars", java_home(settings), run)


def spark_archive(settings: Settings) -> Path:
    """The ``class_archive`` of this Spark; it fits a class path, and so one place that Spark lies in."""
    import pyspark

    return class_archive(settings, "spark", pyspark.__file__)


def _options(settings: Settings, app: str, folder: Path, quiet: Path, options: str) -> list[tuple[str, str]]:
    cores, extras = os.cpu_count() or 2, [str(jar) for jar in jars(settings, "spark")]
    java = f"-Dlog4j2.configurationFile={quiet.as_uri()} -XX:+UseParallelGC -XX:-UsePerfData {options}"
    local = settings.spark_master.startswith("local")
    if (archive := spark_archive(settings)).exists():
        java += f" -XX:SharedArchiveFile={archive}"
    return [
        ("spark.master", settings.spark_master),
        ("spark.app.name", f"headrace-{app}"),
        ("spark.driver.memory", settings.spark_memory),
        ("spark.driver.extraJavaOptions", java),
        # On the class path from the start, where there are no executors elsewhere: only such classes can come from an archive.
        ("spark.driver.extraClassPath", os.pathsep.join(extras)) if local else ("spark.jars", ",".join(extras)),
        ("spark.local.dir", str(folder)),
        ("spark.sql.warehouse.dir", str(folder / "warehouse")),
        ("spark.sql.catalogImplementation", "in-memory"),
        ("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension"),
        ("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog"),
        ("spark.sql.session.timeZone", "UTC"),
        ("spark.sql.shuffle.partitions", "128"),  # before adaptive execution joins them: up to 64 MB, but as many as cores
        # It takes what counts rows (``Observation``) out of a plan in which none are left, and nobody is told that there were none.
        ("spark.sql.adaptive.optimizer.excludedRules", "org.apache.spark.sql.execution.adaptive.AQEPropagateEmptyRelation"),
        ("spark.sql.execution.arrow.pyspark.enabled", "true"),
        ("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH_ROWS)),
        ("spark.sql.execution.arrow.maxBytesPerBatch", str(2**31 - 1)),  # see jobs/arrow_batches.py
        # A task reads a row group whole: of the stock 128 MB two at once are more than the demo's heap holds beside its work.
        ("spark.hadoop.parquet.block.size", str(ROW_GROUP_BYTES)),
        ("spark.sql.maxConcurrentOutputFileWriters", "32"),  # else a write partitioned by topic sorts every value first
        ("spark.databricks.delta.snapshotPartitions", "2"),  # stock 50 tasks to read a log of a dozen files
        ("spark.databricks.delta.properties.defaults.deletedFileRetentionDuration", DELETED_FILE_RETENTION),
        ("spark.databricks.delta.vacuum.enforceTimeTravelWithinDeletedFileRetentionDuration", "false"),
        ("spark.sql.sources.parallelPartitionDiscovery.parallelism", str(cores)),
        ("spark.shuffle.compress", "false"),  # shuffles stay on this machine's disk cache: packing them is most of their cost
        ("spark.ui.enabled", "false"),
        ("spark.ui.showConsoleProgress", "false"),
    ]


def write_text(spark: SparkSession, path: str, text: str) -> None:
    """Put ``text`` into the file ``path``, a path or URL that tables may lie under, in place of what was there: all of it or nothing."""
    assert spark._jvm is not None
    files, configuration = spark._jvm.org.apache.hadoop.fs, spark._jsc.hadoopConfiguration()
    target, draft = files.Path(path), files.Path(f"{path}.{uuid4().hex}.draft")
    file = target.getFileSystem(configuration).create(draft, True)
    try:
        file.write(text.encode())
    finally:
        file.close()
    replace = spark._jvm.org.apache.hadoop.fs.Options.Rename
    gateway: Any = spark.sparkContext._gateway
    over = gateway.new_array(replace, 1)
    over[0] = replace.OVERWRITE
    files.FileContext.getFileContext(target.toUri(), configuration).rename(draft, target, over)


def read_text(spark: SparkSession, path: str) -> str | None:
    """What ``write_text`` wrote; None where there is no such file."""
    assert spark._jvm is not None
    target = spark._jvm.org.apache.hadoop.fs.Path(path)
    files = target.getFileSystem(spark._jsc.hadoopConfiguration())
    if not files.exists(target):
        return None
    file = files.open(target)  # ``spark.read`` passes over names with an underscore
    try:
        return str(spark._jvm.org.apache.commons.io.IOUtils.toString(file, "UTF-8"))
    finally:
        file.close()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
