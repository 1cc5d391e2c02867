"""The late ledger on real Delta, against the oracle: what would have been served had late records been in time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.bundle import Model
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.oracle import feature_values
from feature_repo.views import FeatureView
from jobs.late import Late, late
from schemas.errors import DefinitionError
from schemas.settings import Settings
from services.commands.late import table
from tests.log_world import PARTITIONS, Logged, World, hostile_world, serve
from tests.small_model import promote_small_model

pytestmark = pytest.mark.usefixtures("generated_code")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Settings, Model]:
    settings, world = Settings(home=tmp_path_factory.mktemp("home")), hostile_world(4)
    model = promote_small_model(settings.models, threshold=0.00194)  # amid the scores it gives here, so that decisions flip both ways
    serve(world, 4, model=model)
    deltalake.write_deltalake(bronze_path(settings), world.bronze(), partition_by=["topic"])
    return world, settings, model


def the_predictions(world: World) -> list[dict[str, Any]]:
    """Of each id the one with the lowest place."""
    placed = sorted((i % PARTITIONS, i, value) for i, value in enumerate(world.predictions))
    first: dict[str, dict[str, Any]] = {}
    for _, _, value in placed:
        prediction = json.loads(value)
        first.setdefault(prediction["prediction_id"], prediction)
    return list(first.values())


def of_view(world: World, view: FeatureView, scored: Logged, *, forgiven: bool) -> list[float]:
    assert scored.event is not None
    seen = []
    for r in world.of(view.source):
        if r.event is None or r.event[view.entity] != scored.event[view.entity]:
            continue
        if r.admitted(view):
            if r.order < scored.order:
                seen.append(r.record(view))
        elif forgiven and (r.event["event_time"], *r.order[1:]) < scored.order:
            seen.append(r.record(view))
    return feature_values(view, seen, scored.event["event_time"], scored.record(view) if view.source == SERVICE.source else None)


def would_be(world: World, prediction: dict[str, Any], views: tuple[FeatureView, ...]) -> list[float]:
    """The served vector with the features that differ, as the oracle has it."""
    served = [math.nan if x is None else x for x in prediction["features"]]
    scored = next(r for r in world.of("transactions")
                  if (r.partition, r.offset) == (prediction["source_partition"], prediction["source_offset"]))
    assert scored.event is not None
    changed = False
    for view in views:
        known, other = (of_view(world, view, scored, forgiven=forgiven) for forgiven in (False, True))
        for i, (a, b) in enumerate(zip(known, other, strict=True), SERVICE.view_slice(view).start):
            if not (a == b or (a != a and b != b)):
                served[i], changed = b, True
    if changed:
        x = {name: np.array([value]) for name, value in zip(SERVICE.feature_names, served, strict=True)}
        x |= {name: np.array([scored.event[name]]) for name in SERVICE.event_columns}
        served[-len(SERVICE.request):] = [float(feature.function(x)[0]) for feature in SERVICE.request]
    return served


def expected(world: World, model: Model, views: tuple[FeatureView, ...]) -> dict[str, tuple[float, bool, bool]]:
    """By id of what would have differed: the other score, the decision made, the other decision."""
    found = {}
    for prediction in the_predictions(world):
        served, other = [math.nan if x is None else x for x in prediction["features"]], would_be(world, prediction, views)
        if not np.array_equal(served, other, equal_nan=True):
            score = float(model.score(np.array([other]))[0])
            found[prediction["prediction_id"]] = (score, prediction["alert"], score >= prediction["threshold"])
    return found


@pytest.fixture(scope="module")
def ledger(spark: Any, told: tuple[World, Settings, Model]) -> Late:
    return late(told[1], FRAUD, spark=spark)


def test_what_would_have_differed_is_what_the_oracle_says(spark: Any, told: tuple[World, Settings, Model], ledger: Late) -> None:
    world, settings, model = told
    judged = expected(world, model, SERVICE.views)
    rows = {row.prediction_id: row for row in spark.read.format("delta").load(f"{settings.tables}/late/fraud").collect()}
    assert rows.keys() == judged.keys()
    assert 0 < len(judged) < ledger.judged == ledger.predictions == len(the_predictions(world))
    for one, (score, alert, would) in judged.items():
        assert (rows[one].alert, rows[one].would_alert) == (alert, would)
        assert rows[one].would_score == pytest.approx(score, abs=1e-7)
    assert (ledger.changed, ledger.decided) == (len(judged), len(judged))
    assert ledger.to_alert == sum(would and not alert for _, alert, would in judged.values())
    assert ledger.to_none == sum(alert and not would for _, alert, would in judged.values())
    assert min(ledger.to_alert, ledger.to_none) > 0
    assert sum(ledger.changed_by_feature.values()) == sum(len(row.features) for row in rows.values())
    assert all(example["differs"] for example in ledger.examples)
    assert ledger.examples[0]["alert"] != ledger.examples[0]["would_alert"], "those that flip come first"


def test_each_view_says_how_many_came_too_late_and_by_how_much(told: tuple[World, Settings, Model], ledger: Late) -> None:
    for view, of_ledger in zip(SERVICE.views, ledger.views, strict=True):
        valid = [r for r in told[0].of(view.source) if r.event is not None]
        by = [r.arrival_ms - r.event["event_time"] - view.allowed_lateness_ms for r in valid if not r.admitted(view) and r.event]
        assert (of_ledger.view, of_ledger.records, of_ledger.late) == (view.name, len(valid), len(by))
        assert sum(n for _, n in of_ledger.histogram) == len(by)
        if by:
            assert of_ledger.by_ms["max"] == max(by)
            assert min(by) <= of_ledger.by_ms["p50"] <= of_ledger.by_ms["p90"] <= max(by)
    assert ledger.views[0].late > 0
    assert f"{ledger.changed:,} of {ledger.judged:,}" in table(json.loads(json.dumps(ledger, default=lambda x: x.__dict__)))


def test_one_view_alone_changes_what_only_its_events_change(spark: Any, told: tuple[World, Settings, Model], ledger: Late) -> None:
    world, settings, model = told
    alone = late(settings, FRAUD, "card_spend", spark)
    assert [view.view for view in alone.views] == ["card_spend"]
    assert 0 < alone.changed == len(expected(world, model, SERVICE.views[:1])) < ledger.changed
    with pytest.raises(DefinitionError, match="reads no view 'nothing'"):
        late(settings, FRAUD, "nothing", spark)


def test_without_late_records_nothing_would_have_differed(spark: Any, told: tuple[World, Settings, Model], tmp_path: Path) -> None:
    """The control: the same log without them; nor is a decision told where the bundle is not there."""
    world, settings, _ = told
    punctual = World([r for r in world.records if r.event is None or all(r.admitted(v) for v in SERVICE.views if v.source == r.topic)],
                     world.predictions)
    home = Settings(home=tmp_path)
    deltalake.write_deltalake(bronze_path(home), punctual.bronze(), partition_by=["topic"])
    assert (late(home, FRAUD, spark=spark).changed, late(home, FRAUD, spark=spark).views[0].late) == (0, 0)
    alone = late(Settings(home=tmp_path / "alone", table_root=settings.tables), FRAUD, spark=spark)
    assert alone.changed > alone.decided == alone.to_alert == alone.to_none == 0
