"""What jobs tell of their runs: START and COMPLETE or FAIL, with what they read and wrote, one line each, and never at a job's cost."""

from __future__ import annotations

import json
import multiprocessing
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import deltalake
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.fraud import FRAUD
from feature_repo.views import DAY_MS
from jobs.lineage import lineage, run_id
from jobs.train import train
from jobs.training_set import build_training_set
from schemas.errors import JobError
from schemas.settings import Settings
from tests.log_world import START, hostile_world
from tests.test_retraining import days

WRITERS, EACH = 4, 60


def told(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((settings.home / "lineage").glob("*.ndjson")) for line in path.read_text().splitlines()]


def data(event: dict[str, Any], side: str) -> list[tuple[str, str, str | None]]:
    return [(each["namespace"], each["name"], each["facets"].get("version", {}).get("datasetVersion")) for each in event[side]]


@pytest.fixture
def archived(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path)
    deltalake.write_deltalake(bronze_path(settings), hostile_world(5).bronze(), partition_by=["topic"])
    return settings


def test_a_job_that_succeeds_tells_what_it_read_and_wrote_with_versions(archived: Settings) -> None:
    built = build_training_set(archived, FRAUD, START, START + 45 * DAY_MS, engine="process")
    begun, ended = told(archived)
    assert [begun["eventType"], ended["eventType"]] == ["START", "COMPLETE"]
    assert begun["run"]["runId"] == ended["run"]["runId"]
    assert (ended["job"]["namespace"], ended["job"]["name"]) == ("headrace", "training-set")
    assert data(ended, "inputs") == [("file", bronze_path(archived), "0")]
    assert data(ended, "outputs") == [("file", built.path, "0")]
    build_training_set(archived, FRAUD, START, START + 45 * DAY_MS, engine="process")
    assert data(told(archived)[-1], "outputs") == [("file", built.path, "1")], "the version that this run wrote"


def test_a_job_that_fails_tells_so_and_raises_what_it_raised(archived: Settings) -> None:
    built = build_training_set(archived, FRAUD, START, START + 45 * DAY_MS, engine="process")
    with pytest.raises(JobError, match="are known only from"):
        train(built.path, FRAUD, days(0, 3), days(4, 5), archived)
    begun, ended = told(archived)[2:]
    assert [(each["eventType"], each["job"]["name"]) for each in (begun, ended)] == [("START", "train"), ("FAIL", "train")]
    assert data(ended, "inputs") == [("file", built.path, "0")]
    assert data(ended, "outputs") == []
    assert "are known only from" in ended["run"]["facets"]["errorMessage"]["message"]


def test_events_are_as_openlineage_wants_them(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with lineage(settings, "outer", "own") as outer, lineage(settings, "inner") as inner:
        inner.reads_topics("broker:9092,other:9092", {"transactions": {"1": 5, "0": 2}})
        inner.reads_table("s3://bucket/tables/bronze", 7)
        inner.writes_sets("redis://:secret@store:6380/0", "card_spend@1")
    events = told(settings)
    assert [(each["job"]["name"], each["eventType"]) for each in events] == [
        ("outer", "START"), ("inner", "START"), ("inner", "COMPLETE"), ("outer", "COMPLETE")]
    for each in events:
        assert UUID(each["run"]["runId"])
        assert datetime.fromisoformat(each["eventTime"]).tzinfo is not None
        assert each["schemaURL"].startswith("https://openlineage.io/spec/")
        facets = [*each["run"]["facets"].values(), *each["job"]["facets"].values(),
                  *(facet for one in each["inputs"] for facet in one["facets"].values())]
        assert facets
        assert all(facet["_producer"].startswith("urn:headrace:") for facet in facets)
        assert all(facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/") for facet in facets)
    assert outer.id == run_id("outer", "own") == events[0]["run"]["runId"], "again the same run"
    assert events[2]["run"]["facets"]["parent"]["run"]["runId"] == outer.id
    assert data(events[2], "inputs") == [("kafka://broker:9092", "transactions", "0:2,1:5"), ("s3://bucket", "tables/bronze", "7")]
    assert data(events[2], "outputs") == [("redis://store:6380", "card_spend@1", None)]
    assert "secret" not in json.dumps(events)


def test_a_person_is_not_told_of_in_errors(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(JobError), lineage(settings, "erase", personal=True):
        raise JobError("nothing of card-17")
    assert told(settings)[-1]["run"]["facets"]["errorMessage"]["message"] == "JobError"


def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    """Each is longer than a buffer."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_tell, args=(str(tmp_path), who)) for who in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    events = told(Settings(home=tmp_path))
    assert min(len(json.dumps(each)) for each in events if each["eventType"] == "COMPLETE") > 20_000
    assert sorted(each["job"]["name"] for each in events) == sorted(f"{who}-{n}" for who in range(WRITERS) for n in range(EACH)
                                                                    for _ in range(2))


def test_lineage_that_cannot_be_told_fails_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lineage").write_text("in the way")
    with lineage(Settings(home=tmp_path), "parity"):
        done = True
    assert done
    assert [record.message.startswith("lineage of parity") for record in caplog.records] == [True, True]


def test_it_can_be_off_or_go_where_openlineage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lineage(Settings(home=tmp_path, lineage="off"), "parity"):
        pass
    assert not (tmp_path / "lineage").exists()
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps({"type": "file", "log_file_path": str(tmp_path / "there"), "append": True}))
    with lineage(Settings(home=tmp_path, lineage="openlineage"), "parity"):
        pass
    assert [json.loads(line)["eventType"] for line in (tmp_path / "there").read_text().splitlines()] == ["START", "COMPLETE"]
    assert not (tmp_path / "lineage").exists()


def _tell(home: str, who: int) -> None:
    settings = Settings(home=Path(home))
    for n in range(EACH):
        with lineage(settings, f"{who}-{n}") as run:
            for i in range(100):
                run.reads_file(f"/tables/{who}/{n}/{i}", i)
