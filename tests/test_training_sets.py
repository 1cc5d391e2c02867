"""Training sets by Spark and in process: the same rows to the bit, from the files that matter, again and again."""

from __future__ import annotations

import json
import math
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deltalake
import pandas as pd
import pyarrow as pa
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.churn import CHURN
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.oracle import feature_values
from feature_repo.views import DAY_MS
from jobs.training_rows import open_training_set
from jobs.training_set import Engine, Mode, build_training_set
from schemas.churn import CANCELLATIONS, PURCHASES, REQUESTS
from schemas.errors import DefinitionError, FindingError, JobError
from schemas.settings import Settings
from tests.log_world import DAYS, HEADERS, START, World, hostile_world, serve

END = START + DAYS * DAY_MS
SEEDS = (1, 4, 5)
BRONZE = pa.schema({"topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "arrival_ms": pa.int64(), "key": pa.binary(),
                    "value": pa.binary(), "headers": HEADERS})


@pytest.fixture(scope="module")
def worlds() -> dict[int, World]:
    worlds = {seed: hostile_world(seed) for seed in SEEDS}
    for seed, world in worlds.items():
        serve(world, seed)
    return worlds


@pytest.fixture(scope="module")
def homes(spark: Any, worlds: dict[int, World], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Settings]:
    homes = {seed: Settings(home=tmp_path_factory.mktemp("home")) for seed in SEEDS}
    for seed, settings in homes.items():
        rows = spark.createDataFrame(worlds[seed].bronze())
        rows.coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    return homes


def table(path: str) -> pa.Table:
    found = deltalake.DeltaTable(path).to_pyarrow_table()
    return found.sort_by([("event_time", "ascending"), ("event_id", "ascending")])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["known", "ideal"])
@pytest.mark.parametrize(("first", "days", "as_of"), [(0, DAYS, None), (30, 3, None), (10, 15, 33)])
def test_both_engines_give_the_same_rows(spark: Any, homes: dict[int, Settings], seed: int, mode: Mode, first: int, days: int,
                                         as_of: int | None) -> None:
    start = START + first * DAY_MS
    period = (start, start + days * DAY_MS, mode)
    as_of_ms = None if as_of is None else START + as_of * DAY_MS
    by_spark = build_training_set(homes[seed], FRAUD, *period, spark, as_of_ms, engine="spark")
    rows = table(by_spark.path)
    in_process = build_training_set(homes[seed], FRAUD, *period, None, as_of_ms, engine="process")
    assert in_process.path == by_spark.path
    assert START - DAY_MS < by_spark.manifest["history_from_ms"] < START + 2 * DAY_MS
    assert rows.num_rows > 5
    assert table(in_process.path).equals(rows)
    told = {"engine", "seconds"}
    assert {k: v for k, v in by_spark.manifest.items() if k not in told} == {k: v for k, v in in_process.manifest.items() if k not in told}


@pytest.mark.parametrize("engine", ["spark", "process"])
def test_a_set_that_cannot_be_built_leaves_the_former_one(spark: Any, homes: dict[int, Settings], engine: Engine) -> None:
    period = (START + 31 * DAY_MS, START + 34 * DAY_MS)
    own = spark if engine == "spark" else None
    built = build_training_set(homes[SEEDS[0]], FRAUD, *period, "known", own, engine=engine)
    before = table(built.path)
    with pytest.raises(FindingError, match="no transaction"):
        build_training_set(homes[SEEDS[0]], FRAUD, *period, "known", own, START, engine=engine)
    assert before.num_rows
    assert table(built.path).equals(before)
    assert json.loads(Path(built.path, "_manifest.json").read_text())["content_hash"] == built.manifest["content_hash"]


