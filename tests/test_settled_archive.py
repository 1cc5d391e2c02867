"""What an archive can do to verdicts that were settled, on real Delta: parity by what is open says what all of it anew says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_repo.fraud import SERVICE
from feature_repo.views import DAY_MS, HOUR_MS
from jobs.erased_reads import excuse
from jobs.erasures import RECORDS, forget
from jobs.events import bronze_path
from jobs.parity import parity, parity_path
from schemas.settings import Settings
from tests.log_world import hostile_world, serve


def verdicts(spark: Any, settings: Settings) -> dict[str, tuple[str, int]]:
    rows = spark.read.format("delta").load(parity_path(settings, SERVICE)).collect()
    assert len(rows) == len({row.prediction_id for row in rows})
    return {row.prediction_id: (row.verdict, row.logged_position) for row in rows}


def test_copies_history_and_lost_rows_change_settled_verdicts_as_they_change_all(spark: Any, tmp_path: Path) -> None:
    from delta.tables import DeltaTable

    world, settings = hostile_world(5, size=60), Settings(home=tmp_path)
    serve(world, 5)
    rows = world.bronze()

    def append(*changed: dict[str, Any]) -> None:
        table = pa.Table.from_pylist(list(changed), rows.schema) if changed else rows
        spark.createDataFrame(table).coalesce(1).write.format("delta").mode("append").partitionBy("topic").save(bronze_path(settings))

    def judged() -> dict[str, tuple[str, int]]:
        parity(settings, SERVICE, spark)
        in_parts = verdicts(spark, settings)
        parity(settings, SERVICE, spark, again=True)
        assert in_parts == verdicts(spark, settings)
        return in_parts

    append()
    before = judged()
    made = [(row, json.loads(row["value"])) for row in rows.to_pylist() if row["topic"] == "predictions"]
    row, copied = next((row, p) for row, p in made if row["partition"] == 1 and before[p["prediction_id"]][0] == "exact"
                       and before[p["prediction_id"]][1] == (1 << 44) + row["offset"])
    wrong = {**copied, "features": [12345.0, *copied["features"][1:]]}
    append({**row, "partition": 0, "offset": 10**6, "value": json.dumps(wrong).encode()})
    after = judged()
    assert after[copied["prediction_id"]] == ("unexplained", 10**6), "a copy in a lower partition is the prediction, whenever it came"

    source = next(r for r in rows.to_pylist() if (r["topic"], r["partition"], r["offset"]) ==
                  ("transactions", copied["source_partition"], copied["source_offset"]))
    event = json.loads(source["value"])
    older = {**event, "event_id": "older", "event_time": event["event_time"] - 1}
    append({**source, "partition": -1, "offset": 0, "arrival_ms": older["event_time"], "value": json.dumps(older).encode()})
    with_history = judged()
    assert with_history != after, "history that was recorded since had arrived before"

    DeltaTable.forPath(spark, bronze_path(settings)).delete(f"topic = 'transactions' AND partition = {source['partition']} "
                                                            f"AND offset = {source['offset']}")
    without = judged()
    assert sum(v == "unexplained" for v, _ in without.values()) >= sum(v == "unexplained" for v, _ in with_history.values())
    assert without != with_history

    spark.sql(f"RESTORE TABLE delta.`{bronze_path(settings)}` TO VERSION AS OF 1")
    assert judged() == after, "neither the history nor the deletion are in the restored version"
    spark.sql(f"RESTORE TABLE delta.`{bronze_path(settings)}` TO VERSION AS OF 0")
    assert judged() == before, "the copy is gone"

    path = parity_path(settings, SERVICE)
    other = spark.read.format("delta").load(path).selectExpr("*", "1 AS of_another_release")
    other.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)
    assert judged() == before, "a table of another release is judged anew"


def test_an_answer_that_lacks_an_erased_record_excuses_no_other_answer_of_its_event(spark: Any, tmp_path: Path) -> None:
    """Both have the event's prediction id. The first is unexplained in a view that lacks a record since, the second in another."""
    from pyspark.sql import functions as F

    settings, path, event_time = Settings(home=tmp_path), f"{tmp_path}/verdicts", 40 * DAY_MS
    terminal = next(view for view in SERVICE.views if view.entity == "terminal_id" and not view.delay_ms)
    card = next(view for view in SERVICE.views if view.entity == "card_id")
    judged = [(0, event_time, [terminal.name], "unexplained"), (1, event_time, [card.name], "unexplained"),
              (2, event_time, [terminal.name, card.name], "unexplained"), (3, event_time + DAY_MS + terminal.longest_window_ms,
                                                                          [terminal.name], "unexplained"), (4, event_time, [], "exact")]
    verdicts = spark.createDataFrame(judged, "logged_position long, event_time long, views array<string>, verdict string")
    verdicts.write.format("delta").save(path)
    value = json.dumps({"prediction_id": "same", "card_id": "c1", "terminal_id": "p1"}).encode()
    archive = spark.createDataFrame([("predictions.answered", 0, offset, value) for offset, *_ in judged],
                                    "topic string, partition int, offset long, value binary")
    erased = spark.createDataFrame([(terminal.source, 0, 7, event_time - HOUR_MS, "terminal_id", "p1")], RECORDS)
    forget(spark, settings, erased)
    excuse(spark, settings, archive, SERVICE, path, "predictions.answered")
    told = spark.read.format("delta").load(path).where(F.col("verdict") == "erased").collect()
    assert [row.logged_position for row in told] == [0]
