"""A file of history with the loop closed: the first model is trained while the clock waits; old and new are compared on what was served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feature_repo.fraud import FRAUD, USE_CASE
from feature_repo.views import DAY_MS
from schemas.errors import SettingsError
from schemas.settings import Settings
from services.cli import main
from services.inputs import event_rows
from services.loop_history import compare_served, read_history, table
from services.planting import parse_plant, planted
from services.rehearsal import Stage
from services.replaying import first_periods, in_lockstep
from services.runtime.embedded import Runtime
from services.served_rows import ServedRows, read_served
from services.world import World

STAGE = Stage(days=42, cards=400, terminals=150)
FIRST = first_periods("2025-01-14..2025-01-18", "2025-01-26..2025-01-28")
LIVE_DAY, CONCEPT_DAY = 30, 31
HOLD_MS = STAGE.at_ms(LIVE_DAY)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str, dict[str, Any]]]:
    settings = Settings(home=tmp_path_factory.mktemp("history"), time="replay", kafka=None, redis=None, spark_memory="768m")
    world = World(STAGE.seed, STAGE.cards, STAGE.terminals, STAGE.start_ms)
    rows = planted((event_rows(batch) for batch in world.days(STAGE.days)), [parse_plant(f"concept@{CONCEPT_DAY}", STAGE.start_ms)], 7)
    with Runtime(settings) as runtime:
        in_lockstep(settings, USE_CASE, rows, source="/test", total=None, step_ms=DAY_MS // 8, drain=True, loop=True, first=FIRST)
        yield settings, runtime.kafka, read_history(settings, runtime.kafka, FRAUD, 7)


@pytest.mark.slow
def test_the_first_model_goes_live_as_soon_as_its_labels_are_known(replayed: tuple[Settings, str, dict[str, Any]]) -> None:
    _, _, found = replayed
    print(table(found))
    first = found["releases"][0]
    assert (first["epoch"], first["by"], first["at_ms"]) == (1, "replay", HOLD_MS)
    assert all(each["at_ms"] > HOLD_MS for each in found["alarms"] if each["family"] != "feed")


@pytest.mark.slow
def test_what_was_served_has_met_its_outcome_and_a_second_first_model_is_refused(replayed: tuple[Settings, str, dict[str, Any]]) -> None:
    settings, kafka, found = replayed
    assert len(found["releases"]) == 1 + sum(each["ended"] == "promoted" for each in found["retrains"])
    served = read_served(kafka, FRAUD, [(HOLD_MS, HOLD_MS + DAY_MS)])
    assert len(served.label) == len(served.between(HOLD_MS, HOLD_MS + DAY_MS).label) > 0, "the replay drained"
    with pytest.raises(SettingsError, match="champion already"):
        in_lockstep(settings, USE_CASE, iter(()), source="/test", total=None, step_ms=DAY_MS // 8, drain=True, loop=True, first=FIRST)


def test_old_and_new_are_compared_on_the_same_rows() -> None:
    random = np.random.default_rng(0)
    label = (random.random(2_000) < 0.1).astype(float)
    x = np.stack([label + random.normal(0, 0.5, 2_000), random.normal(size=2_000)], 1)
    rows = ServedRows(np.arange(2_000), np.arange(2_000) % 400, x, label)
    good, blind = SimpleNamespace(score=lambda x: x[:, 0]), SimpleNamespace(score=lambda x: x[:, 1])
    said = {pair: found["says"] for pair, found in (("good blind", compare_served(rows, good, blind)),
                                                    ("blind good", compare_served(rows, blind, good)),
                                                    ("good good", compare_served(rows, good, good))) if found is not None}
    assert said == {"good blind": "better", "blind good": "worse", "good good": "not shown to differ"}
    unlabelled = ServedRows(rows.predicted_ms, rows.subject, x, np.full(2_000, np.nan))
    assert compare_served(unlabelled.between(0, 2_000), good, blind) is None


def test_train_and_test_belong_together_and_to_simulated_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = ["--train", "2025-01-14..2025-01-18"]
    for wrong in (days, [*days, "--test", "2025-01-26..2025-01-28", "--rate", "5"]):
        assert main(["replay", str(tmp_path / "none.csv"), *wrong]) == SettingsError.exit_code
        assert "belong together" in capsys.readouterr().err
