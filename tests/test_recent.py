"""Served vectors that stand for the days of the week which a model's test rows lack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import deltalake
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from feature_repo.archive_table import bronze_path, control_path
from feature_repo.reference import build_reference
from feature_repo.views import DAY_MS
from jobs.recent import recent
from schemas.fraud import PREDICTIONS, Prediction
from schemas.monitoring import DECISIONS, RetrainDecision
from schemas.settings import Settings
from tests.log_world import HEADERS
from tests.monitor_world import NAMES, POLICY, SPEC, START, THRESHOLD, WINDOW, Change, draw, make_stream

BRONZE = pa.schema({"topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "arrival_ms": pa.int64(), "key": pa.binary(),
                    "value": pa.binary(), "headers": HEADERS})
PER_WINDOW, WINDOWS = 100, 28
ECHO = replace(SPEC, drift=replace(POLICY, echo_ms=WINDOW))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A week of predictions, one in ten of the third window degraded; in the sixth the feed was at fault."""
    settings, rows = Settings(home=tmp_path_factory.mktemp("recent")), []
    stream = make_stream(WINDOWS, PER_WINDOW, change=Change(2, 3, degraded=0.1))
    for partition, log in enumerate(stream.predictions):
        for record in log:
            made = msgspec.structs.replace(msgspec.json.decode(record.value, type=Prediction), service_hash=SPEC.service.definition_hash)
            rows.append((PREDICTIONS, partition, record.offset, made.arrival_ms, msgspec.json.encode(made)))
    rows.append((PREDICTIONS, 0, len(rows), START, b"{"))
    columns = {"topic": 0, "partition": 1, "offset": 2, "arrival_ms": 3, "value": 4}
    made_of: Any = [pa.array([row[columns[field.name]] for row in rows], field.type) if field.name in columns
                    else pa.nulls(len(rows), field.type) for field in BRONZE]
    deltalake.write_deltalake(bronze_path(settings), pa.table(made_of, BRONZE), partition_by=["topic"])
    reasons = ["pipeline: volume" if i == 5 else "no alarm" for i in range(WINDOWS)]
    decisions = [RetrainDecision(f"d{i}", "fraud", "1", START + (i + 1) * WINDOW, "policy", "OK", False, reason, None, [], "", 0, "windows",
                                 0, [], {}) for i, reason in enumerate(reasons)]
    said = {"topic": [DECISIONS] * WINDOWS, "offset": list(range(WINDOWS)), "value": [msgspec.json.encode(each) for each in decisions]}
    deltalake.write_deltalake(control_path(settings), pa.table(said))
    return settings


def by_window(times: Any) -> list[int]:
    return np.bincount((times - START) // WINDOW, minlength=WINDOWS).tolist()


def test_what_was_served_by_a_sound_feed_is_there_and_nothing_else(home: Settings) -> None:
    times, features = recent(home, ECHO, START + WINDOW, START + 20 * WINDOW)
    assert features.shape == (len(times), len(NAMES))
    assert np.isnan(features).any()
    found = by_window(times)
    assert found[:2] == [0, PER_WINDOW]
    assert 70 < found[2] < PER_WINDOW, "without those that were degraded"
    assert found[3:] == [PER_WINDOW] * 2 + [0] * 2 + [PER_WINDOW] * 13 + [0] * 8, "without the fault, its echo, and what came later"
    other = replace(ECHO, service=replace(ECHO.service, event_columns=("event_time",)))
    assert len(recent(home, other, START, START + 20 * WINDOW)[0]) == 0, "vectors of other definitions"
    some = recent(home, ECHO, START, START + WINDOWS * WINDOW, most=700)[0]
    assert 500 < len(some) < 900


def test_they_stand_for_cells_of_the_week_that_tested_rows_leave_thin() -> None:
    random = np.random.default_rng(3)
    tested, _, labels = draw(random, 3_000)
    scores = random.random(3_000)
    times = START + 4 * DAY_MS + np.arange(3_000) * (2 * DAY_MS // 3_000)  # a Monday and a Tuesday: eight cells, 375 rows each
    others, _, _ = draw(random, 21_000)
    later = START + 7 * DAY_MS + np.arange(21_000) * (7 * DAY_MS // 21_000)
    given: Any = {"features": tested, "scores": scores, "threshold": THRESHOLD, "labels": labels.astype(float), "event_time": times,
                  "predicted_ms": times}
    alone = build_reference(SPEC, "1", **given)
    both = build_reference(SPEC, "1", **given, others=(others, random.random(21_000), later))
    n = [[sum(cell[0]) for cell in each.counts] for each in (alone, both)]
    assert n[0] == [375] * 8 + [0] * 20
    assert n[1] == [750] * 28, "where both are thin, whichever has more"
    assert [sum(cell) for cell in both.score_counts] == n[1]
    assert (both.edges, both.losses, both.labelled, both.n, both.days) == (alone.edges, alone.losses, alone.labelled, alone.n, alone.days)
