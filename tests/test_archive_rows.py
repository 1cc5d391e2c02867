"""What Spark's Python processes read of the archive is what the JVM reads of it, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from feature_repo.archive_table import FOR_EVER, bronze_path, open_archive
from feature_repo.fraud import SERVICE, VIEWS
from feature_repo.views import DAY_MS
from jobs import archive_rows
from jobs.archive_rows import ArchiveRows
from jobs.events import bronze, events, newest_version
from schemas.settings import Settings
from tests.log_world import DAYS, START, World, hostile_world

NUMBERS = {"transactions": ("amount_minor",), "outcomes": ("revision", "fraud")}
WHOLE = (0, FOR_EVER)


@pytest.fixture(scope="module")
def world() -> World:
    return hostile_world(7, size=400)


@pytest.fixture(scope="module")
def home(spark: Any, world: World, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    spark.createDataFrame(world.bronze()).repartition(5).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    return settings


@pytest.mark.parametrize("sets", [True, False])
@pytest.mark.parametrize("period", [WHOLE, (START + 10 * DAY_MS, START + 20 * DAY_MS)], ids=["whole", "period"])
@pytest.mark.parametrize("until_ms", [FOR_EVER, START + 25 * DAY_MS], ids=["all", "until"])
@pytest.mark.parametrize("source", NUMBERS)
def test_both_ways_of_reading_give_the_same_rows(spark: Any, world: World, home: Settings, monkeypatch: pytest.MonkeyPatch, source: str,
                                                 until_ms: int, period: tuple[int, int], sets: bool) -> None:
    monkeypatch.setattr(archive_rows, "TASK_BYTES", 1 << 12)  # several tasks
    asked: Any = (source, VIEWS, NUMBERS[source], period)
    archive = bronze(spark, home, newest_version(spark, home))
    by_jvm = events(archive.where(archive.arrival_ms <= until_ms), *asked, sets=sets)
    by_python = ArchiveRows(spark, open_archive(home), until_ms).events(*asked, sets=sets)
    assert by_python.dtypes == by_jvm.dtypes
    assert by_python.rdd.getNumPartitions() > 1
    found = sorted(by_python.collect())
    assert found == sorted(by_jvm.collect())
    if period == WHOLE and until_ms == FOR_EVER:
        assert len(found) == sum(record.event is not None for record in world.of(source)) < len(world.of(source))
    else:
        assert 0 < len(found) < sum(record.event is not None for record in world.of(source))


def test_a_topic_that_holds_nothing_has_no_rows(spark: Any, home: Settings) -> None:
    nothing = ArchiveRows(spark, open_archive(home), START - DAYS * DAY_MS).events("transactions", SERVICE.views)
    assert nothing.count() == 0