@pytest.mark.parametrize("engine", ["spark", "process"])
def test_a_manifest_of_another_build_is_told(spark: Any, homes: dict[int, Settings], engine: Engine,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def build(as_of_ms: int) -> str:
        own = spark if engine == "spark" else None
        return build_training_set(homes[SEEDS[1]], FRAUD, START, START + 3 * DAY_MS, "known", own, as_of_ms, engine=engine).path

    path = build(END)
    assert open_training_set(path, FRAUD).origin["table"] == Path(path).name

    def killed(*_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as between:
        between.setattr("jobs.training_set.write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            build(START + 10 * DAY_MS)
    with pytest.raises(JobError, match="not of this build"):
        open_training_set(path, FRAUD)
    build(END)
    assert open_training_set(path, FRAUD).origin["as_of_ms"] == END


def shop(seed: int) -> pa.Table:
    """Purchases, credit notes and requests to score; late, doubled, and requests of one id for two customers."""
    r, last, rows = random.Random(seed), START + 300 * DAY_MS, []
    for i in range(500):
        topic = r.choice([PURCHASES, PURCHASES, CANCELLATIONS, REQUESTS])
        time = START + r.randrange(300) * DAY_MS + r.choice([0, 0, r.randrange(DAY_MS)])
        event = {"event_id": f"e{i}", "event_time": time, "customer_id": f"c{r.randrange(40)}"}
        if topic != REQUESTS:
            event |= {"invoice": f"i{r.randrange(90)}", "product": f"p{r.randrange(9)}", "quantity": 2, "unit_price_minor": i}
        for copy in range(r.choice([1, 1, 1, 2])):
            other = {**event, "customer_id": f"c{r.randrange(40)}"} if copy and topic == REQUESTS else event
            arrival = min(time + r.choice([0, 0, 5, DAY_MS, 3 * DAY_MS]), last)
            rows.append((topic, 0, len(rows), arrival, b"k", json.dumps(other).encode(), None))
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, BRONZE, strict=True)], BRONZE)


@pytest.mark.parametrize("mode", ["known", "ideal"])
def test_both_engines_give_the_same_rows_where_labels_are_absences(spark: Any, tmp_path: Path, mode: Mode) -> None:
    settings = Settings(home=tmp_path)
    spark.createDataFrame(shop(3)).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    by_spark = build_training_set(settings, CHURN, START, START + 280 * DAY_MS, mode, spark, engine="spark")
    rows = table(by_spark.path)
    in_process = build_training_set(settings, CHURN, START, START + 280 * DAY_MS, mode, engine="process")
    assert table(in_process.path).equals(rows)
    assert in_process.manifest["content_hash"] == by_spark.manifest["content_hash"]
    assert {0, 1} == set(rows["label"].to_pylist())
    assert 0 < in_process.manifest["unlabelled"] < rows.num_rows


