"""Archive, maintenance, deletion and appends at once: what meets is done again, nothing is lost or doubled (P18)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import archive as archiving
from jobs.archive import archive
from jobs.commits import retry_conflicts
from jobs.events import bronze_path
from jobs.maintain import maintain
from jobs.tables import figures
from schemas.errors import JobError
from schemas.fraud import OUTCOMES, TRANSACTIONS
from schemas.settings import Settings
from services.runtime.embedded import Runtime
from tests.appended_bronze import copied, rows_of
from tests.archive_process import Ledger, kill, start
from tests.deadline import eventually


@pytest.fixture
def settings(appended: Settings, tmp_path: Path) -> Settings:
    return copied(appended, tmp_path)


def together(*works: Callable[[], None]) -> list[BaseException]:
    """Run them at once; what they raised."""
    gate, raised = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        gate.wait()
        try:
            work()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_a_conflict_is_met_by_doing_the_work_again_and_without_that_it_surfaces(spark: Any, settings: Settings) -> None:
    from delta import exceptions
    from delta.tables import DeltaTable

    spark.sql(f"OPTIMIZE delta.`{bronze_path(settings)}`")  # what they delete lies in one file

    def delete(offset: int) -> None:
        DeltaTable.forPath(spark, bronze_path(settings)).delete(f"topic = '{TRANSACTIONS}' and offset = {offset}")

    def deleted(offsets: list[int]) -> int:
        return len(offsets) - sum(row[2] in offsets for row in rows_of(spark, settings))

    for first in range(0, 200, 8):  # the control
        offsets = [first, first + 2]
        lost = together(*(lambda offset=offset: delete(offset) for offset in offsets))
        if lost:
            break
    assert lost, "they never met"
    assert all(isinstance(error, exceptions.ConcurrentAppendException | exceptions.ConcurrentDeleteReadException
                          | exceptions.ConcurrentDeleteDeleteException) for error in lost)
    assert deleted(offsets) == len(offsets) - len(lost)

    conflicts: Counter[str] = Counter()
    for first in range(200, 400, 8):
        offsets = [first, first + 2, first + 4]
        assert together(*(lambda offset=offset: retry_conflicts(lambda: delete(offset), conflicts) for offset in offsets)) == []
        assert deleted(offsets) == 3
        if conflicts:
            break
    assert conflicts.keys() & {type(error).__name__ for error in lost}

    def always_late() -> None:
        raise lost[0]

    with pytest.raises(JobError, match="came first 2 times"):
        retry_conflicts(always_late, conflicts, attempts=2)
    with pytest.raises(ZeroDivisionError):
        retry_conflicts(lambda: 1 / 0, conflicts)


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Runtime(Settings(home=tmp_path_factory.mktemp("kafka"), kafka=None, redis=None), roles=()) as runtime:
        yield runtime.kafka


@pytest.mark.slow
def test_archive_maintenance_deletion_and_another_appender_at_once_lose_and_double_nothing(spark: Any, kafka: str, tmp_path: Path) -> None:
    """P18. The archive is another process, the others are threads of this one."""
    from delta.tables import DeltaTable

    settings, ledger, over = Settings(home=tmp_path), Ledger(kafka), threading.Event()
    ledger.publish(TRANSACTIONS, [b"stays", b"doomed", b"doomed", b"doomed", b"doomed"])
    archive(settings, kafka, spark)
    path = bronze_path(settings)
    conflicts: Counter[str] = Counter()
    rounds: Counter[str] = Counter()
    deleted: set[tuple[int, int]] = set()
    raised: list[BaseException] = []

    def publish() -> None:
        ledger.publish(TRANSACTIONS, [b"stays", b"doomed"])
        ledger.publish(OUTCOMES, [b"stays"])
        over.wait(0.2)

    def compact() -> None:
        conflicts.update(maintain(settings, spark=spark).conflicts)

    def delete() -> None:
        table = DeltaTable.forPath(spark, path)
        doomed = table.toDF().where("value = 'doomed'").select("partition", "offset").limit(2).collect()
        for row in doomed:
            retry_conflicts(lambda row=row: DeltaTable.forPath(spark, path).delete(
                f"topic = '{TRANSACTIONS}' and partition = {row.partition} and offset = {row.offset}"), conflicts)
            deleted.add((row.partition, row.offset))

    def add() -> None:
        number = rounds["add"]
        spark.sql(f"SELECT 'backfill' AS topic, 0 AS partition, {number}L AS offset, 0L AS arrival_ms, CAST('stays' AS BINARY) AS value"
                  ).write.format("delta").mode("append").save(path)
        over.wait(2)  # else it is most of the load, and the others come to nothing

    def forever(work: Callable[[], None]) -> None:
        while not over.is_set():
            try:
                work()
            except BaseException as error:
                raised.append(error)
                return
            rounds[work.__name__] += 1

    threads = [threading.Thread(target=forever, args=(work,)) for work in (publish, compact, delete, add)]
    delete()  # once for what is cold
    began = time.monotonic()
    delete()
    pause_s = max(5, round(1.5 * (time.monotonic() - began)))  # of three deletions; without one none is ever faster than the next append
    process, said = start(tmp_path, kafka, "--continuous", str(pause_s))
    try:
        for thread in threads:
            thread.start()
        eventually(lambda: raised or process.poll() is not None or (
            conflicts.total() >= 3 and min(rounds[name] for name in ("compact", "delete", "add")) >= 5
            and said.read_text().count('"rows"') >= 5), timeout_s=1_800)
        process.terminate()
        over.set()
        assert process.wait(120) == 0, (tmp_path / "errors").read_text()
    finally:
        over.set()
        kill(process)
        for thread in threads:
            thread.join()
    assert raised == []
    print(dict(rounds), dict(conflicts))
    assert conflicts.total() >= 3

    archive(settings, kafka, spark)
    rows = Counter((row.topic, row.partition, row.offset) for row in spark.read.format("delta").load(path).collect())
    gone = {(TRANSACTIONS, *place) for place in deleted}
    assert gone
    assert set(rows.values()) == {1}
    assert rows.keys() == set(ledger.acknowledged) - gone | {("backfill", 0, number) for number in range(rounds["add"])}


@pytest.mark.slow
def test_the_archive_keeps_its_files_and_checkpoints_few(spark: Any, kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, few = 7, 4

    def small_files(home: Path, together: int) -> int:
        monkeypatch.setitem(archiving.WRITING, "spark.databricks.delta.autoCompact.minNumFiles", str(together))
        monkeypatch.setitem(archiving.WRITING, "spark.sql.streaming.minBatchesToRetain", "3")
        settings = Settings(home=home)
        for _ in range(number):
            Ledger(kafka).publish(OUTCOMES, [b"{}"] * 4)
            archive(settings, kafka, spark)
        offsets = list((home / "tables/_checkpoints/bronze/sources/offsets").glob("[0-9]*"))
        assert len(offsets) <= 3 + 2
        return figures(spark, bronze_path(settings)).small_files

    assert small_files(tmp_path / "kept", few) < number <= small_files(tmp_path / "control", 1000)
