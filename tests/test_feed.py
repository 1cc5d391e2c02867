"""The feed's sign ``scale``: another unit, not a value that many take."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.bins import count_columns
from feature_repo.reference import build_reference
from streams.monitors.feed import feed_verdicts
from tests.monitor_world import SPEC, START, THRESHOLD, draw


def crowd(before: list[float], after: list[float]) -> str:
    """The status of ``scale`` where values 0, 1, 2 .. were taken by these shares."""
    random = np.random.default_rng(9)
    features, scores, labels = draw(random, 20_000)
    features[:, 0] = random.choice(len(before), 20_000, p=before)
    times = START + np.arange(20_000)
    known = build_reference(SPEC, "1", features=features, scores=scores, threshold=THRESHOLD, labels=labels.astype(float), event_time=times,
                            predicted_ms=times)
    now = draw(random, 2_000)[0]
    now[:, 0] = random.choice(len(after), 2_000, p=after)
    found = feed_verdicts({"n": 2_000}, 0.0, count_columns(now, known.edges), known, {})
    return next(verdict.status for verdict in found if verdict.detector == "scale")


@pytest.mark.parametrize(("before", "after", "status"), [
    ([0.9, 0.1], [0.35, 0.65], "OK"), ([0.6, 0.3, 0.1], [0.2, 0.15, 0.65], "OK"), ([1 / 7] * 7, [0, 0, 0, 0, 0, 0, 1.0], "OK"),
    ([0.2, 0.2, 0.2, 0.2, 0.1, 0.04, 0.03, 0.03], [0, 0, 0, 0, 0, 0.3, 0.3, 0.4], "ALARM")],
    ids=["flag", "three", "weekday", "end"])
def test_a_value_that_many_take_is_no_other_scale(before: list[float], after: list[float], status: str) -> None:
    assert crowd(before, after) == status
