"""The false-alarm budget, and the scores of alarms against the truth."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DefinitionError
from services.cli import main
from streams import budget
from streams.budget import DAY_MS, Budget, solve, verify
from streams.detectors.losses import LossBatch, LossDetector, LossReference
from streams.episodes import Change, score_alarms

PER_DAY = 500


def stretch(losses: Any) -> LossBatch:
    return LossBatch(losses.astype(float), np.arange(len(losses)) * (DAY_MS // PER_DAY))


def detector() -> LossDetector:
    return LossDetector(LossReference("v1", (1_000.0,), (20_000,)), solve(Budget(), {"losses": PER_DAY})["losses"])


def test_examples_run() -> None:
    assert doctest.testmod(budget) == (0, 1)


def test_eight_clean_weeks_keep_the_budget_and_bound_the_rate_at_4_8() -> None:
    clean = stretch(np.random.default_rng(1).random(56 * PER_DAY) < 0.05)
    found = verify(detector(), clean, Budget(), block=PER_DAY)
    assert found.kept
    assert (found.arl, found.cluster) == (45_000, 1)
    assert found.rate <= 1
    assert (found.own_alarms, round(found.own_bound, 1)) == (0, 4.8)


def test_losses_that_come_in_bursts_are_counted_as_fewer() -> None:
    """Negative control: blocks of one loss tear the bursts apart and see nothing."""
    random = np.random.default_rng(3)
    bursts = np.repeat(random.random(56 * PER_DAY // 7) < 0.042, 7)
    torn, whole = (verify(detector(), stretch(bursts), Budget(), block=block) for block in (1, PER_DAY))
    assert (torn.cluster, torn.kept) == (1, True)
    assert torn.own_alarms > 10
    assert whole.cluster in (4, 8)
    assert whole.kept
    assert whole.rate <= 1


def test_a_stretch_worse_than_the_reference_keeps_no_budget() -> None:
    found = verify(detector(), stretch(np.random.default_rng(1).random(56 * PER_DAY) < 0.08), Budget(), block=PER_DAY, streams=3)
    assert not found.kept
    with pytest.raises(DefinitionError, match="too few"):
        verify(detector(), stretch(np.zeros(100)), Budget(), block=PER_DAY)


def test_a_score_in_the_field_s_words() -> None:
    """Alarms |  changes [ :   .|...[..  ].|..[=====  """
    score = score_alarms([50, 110, 130, 420], [Change(100, 200), Change(300, 350)], 0, 1000)
    assert (score.detected, score.missed, score.false_alarms, score.repeated) == (1, 1, 2, 1)
    assert score.delays == (10, None)
    assert score.clean == 850
    assert score.false_alarm_rate == 2 / 850
    assert (score.precision, score.recall) == (1 / 3, 1 / 2)
    assert score.f1 == pytest.approx(2 / 5)


def test_a_change_that_stays_covers_all_until_the_next_or_the_horizon() -> None:
    changes = [Change(100), Change(500)]
    assert score_alarms([499, 500], changes, 0, 1000).delays == (399, 0)
    short = score_alarms([499, 500], changes, 0, 1000, horizon=50)
    assert (short.detected, short.false_alarms, short.clean) == (1, 1, 900)
    nothing = score_alarms([], [], 0, 10)
    assert (nothing.f1, nothing.false_alarm_rate, nothing.missed_detection_rate) == (None, 0.0, None)
    for bad in ([Change(2000)], [Change(5, 5)], [Change(5), Change(5)]):
        with pytest.raises(DefinitionError, match="a change from"):
            score_alarms([], bad, 0, 1000)


@given(st.lists(st.integers(0, 1000)), st.sets(st.integers(0, 999), max_size=6), st.integers(1, 1000) | st.none())
def test_every_alarm_and_every_change_is_counted_once(alarms: list[int], starts: set[int], horizon: int | None) -> None:
    score = score_alarms(alarms, [Change(start) for start in starts], 0, 1000, horizon)
    assert score.detected + score.false_alarms + score.repeated == len(alarms)
    assert score.detected + score.missed == len(starts) == len(score.delays)
    assert 0 <= score.clean <= 1000


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["drift", "evaluate", *arguments, "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out or out.err)


def test_the_command_scores_each_detector_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarms, changes = tmp_path / "alarms.ndjson", tmp_path / "changes.csv"
    alarms.write_text('{"at": "2026-01-03", "detector": "a"}\n{"at": "2026-01-11T00:00:00Z", "detector": "a"}\n'
                      '{"at": 1768003200000, "detector": "b"}\n')
    changes.write_text("start,end\n2026-01-10,2026-01-20\n")
    window = ("--from", "2026-01-01", "--until", "2026-02-01")
    code, found = evaluate(capsys, str(alarms), "--changes", str(changes), *window)
    assert code == 0
    assert {name: (s["detected"], s["false_alarms"], s["mean_delay"]) for name, s in found["scores"].items()} == {
        "a": (1, 1, 86_400_000), "b": (1, 0, 0)}
    code, found = evaluate(capsys, str(alarms), *window)
    assert found["scores"]["a"]["false_alarms"] == 2
    assert found["scores"]["b"]["false_alarms_per_90_days_bound"] == pytest.approx(90 * 4.7439 / 31, rel=1e-3)
    written = tmp_path / "alarms.csv"
    written.write_text("at,detector\n2026-01-03,a\n2026-01-11,a\n2026-01-10,b\n")
    assert evaluate(capsys, str(written), *window) == (code, found)
    silent = tmp_path / "silent.ndjson"
    silent.write_text("")
    headed = tmp_path / "headed.csv"
    headed.write_text("at,detector\n")
    assert evaluate(capsys, str(headed), *window)[1]["scores"]["alarms"]["alarms"] == 0
    code, found = evaluate(capsys, str(silent), "--from", "2026-01-01", "--until", "2026-02-26")
    assert (code, round(found["scores"]["alarms"]["false_alarms_per_90_days_bound"], 1)) == (0, 4.8)
    assert main(["drift", "evaluate", str(alarms)]) == 0
    assert "a" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", '{"when": 1}\n', '{"at": "soon"}\n', "nonsense\n"])
def test_a_file_without_alarms_or_times_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "alarms.ndjson"
    path.write_text(text)
    code, found = evaluate(capsys, str(path))
    assert code == 2
    assert found["hint"]
