"""Churn through the whole path, on a small shop that is drawn here and on a slice of the real one; judged by plain Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.churn import CHURN, CUSTOMER_PURCHASES, HORIZON_MS, SERVICE, USE_CASE
from feature_repo.marks import Progress
from feature_repo.scan import active_entities
from feature_repo.views import DAY_MS
from schemas.churn import CANCELLATIONS, PREDICTIONS, PURCHASES, REQUESTS
from schemas.errors import ContractError, DefinitionError, JobError
from schemas.settings import Settings
from schemas.topics import SOURCES
from services.dead_letters import read_letters
from services.inputs import read_rows
from services.ledger import end_offsets, read_topic
from services.lockstep import Lockstep
from services.mappings import find_mapping
from services.requests import Requests, ScheduledRequests
from services.runtime.embedded import Runtime
from tests.deadline import eventually

REAL = Path(os.environ.get("HEADRACE_DATA", "")) / "online_retail.parquet"
COLUMNS = ("InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID")
EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Line:
    """An invoice line as the file has it; ``amount`` in minor units."""

    invoice: str
    customer: str | None
    t: int
    quantity: int
    amount: int

    @property
    def cancelled(self) -> bool:
        return self.invoice.startswith("C")


def drawn_shop(path: Path) -> None:
    """Customers with habits of their own; those who seldom come stop one day. Lines without customer, lines twice, credit notes."""
    r = np.random.default_rng(3)
    lines, start = [], datetime(2011, 1, 3)
    for customer in range(100):
        days = r.uniform(4, 40)
        stops = r.uniform(60, 300) if days > 20 else 1_000
        at = r.uniform(0, days)
        while at < min(300, stops):
            time = start + timedelta(days=float(at)) - timedelta(microseconds=(start + timedelta(days=float(at))).microsecond)
            number, back = f"{int(at * 1000):06d}{customer:03d}", r.random() < 0.1
            for _ in range(int(r.integers(1, 5))):
                lines.append((("C" if back else "") + number, f"p{r.integers(0, 30)}", int(r.integers(1, 9)) * (-1 if back else 1), time,
                              float(round(r.uniform(0.2, 20), 2)), customer if r.random() > 0.03 else None))
            if r.random() < 0.1:
                lines.append(lines[-1])
            at += r.exponential(days)
    lines.sort(key=lambda line: line[3])
    columns = dict(zip(COLUMNS, map(list, zip(*lines, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "InvoiceDate": pa.array(columns["InvoiceDate"], pa.timestamp("ms")),
                             "CustomerID": pa.array(columns["CustomerID"], pa.int32())}), path)


def real_slice(path: Path) -> None:
    """One customer in eight, and what has none on the first days."""
    table = pq.read_table(REAL)
    customer, row = table["CustomerID"].to_pandas(), np.arange(table.num_rows)
    pq.write_table(table.filter(pa.array((customer % 8 == 0) | (customer.isna() & (row < 20_000)))), path)


def minor(price: float) -> int:
    return int(Decimal(repr(price)).quantize(Decimal("0.01"), ROUND_HALF_EVEN).scaleb(2))


def read_lines(path: Path) -> list[Line]:
    table = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    return [Line(row["InvoiceNo"], None if row["CustomerID"] is None else str(int(row["CustomerID"])),
                 int((row["InvoiceDate"] - EPOCH) / timedelta(milliseconds=1)), row["Quantity"],
                 abs(row["Quantity"]) * minor(row["UnitPrice"])) for row in table]


@dataclass
class Seen:
    """What came out of the whole path."""

    lines: list[Line]
    sent: Counter[str]
    letters: Counter[str]
    predictions: int
    parity: Any
    rows: list[dict[str, Any]]
    again: list[dict[str, Any]]
    manifest: dict[str, Any]
    trained: Any
    registered: Any
    asked: dict[str, Any]
    unlabelled: str


@pytest.fixture(scope="module", params=["drawn", pytest.param("real", marks=[
    pytest.mark.slow, pytest.mark.skipif(not os.environ.get("HEADRACE_DATA"), reason="set HEADRACE_DATA to the folder of the real input"),
])])
def seen(request: pytest.FixtureRequest, spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    from jobs.archive import archive
    from jobs.parity import parity
    from jobs.registry import register
    from jobs.train import train
    from jobs.training_rows import parse_period
    from jobs.training_set import build_training_set

    home = tmp_path_factory.mktemp(f"churn-{request.param}")
    file = home / "lines.parquet"
    {"drawn": drawn_shop, "real": real_slice}[request.param](file)
    learn, judge = (parse_period(period) for period in {
        "drawn": ("2011-02-01..2011-04-10", "2011-07-10..2011-07-30"), "real": ("2011-03-01..2011-05-18", "2011-08-17..2011-09-09"),
    }[request.param])
    settings = Settings(home=home / "home", time="replay", use_cases=("churn",), kafka=None, redis=None)
    with Runtime(settings) as runtime:
        progress = Progress(runtime.redis, USE_CASE.views, USE_CASE.services)
        lockstep = Lockstep(runtime.kafka, read_rows(file, find_mapping(file, "churn")), progress, source="/test",
                            emissions=USE_CASE.emissions, step_ms=DAY_MS, ticks=ScheduledRequests(CHURN, "/test", runtime.redis))
        lockstep.run()
        progress.close()
        asked = ask_at_once(runtime, settings, lockstep.now_ms or 0)
        letters = Counter(letter.reason for letter in read_letters(runtime.kafka, (PURCHASES, CANCELLATIONS, REQUESTS)))
        archive(settings, runtime.kafka, spark)
        built = build_training_set(settings, CHURN, learn.start_ms, judge.end_ms, "known", spark)
        result = train(built.path, CHURN, learn, judge, settings, data=built.manifest, spark=spark)
        registered = register(settings, result)
        rows = spark.read.format("delta").load(built.path).toPandas().to_dict("records")
        young = build_training_set(settings, CHURN, learn.start_ms, (lockstep.now_ms or 0), "known", spark)
        with pytest.raises(JobError) as refused:
            train(young.path, CHURN, learn, judge, settings, spark=spark)
        old = spark.read.format("delta").load(young.path).where(f"event_time < {judge.end_ms}").toPandas().to_dict("records")
        yield Seen(read_lines(file), lockstep.sent, letters,
                   sum(high - low for low, high in end_offsets(runtime.kafka, PREDICTIONS).values()),
                   parity(settings, SERVICE, spark), rows, old, built.manifest, result, registered, asked, str(refused.value))


def ask_at_once(runtime: Runtime, settings: Settings, at_ms: int) -> dict[str, Any]:
    """What commands say of one customer; a request is answered by processes that were stopped and started meanwhile."""
    active = sorted(active_entities(runtime.redis, CUSTOMER_PURCHASES, at_ms - HORIZON_MS, at_ms))
    customer = f"customer={active[0]}"
    for name in ("worker-1", "scorer"):
        runtime.hold(name)
        runtime.release(name)
    scheduled = headrace(settings, "request", "--dry-run")
    requested = headrace(settings, "request", customer)

    def answer() -> dict[str, Any] | None:
        found = (msgspec.json.decode(message.value()) for message in read_topic(runtime.kafka, PREDICTIONS))
        return next((prediction for prediction in found if prediction["event_id"] == f"{active[0]}@{requested['at']}"), None)

    recency = SERVICE.feature_names.index("recency_s")
    headrace(settings, "feast", "apply")
    return {"active": len(active), "scheduled": scheduled["requests"], "recency": [
        eventually(answer)["features"][recency],
        headrace(settings, "score", customer)["features"]["recency_s"],
        headrace(settings, "features", customer)["views"][0]["values"]["recency_s"],
        headrace(settings, "feast", "get", customer.replace("=", "_id="))["features"]["recency_s"]["value"],
    ]}


def headrace(settings: Settings, *words: str) -> Any:
    environment = {**os.environ, "HEADRACE_HOME": str(settings.home), "HEADRACE_TIME": "replay", "HEADRACE_USE_CASES": "churn"}
    done = subprocess.run([sys.executable, "-m", "services.cli", *words, "--json"], env=environment, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_customer(lines: list[Line], cancelled: bool) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.customer is not None and line.cancelled == cancelled:
            found[line.customer].append(line)
    return found


def test_every_line_with_a_customer_is_published_and_every_one_without_is_a_dead_letter(seen: Seen) -> None:
    back = sum(line.cancelled for line in seen.lines)
    assert (seen.sent[PURCHASES], seen.sent[CANCELLATIONS]) == (len(seen.lines) - back, back)
    assert seen.letters.keys() <= {"missing-field", "out-of-range"}  # some without a customer are less than nothing, too
    assert seen.letters.total() == sum(line.customer is None for line in seen.lines) > 10


def test_each_request_has_one_prediction_and_all_are_explained(seen: Seen) -> None:
    assert seen.predictions == seen.sent[REQUESTS] + 1 == seen.parity.predictions
    assert (seen.parity.unexplained, seen.parity.degraded, seen.parity.duplicates) == (0, 0, 0)
    assert seen.parity.exact > 0.99 * seen.parity.predictions


def test_requests_are_weekly_and_for_those_who_bought_in_the_last_90_days(seen: Seen) -> None:
    bought = by_customer(seen.lines, cancelled=False)
    rows = {(row["customer_id"], row["event_time"]) for row in seen.rows}
    times = {t for _, t in rows}
    assert all(t % (7 * DAY_MS) == 0 for t in times)
    assert max(times) - min(times) == (len(times) - 1) * 7 * DAY_MS
    assert rows == {(customer, t) for t in times for customer, lines in bought.items()
                    if any(t - HORIZON_MS < line.t <= t for line in lines)}


def test_labels_are_what_customers_did_in_the_90_days_after(seen: Seen) -> None:
    bought = by_customer(seen.lines, cancelled=False)
    for row in seen.rows:
        assert row["label"] != any(0 < line.t - row["event_time"] <= HORIZON_MS for line in bought[row["customer_id"]])
    assert 0 < sum(row["label"] for row in seen.rows) < len(seen.rows)
    assert seen.manifest["labels_mature"]
    assert sorted(map(repr, seen.again)) == sorted(map(repr, seen.rows)), "built again, among others, they are the same"


def test_labels_that_are_not_mature_are_no_labels(seen: Seen) -> None:
    assert "transactions had no label when the training set was built" in seen.unlabelled


def test_features_are_what_plain_python_counts(seen: Seen) -> None:
    bought, back = by_customer(seen.lines, cancelled=False), by_customer(seen.lines, cancelled=True)
    for row in seen.rows[:: max(1, len(seen.rows) // 500)]:
        t = row["event_time"]
        for days in (30, 90, 180):
            of_purchases = [line for line in bought[row["customer_id"]] if t - days * DAY_MS < line.t <= t]
            of_returns = [line for line in back[row["customer_id"]] if t - days * DAY_MS < line.t <= t]
            assert row[f"invoices_{days}d"] == len({line.invoice for line in of_purchases})
            assert row[f"lines_{days}d"] == len(of_purchases)
            assert row[f"value_{days}d"] == sum(line.amount for line in of_purchases) / 100
            assert row[f"cancellations_{days}d"] == len({line.invoice for line in of_returns})
            assert row[f"cancelled_value_{days}d"] == sum(line.amount for line in of_returns) / 100
        assert row["recency_s"] == (t - max(line.t for line in of_purchases)) / 1000


def test_the_model_is_measured_beside_recency_and_frequency_on_later_customers(seen: Seen) -> None:
    metrics, manifest = seen.trained.manifest.metrics, seen.trained.manifest
    print({name: round(values["auc"], 4) for name, values in metrics.items()}, metrics["model"])
    assert set(metrics) == {"model", "only_recency_s", "only_invoices_180d", "dummy"}
    assert len({(values["rows"], values["positives"]) for values in metrics.values()}) == 1, "on the same rows"
    assert metrics["model"]["auc"] > 0.6
    assert (seen.registered.model, seen.registered.alias) == ("churn", "champion")
    first_test, last_train = (datetime.fromisoformat(day) for day in (manifest.test[0], manifest.train[1]))
    assert first_test - last_train > timedelta(milliseconds=HORIZON_MS)


def test_whoever_asks_of_a_customer_now_is_told_the_same(seen: Seen) -> None:
    assert seen.asked["scheduled"] == seen.asked["active"] > 10
    assert len(set(seen.asked["recency"])) == 1, "the published answer, a score, a look-up, and Feast"
    assert seen.asked["recency"][0] > 0


def test_a_model_that_scores_events_takes_no_requests() -> None:
    from feature_repo.fraud import FRAUD

    with pytest.raises(DefinitionError, match="say more than whom and when"):
        Requests(FRAUD, "/test")


def test_lines_of_an_invoice_have_ids_of_their_own_whatever_the_chunks(tmp_path: Path) -> None:
    path, time = tmp_path / "lines.csv", "2011-01-04 10:00:00"
    rows = [("536365", "85123A", "6", time, "2.55", "17850"), ("536365", "85123A", "6", time, "2.55", "17850"),
            ("C536379", "D", "-1", time, "27.505", "14527"), ("536365", "71053", "-4", time, "0.001", "17850"),
            ("536366", "22633", "6", time, "1.85", "")]
    path.write_text("\n".join([",".join(COLUMNS), *map(",".join, rows)]) + "\n")
    first, second, third, fourth, fifth = (row for batch in read_rows(path, find_mapping(path, None)) for row in batch.to_pylist())
    assert [row["event_id"] for row in (first, second, third, fourth)] == ["536365-1", "536365-2", "C536379-1", "536365-3"]
    assert (third["sent.cancellations"], third["sent.purchases"], third["quantity"], third["unit_price_minor"]) == (True, False, 1, 2750)
    assert fourth["unit_price_minor"] == 0
    with pytest.raises(ContractError, match="quantity"):
        SOURCES[PURCHASES].decode(encoded(fourth))
    with pytest.raises(ContractError, match="customer_id"):
        SOURCES[PURCHASES].decode(encoded(fifth))


def encoded(row: dict[str, Any]) -> bytes:
    return msgspec.json.encode({name: row[name] for name in SOURCES[PURCHASES].record.__struct_fields__})
