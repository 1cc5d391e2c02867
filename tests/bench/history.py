"""Windows of the past: twelve features of every event, in process, against DuckDB's range windows and Feast's own point-in-time join."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from feature_repo.archive_table import Arrived
from feature_repo.archived import Events as Typed
from feature_repo.fraud import FRAUD
from feature_repo.history import Queries, features_at
from feature_repo.views import DAY_MS, MINUTE_MS, Column, Feature, FeatureService, FeatureView
from jobs.training_set import build_training_set
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings, read_settings
from tests.bench.bronze import texts, write_bronze
from tests.bench.load import START_MS, Events
from tests.bench.report import Figure

__all__ = ["measure"]

DAYS = 50
POPULATION = 300_000
KNOWN_AFTER_MS = 6 * DAY_MS
FEAST_ROWS = 100_000
TURNS = 5
"""By turns, for each takes tenths of a second, and the first also loads code and touches memory."""
WINDOWS = {**{f"{m}m": m * MINUTE_MS for m in (1, 10, 60)}, **{f"{d}d": d * DAY_MS for d in (1, 7, 30)}}
TWELVE = FeatureView(
    name="twelve", entity="card_id", source=TRANSACTIONS, columns=(Column("amount_minor", scale=100),),
    features=(*(Feature(f"count_{name}", "count", ms) for name, ms in WINDOWS.items()),
              *(Feature(f"mean_{name}", "mean", WINDOWS[name], "amount_minor") for name in ("1d", "7d", "30d")),
              *(Feature(f"{function}_30d", function, WINDOWS["30d"], "amount_minor") for function in ("sum", "max", "std"))))
SERVICE = FeatureService(name="bench", source=TRANSACTIONS, views=(TWELVE,))
BY_SQL = {"count": "count(*) OVER w{w}", "mean": "avg(amount) OVER w{w} / 100", "sum": "sum(amount) OVER w{w} / 100",
          "max": "max(amount) OVER w{w} / 100", "std": "stddev_pop(amount) OVER w{w} / 100"}


def measure(settings: Settings, rows: int, tell: Callable[[str], None]) -> list[Figure]:
    """``rows`` events over fifty days, every one read with itself; then the training set of the whole archive in a process of its own."""
    events = Events.draw(rows, DAYS, population=rows * POPULATION // 500_000)
    typed = pa.table({"card": texts(events.cards), "t": events.times, "amount": events.amounts})
    tell(f"twelve windows over {rows:,} events in process and by DuckDB, {TURNS} times by turns")
    spent = []
    for _ in range(TURNS):
        (ours_s, ours), (duck_s, duck) = timed(in_process, typed), timed(by_duckdb, typed)
        spent.append((ours_s, duck_s))
        tell(f"took {ours_s:.2f} and {duck_s:.2f} s")
    ours_s, duck_s = map(statistics.median, zip(*spent, strict=True))
    differing = sum(int((~np.isclose(ours[:, i], duck[f.name].to_numpy(), rtol=1e-9, atol=1e-6, equal_nan=True)).sum())
                    for i, f in enumerate(TWELVE.features))
    del ours, duck
    tell("Feast's own join of values that somebody else has computed")
    feast_s = feast_join(typed.slice(0, FEAST_ROWS))
    tell("writing the archive")
    write_bronze(settings, events, KNOWN_AFTER_MS)
    del events, typed
    tell("training set in process, from JSON to Delta")
    set_s, peak_mb = whole_set(settings)
    per_row = ours_s / rows
    return [
        Figure("history", f"12 windows of {rows:,} events, in process, median of {TURNS}", ours_s, "s", detail={"seconds": spent}),
        Figure("history", "DuckDB range windows over the same, by turns", duck_s, "s", baseline="in process is faster by",
               ratio=duck_s / ours_s, ratio_target=4),
        Figure("history", "values in which both differ", differing, "", 0, at_most=True),
        Figure("history", f"Feast's own point-in-time join, {FEAST_ROWS:,} rows of values computed before", feast_s, "s",
               baseline="in process is faster a row by", ratio=feast_s / FEAST_ROWS / per_row),
        Figure("history", f"training set in process, {rows:,} rows x {len(FRAUD.service.feature_names)}, JSON to Delta", set_s, "s"),
        Figure("history", "its peak memory", peak_mb, "MB"),
    ]


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - began, found


def in_process(typed: pa.Table) -> Any:
    """float64[n, 12] from the same columns that DuckDB has: entities as texts."""
    n = typed.num_rows
    card, t, amount = typed["card"], typed["t"].to_numpy(), typed["amount"].to_numpy()
    identity = np.arange(1, n + 1)
    arrivals = np.stack((t, identity), axis=1)
    events = Typed(None, np.ones(n, np.int64), {"event_time": t, "id_hash": identity, "word_amount_minor": amount}, {}, {})
    return features_at(SERVICE, {TRANSACTIONS: Arrived(events, arrivals, {"card_id": card})},
                       Queries(t, {"card_id": card}, arrivals, np.arange(n)))


def by_duckdb(typed: pa.Table) -> pa.Table:
    """The same in SQL. Two events of a card in one millisecond would see each other here and not there: rows tell."""
    windows = list(WINDOWS)
    columns = [f"{BY_SQL[f.function].format(w=windows.index(f.name.rpartition('_')[2]))} AS {f.name}" for f in TWELVE.features]
    over = [f"w{w} AS (PARTITION BY card ORDER BY t RANGE BETWEEN {ms - 1} PRECEDING AND CURRENT ROW)"
            for w, ms in enumerate(WINDOWS.values())]
    with duckdb.connect() as connection:
        connection.execute(f"SET threads={os.cpu_count()}")
        connection.register("events", typed.append_column("row", pa.array(np.arange(typed.num_rows))))
        found = connection.sql(f"SELECT row, {', '.join(columns)} FROM events WINDOW {', '.join(over)}").to_arrow_table()
    return found.take(pa.array(np.argsort(found["row"].to_numpy())))


def feast_join(typed: pa.Table) -> float:
    """Seconds that Feast's file store takes to join a table of twelve values, one row an event, to as many rows asked for."""
    from datetime import timedelta

    from feast import Entity, FeatureStore, Field, FileSource, RepoConfig, ValueType
    from feast import FeatureView as FeastView
    from feast.types import Float64

    with tempfile.TemporaryDirectory(prefix="bench-feast-") as folder:
        names = [f.name for f in TWELVE.features]
        times = pd.to_datetime(typed["t"].to_pandas(), unit="ms", utc=True)
        frame = pd.DataFrame({"card_id": typed["card"].to_pandas(), "event_timestamp": times})
        frame.assign(**dict.fromkeys(names, 1.0)).to_parquet(Path(folder, "values.parquet"))
        store = FeatureStore(config=RepoConfig(project="bench", provider="local", registry=str(Path(folder, "registry.db")),
                                               offline_store={"type": "file"}, entity_key_serialization_version=3,
                                               online_store={"type": "sqlite", "path": str(Path(folder, "online.db"))}))
        card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
        view = FeastView(name="twelve", entities=[card], ttl=timedelta(days=30), schema=[Field(name=name, dtype=Float64) for name in names],
                         source=FileSource(path=str(Path(folder, "values.parquet")), timestamp_field="event_timestamp"))
        store.apply([card, view])
        return timed(lambda: store.get_historical_features(frame, [f"twelve:{name}" for name in names]).to_df())[0]


def whole_set(settings: Settings) -> tuple[float, float]:
    """Seconds and peak megabytes of a process that builds the training set of everything, compiled code at hand."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.history", str(settings.home)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


if __name__ == "__main__":
    own = read_settings(home=Path(sys.argv[1]), process_rows=10**9)
    build_training_set(own, FRAUD, START_MS, START_MS + DAY_MS, engine="process")
    took, _ = timed(lambda: build_training_set(own, FRAUD, START_MS, START_MS + (DAYS + 1) * DAY_MS, engine="process"))
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
