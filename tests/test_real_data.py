"""The real slice through the whole path: Kafka, Redis, Delta, training, parity; and 10,000 vectors against the oracle."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_repo.fraud import FRAUD, SERVICE, USE_CASE, VIEWS
from feature_repo.layout import packer, rows
from feature_repo.marks import Progress
from feature_repo.oracle import Record, feature_values
from feature_repo.vector import request_features
from jobs.spark import session
from schemas.fraud import TRANSACTIONS, Outcome, Transaction
from schemas.settings import Settings
from services.inputs import read_rows
from services.lockstep import HOUR_MS, Lockstep
from services.mappings import find_mapping
from services.runtime.embedded import Runtime

FILE = Path(os.environ.get("HEADRACE_DATA", "")) / "fdh_slice_raw_0618_0814.parquet"
SAMPLE = 10_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("HEADRACE_DATA"), reason="set HEADRACE_DATA to the folder of the real input"),
]


@pytest.fixture(scope="module")
def spark(both_compilers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session of this module's own, begun before the one that others share (tests/conftest.py sees to it)."""
    with session(Settings(home=tmp_path_factory.mktemp("spark")), "real-data") as spark:
        yield spark


@pytest.fixture(scope="module")
def seen(spark: Any, tmp_path_factory: pytest.TempPathFactory):
    """What came out of the whole path."""
    from jobs.archive import archive
    from jobs.parity import parity
    from jobs.registry import register
    from jobs.train import train
    from jobs.training_rows import parse_period
    from jobs.training_set import build_training_set

    settings = Settings(home=tmp_path_factory.mktemp("real"), time="replay", kafka=None, redis=None)
    learn, judge = parse_period("2018-07-25..2018-07-31"), parse_period("2018-08-08..2018-08-14")
    with Runtime(settings) as runtime:
        progress = Progress(runtime.redis, VIEWS, [SERVICE])
        lockstep = Lockstep(runtime.kafka, read_rows(FILE, find_mapping(FILE, "fraud"), None), progress, source="/test",
                            emissions=USE_CASE.emissions, step_ms=3 * HOUR_MS)
        lockstep.run(drain=True)
        progress.close()
        archive(settings, runtime.kafka, spark)
        known = build_training_set(settings, FRAUD, learn.start_ms, judge.end_ms, "known", spark)
        result = train(known.path, FRAUD, learn, judge, settings, data=known.manifest, spark=spark)
        ideal = build_training_set(settings, FRAUD, judge.start_ms, judge.end_ms, "ideal", spark)
        table = spark.read.format("delta").load(ideal.path).toPandas()
        yield {"sent": lockstep.sent[TRANSACTIONS], "registered": register(settings, result), "vectors": table,
               "metrics": result.manifest.metrics["model"], "parity": parity(settings, SERVICE, spark)}


def test_every_prediction_is_explained(seen: dict[str, Any]) -> None:
    parity = seen["parity"]
    print(parity)
    assert parity.predictions == seen["sent"] == 555_712
    assert (parity.unexplained, parity.degraded) == (0, 0)
    assert parity.exact > 0.9 * parity.predictions


def test_the_model_is_as_good_as_published_ones(seen: dict[str, Any]) -> None:
    print(seen["metrics"])
    assert seen["registered"].alias == "champion"
    assert seen["metrics"]["auc"] > 0.86
    assert seen["metrics"]["average_precision"] > 0.62
    assert seen["metrics"]["card_precision_100"] > 0.27


def test_ten_thousand_vectors_equal_the_oracle(seen: dict[str, Any]) -> None:
    table = seen["vectors"].sample(SAMPLE, random_state=1)
    events, sets = oracle_sets()
    wrong = []
    for row in table.itertuples(index=False):
        event = events[row.event_id]
        expected = np.array([expected_vector(event, sets)])
        request_features(SERVICE, expected, {name: np.array([getattr(event, name)]) for name in SERVICE.event_columns})
        found = np.array([getattr(row, name) for name in SERVICE.feature_names], float)
        if not np.array_equal(found, expected[0], equal_nan=True):
            wrong.append((row.event_id, [(n, a, b) for n, a, b in zip(SERVICE.feature_names, found, expected[0], strict=True) if a != b]))
    assert wrong == []


def oracle_sets() -> tuple[dict[str, Transaction], dict[str, dict[str, list[Record]]]]:
    """All transactions by id, and each view's records by entity, straight from the file."""
    frame = pq.read_table(FILE).to_pandas()
    minor = (frame.TX_AMOUNT * 100).round().astype(int)
    times = frame.TX_DATETIME.astype("datetime64[ms]").astype("int64")
    events, sets = {}, {view.name: defaultdict(list) for view in VIEWS}
    packers = {view.name: packer(view) for view in VIEWS}
    for number, t, card, terminal, amount, fraud in zip(frame.TRANSACTION_ID, times, frame.CUSTOMER_ID, frame.TERMINAL_ID, minor,
                                                       frame.TX_FRAUD, strict=True):
        event = Transaction(str(number), int(t), str(card), str(terminal), int(amount))
        outcome = Outcome(event.event_id, event.event_time, event.card_id, event.terminal_id, bool(fraud))
        events[event.event_id] = event
        for view in VIEWS:
            record = event if view.source == TRANSACTIONS else outcome
            words = rows(view, packers[view.name](record))[0].tolist()
            sets[view.name][getattr(record, view.entity)].append(Record(words[0], words[1], tuple(words[2:])))
    return events, sets


def expected_vector(event: Transaction, sets: dict[str, dict[str, list[Record]]]) -> list[float]:
    values: list[float] = []
    for view in SERVICE.views:
        records = sets[view.name][getattr(event, view.entity)]
        own = None
        if view.source == SERVICE.source:
            words = rows(view, packer(view)(event))[0].tolist()
            own = Record(words[0], words[1], tuple(words[2:]))
        values += feature_values(view, records, event.event_time, own)
    return [*values, *([np.nan] * len(SERVICE.request))]