@pytest.fixture(scope="module")
def stores(homes: dict[int, Settings], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    from feature_repo import feast_store

    stores = {seed: feast_store.open_store(tmp_path_factory.mktemp("feast"), tables=settings.tables) for seed, settings in homes.items()}
    for store in stores.values():
        feast_store.apply(store)
    return stores


def history(store: Any, rows: pd.DataFrame, mode: str = "known", **asked: Any) -> pd.DataFrame:
    from feature_repo.feast_offline import reading_history

    with reading_history(mode):
        return store.get_historical_features(entity_df=rows, **{"features": store.get_feature_service("fraud"), **asked}).to_df()


def look_ups(seed: int, n: int) -> pd.DataFrame:
    """Cards and terminals at any time, some never seen, some rows twice, in no order."""
    r = random.Random(seed)
    rows = [(START + r.randrange(-DAY_MS, (DAYS + 20) * DAY_MS), f"c{r.randrange(5)}", f"p{r.randrange(5)}") for _ in range(n)]
    rows += r.sample(rows, n // 4)
    r.shuffle(rows)
    return pd.DataFrame({"event_timestamp": pd.to_datetime([row[0] for row in rows], unit="ms", utc=True), "note": range(len(rows)),
                         "card_id": [row[1] for row in rows], "terminal_id": [row[2] for row in rows]})


def as_asked(built: pd.DataFrame) -> pd.DataFrame:
    times = pd.to_datetime(built["event_time"], unit="ms", utc=True)
    return built[["event_id", "card_id", "terminal_id"]].assign(event_timestamp=times)


def equal(a: float | None, b: float) -> bool:
    return (a is None or a != a) if math.isnan(b) else a == b


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["known", "ideal"])
def test_feast_answers_as_a_read_at_that_time_would_have(stores: dict[int, Any], worlds: dict[int, World], seed: int, mode: str) -> None:
    asked = look_ups(seed, 120)
    found = history(stores[seed], asked, mode)
    assert found["note"].tolist() == asked["note"].tolist(), "one row out per row in, in order"
    assert list(found.columns) == [*asked.columns, *SERVICE.feature_names[:-len(SERVICE.request)]]
    for row in found.to_dict("records"):
        t = row["event_timestamp"].value // 1_000_000
        for view in SERVICE.views:
            seen = [r.record(view) for r in worlds[seed].of(view.source) if r.admitted(view) and r.event is not None
                    and r.event[view.entity] == row[view.entity] and (mode == "ideal" or r.arrival_ms <= t)]
            for feature, value in zip(view.features, feature_values(view, seen, t), strict=True):
                assert equal(row[feature.name], value), (feature.name, row)


@pytest.mark.parametrize("mode", ["known", "ideal"])
def test_feast_gives_the_training_sets_rows_for_its_events(homes: dict[int, Settings], stores: dict[int, Any], mode: Mode) -> None:
    built = table(build_training_set(homes[1], FRAUD, START, END, mode, engine="process").path).to_pandas()
    asked = as_asked(built).sample(frac=1.5, replace=True, random_state=3, ignore_index=True)
    found = history(stores[1], asked, mode)
    expected = asked[["event_id"]].merge(built.drop_duplicates("event_id"), on="event_id", how="left")
    assert len(found) == len(asked) > 300
    for name in SERVICE.feature_names[:-len(SERVICE.request)]:
        assert all(equal(a, b) for a, b in zip(found[name], expected[name], strict=True)), name


@pytest.mark.parametrize("mode", ["known", "ideal"])
def test_feast_gives_the_same_on_spark(spark: Any, homes: dict[int, Settings], stores: dict[int, Any], mode: str,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of more than HEADRACE_PROCESS_ROWS records go through the function that feature_store.yaml names."""
    from jobs import historical

    events = table(build_training_set(homes[4], FRAUD, START, END, "known", engine="process").path).to_pandas().head(60)
    asked = pd.concat([look_ups(2, 60), as_asked(events), as_asked(events.head(5))]).sample(frac=1, random_state=1, ignore_index=True)
    in_process = history(stores[4], asked, mode)
    monkeypatch.setenv("HEADRACE_PROCESS_ROWS", "10")
    monkeypatch.setattr(historical, "use_session", lambda *_: nullcontext(spark))
    pd.testing.assert_frame_equal(history(stores[4], asked, mode), in_process, check_exact=True)


def test_feast_takes_names_aliases_and_numbers(stores: dict[int, Any]) -> None:
    from feast import FeatureService

    asked = look_ups(1, 20)
    whole = history(stores[1], asked)
    some = history(stores[1], asked, features=["terminal_risk:terminal_count_30d", "card_spend:card_count_7d"], full_feature_names=True)
    assert list(some.columns)[-2:] == ["terminal_risk__terminal_count_30d", "card_spend__card_count_7d"]
    assert some["card_spend__card_count_7d"].tolist() == whole["card_count_7d"].tolist()
    payers = FeatureService(name="payers", features=[stores[1].get_feature_view("card_spend").with_name("payer").with_join_key_map(
        {"card_id": "payer_id"})])
    stores[1].apply([payers], partial=True)
    renamed = history(stores[1], asked.rename(columns={"card_id": "payer_id"}), features=payers)
    assert renamed["card_count_7d"].tolist() == whole["card_count_7d"].tolist()
    numbers = asked.assign(card_id=range(len(asked)))
    assert history(stores[1], numbers, features=["card_spend:card_count_7d"])["card_count_7d"].tolist() == [0.0] * len(asked)
    assert len(history(stores[1], asked.head(0))) == 0


def test_feast_says_what_is_wrong_with_a_request(stores: dict[int, Any]) -> None:
    asked = look_ups(1, 5)
    for wrong, match in ((asked.drop(columns="card_id"), "no column 'card_id'"), (asked.assign(card_id=None), "have no card_id"),
                         ("select 1", "data frame")):
        with pytest.raises(DefinitionError, match=match):
            history(stores[1], wrong)
    with pytest.raises(JobError, match="not in the archive, the first is 'nowhere'"):
        history(stores[1], asked.assign(event_id="nowhere"))
