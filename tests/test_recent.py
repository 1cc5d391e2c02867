"""Served vectors that stand for the days of the week which a model's test rows lack."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import deltalake
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from xxhash import xxh3_64_intdigest

from feature_repo.archive_table import bronze_path, control_path
from feature_repo.reference import build_reference
from feature_repo.views import DAY_MS
from jobs.recent import Served, Smallest, recent
from schemas.fraud import PREDICTIONS, Prediction
from schemas.monitoring import DECISIONS, RetrainDecision, SignalSeen
from schemas.settings import Settings
from tests.log_world import HEADERS
from tests.monitor_world import NAMES, POLICY, SPEC, START, THRESHOLD, WINDOW, Change, draw, make_stream

BRONZE = pa.schema({"topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "arrival_ms": pa.int64(), "key": pa.binary(),
                    "value": pa.binary(), "headers": HEADERS})
PER_WINDOW, WINDOWS = 100, 28
ECHO = replace(SPEC, drift=replace(POLICY, echo_ms=WINDOW))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A week of predictions, one in ten of the third window degraded, those of the fourth published twice; in the sixth events were lost,
    in the ninth they came late, nobody judged the twelfth, and the fourteenth had too few to be judged by their values."""
    settings, rows = Settings(home=tmp_path_factory.mktemp("recent")), []
    stream = make_stream(WINDOWS, PER_WINDOW, change=Change(2, 3, degraded=0.1))
    for partition, log in enumerate(stream.predictions):
        for record in log:
            made = msgspec.structs.replace(msgspec.json.decode(record.value, type=Prediction), service_hash=SPEC.service.definition_hash)
            again = 2 if made.arrival_ms // WINDOW == START // WINDOW + 3 else 1
            rows += again * [(PREDICTIONS, partition, record.offset, made.arrival_ms, msgspec.json.encode(made))]
    rows.append((PREDICTIONS, 0, len(rows), START, b"{"))
    columns = {"topic": 0, "partition": 1, "offset": 2, "arrival_ms": 3, "value": 4}
    made_of: Any = [pa.array([row[columns[field.name]] for row in rows], field.type) if field.name in columns
                    else pa.nulls(len(rows), field.type) for field in BRONZE]
    deltalake.write_deltalake(bronze_path(settings), pa.table(made_of, BRONZE), partition_by=["topic"])
    special: dict[tuple[int, str], Any] = {(5, "volume"): "ALARM", (8, "late"): "ALARM", (13, "null-share"): "INSUFFICIENT_DATA"}
    decisions = [RetrainDecision(f"d{i}", "fraud", "1", START + (i + 1) * WINDOW, "policy", "OK", False, "", None, [], "", 0, "windows", 0,
                                 [SignalSeen(name, "feed", "", status, 0.0, 1.0, 0.0, 100) for name in ("volume", "late", "null-share")
                                  for status in [special.get((i, name), "OK")]], {})
                 for i in range(WINDOWS) if i != 11]
    values = [*map(msgspec.json.encode, decisions), b"", b"{}", b"\xff"]
    said = {"topic": [DECISIONS] * len(values), "offset": list(range(len(values))), "value": values}
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
    assert found[3:5] == [PER_WINDOW] * 2, "each once"
    assert found[5:8] == [0, 0, PER_WINDOW], "without the windows of lost events and their echo"
    assert found[8:13] == [0, PER_WINDOW, PER_WINDOW, 0, PER_WINDOW], "late events echo in none; what nobody judged is not there"
    assert found[13:] == [0] + [PER_WINDOW] * 6 + [0] * 8, "of values that could not be judged none, nor of what came later"
    half = by_window(recent(home, ECHO, START + WINDOW // 2, START + 5 * WINDOW // 2)[0])
    assert half == [0, PER_WINDOW] + [0] * (WINDOWS - 2), "half a window is none"
    other = replace(ECHO, service=replace(ECHO.service, event_columns=("event_time",)))
    assert len(recent(home, other, START, START + 20 * WINDOW)[0]) == 0, "vectors of other definitions"
    some, again = (recent(home, ECHO, START, START + WINDOWS * WINDOW, most=700)[0] for _ in range(2))
    assert 600 < len(some) <= 700
    assert np.array_equal(some, again)


def test_a_sample_is_the_same_in_any_order_and_holds_little() -> None:
    every = [Served(f"p{i}", i, "hash", False, [float(i), None]) for i in range(2_000)]
    copies = [msgspec.structs.replace(one, arrival_ms=one.arrival_ms + 1) for one in every[::3]]
    samples = []
    for seed in range(3):
        mixed = [*every, *copies]
        np.random.default_rng(seed).shuffle(mixed)  # type: ignore[arg-type]
        smallest = Smallest(100)
        for start in range(0, len(mixed), 50):
            smallest.add(mixed[start:start + 50])
            assert len(smallest._held) <= 200
        samples.append(smallest.chosen())
    assert samples[0] == samples[1] == samples[2]
    assert len(samples[0]) == 100 == len({one.prediction_id for one in samples[0]})
    assert samples[0] == sorted(every, key=lambda one: xxh3_64_intdigest(one.prediction_id.encode()))[:100]


def test_nothing_is_known_of_windows_where_no_decision_is_archived(home: Settings, tmp_path: Path) -> None:
    shutil.copytree(bronze_path(home), bronze_path(Settings(home=tmp_path)))
    assert len(recent(Settings(home=tmp_path), ECHO, START, START + WINDOWS * WINDOW)[0]) == 0


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
