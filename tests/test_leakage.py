"""Nothing in a training set was known later than its row, whatever builds it; the report says what hindsight would have given."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from feature_repo.archive_table import bronze_path, open_archive
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.views import DAY_MS
from jobs.compare import Comparison, compare
from jobs.training_rows import Period, parse_period
from jobs.training_set import Engine, Mode, build_training_set
from schemas.errors import JobError
from schemas.settings import Settings
from services.commands.training_set import table as shown
from tests.log_world import DAYS, HEADERS, START, World, hostile_world, serve

END = START + DAYS * DAY_MS
CUT = START + 25 * DAY_MS
Rows = dict[tuple[str, int], tuple[Any, ...]]


def archived(home: Path, rows: pa.Table, files: int = 1) -> Settings:
    """An archive whose files hold arrivals one after the other, as `headrace archive` leaves them."""
    settings = Settings(home=home)
    rows = rows.sort_by("arrival_ms")
    for part in range(files):
        size = -(-rows.num_rows // files)
        deltalake.write_deltalake(bronze_path(settings), rows.slice(part * size, size), mode="append", partition_by=["topic"])
    return settings


def rows_of(settings: Settings, mode: Mode, spark: Any = None, engine: Engine = "auto") -> Rows:
    built = build_training_set(settings, FRAUD, START, END, mode, spark, engine=engine)
    table = deltalake.DeltaTable(built.path).to_pyarrow_table()
    return {(row["event_id"], row["event_time"]): tuple(row[name] for name in SERVICE.feature_names) for row in table.to_pylist()}


def otherwise(world: World) -> World:
    """The same log, but what became known from the cut on is the contrary."""
    return World([replace(r, value=json.dumps({**r.event, "fraud": not r.event["fraud"]}).encode(),
                          event={**r.event, "fraud": not r.event["fraud"]})
                  if r.topic == "outcomes" and r.event is not None and r.arrival_ms >= CUT else r for r in world.records])


def test_what_becomes_known_later_changes_no_earlier_row_in_process(tmp_path: Path) -> None:
    """P10; the control: hindsight does change them."""
    world = hostile_world(1)
    one, other = (archived(tmp_path / name, each.bronze()) for name, each in (("a", world), ("b", otherwise(world))))
    before = {(s.event["event_id"], s.event["event_time"]) for s in world.scored() if s.event is not None and s.arrival_ms <= CUT}

    def changed(mode: Mode) -> set[Any]:
        a, b = (rows_of(settings, mode, engine="process") for settings in (one, other))
        return {key for key in before & set(a) if a[key] != b[key]}

    assert len(before) > 100
    assert not changed("known")
    assert changed("ideal")


def test_what_becomes_known_later_is_in_no_earlier_served_row(spark: Any, tmp_path: Path) -> None:
    """P10 for logged vectors: those read before any of it was applied are the same. The control: later ones are not."""
    worlds = [hostile_world(1)]
    worlds.append(otherwise(worlds[0]))
    first = {p: min(r.offset for r in worlds[0].of("outcomes") if r.partition == p and r.arrival_ms >= CUT) for p in (0, 1)}
    rows = []
    for i, world in enumerate(worlds):
        serve(world, 2)
        rows.append(rows_of(archived(tmp_path / str(i), world.bronze()), "served", spark))
    told = [json.loads(value) for value in worlds[0].predictions]
    # A stamp is read before the sets, so what a read can have seen is in the stamp of the read after it.
    earlier = {(p["event_id"], p["event_time"]) for p, following in pairwise(told)
               if all(offset < first[partition] for partition, offset in enumerate(following["applied"]["terminal_risk"]))}
    later = {(p["event_id"], p["event_time"]) for p in told[len(earlier):]}
    assert set(rows[0]) == set(rows[1])
    assert len((earlier - later) & set(rows[0])) > 50
    differing = {key for key in rows[0] if rows[0][key] != rows[1][key]}
    assert differing
    assert not differing & (earlier - later)


def slow_world(seed: int = 0) -> pa.Table:
    """Frauds come in spells of four weeks at a terminal, and are told of 25 days later: by then the spell is nearly over."""
    r, rows = random.Random(seed), []
    spells = {f"p{i}": START + r.randrange(-20, 55) * DAY_MS for i in range(60)}
    for i in range(6000):
        time, terminal = START + r.randrange(62 * DAY_MS), f"p{r.randrange(240)}"
        began = spells.get(terminal)
        fraud = r.random() < (0.6 if began is not None and began <= time < began + 28 * DAY_MS else 0.004)
        names = {"event_id": f"t{i}", "event_time": time, "card_id": f"c{r.randrange(300)}", "terminal_id": terminal}
        rows.append(("transactions", time, json.dumps({**names, "amount_minor": r.randrange(100, 20_000)}).encode()))
        rows.append(("outcomes", time + 25 * DAY_MS, json.dumps({**names, "fraud": fraud}).encode()))
    rows.sort(key=lambda row: row[1])
    n = len(rows)
    topics, arrivals, values = zip(*rows, strict=True)
    return pa.table({"topic": topics, "partition": pa.array([0] * n, pa.int32()), "offset": range(n), "arrival_ms": arrivals,
                     "key": pa.array([b"k"] * n), "value": pa.array(values), "headers": pa.nulls(n, HEADERS)})


def day(number: int) -> str:
    return str(parse_period("2018-06-26..2018-06-26").first.fromordinal(719163 + START // DAY_MS + number))


def period(first: int, last: int) -> Period:
    return parse_period(f"{day(first)}..{day(last)}")


@pytest.fixture(scope="module")
def compared(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    settings = archived(tmp_path_factory.mktemp("slow"), slow_world())
    return compare(settings, FRAUD, period(28, 60), period(28, 40), period(48, 60), spark)


def test_the_report_says_how_the_sets_differ(compared: Comparison) -> None:
    assert set(compared.rows) == {"known", "ideal"}, "nothing was served"
    assert compared.rows["known"] == compared.rows["ideal"] > 2000
    differing = {each.feature: each.differing for each in compared.differences["known-ideal"]}
    assert differing["terminal_fraud_ratio_7d"] > 500
    assert {name for name, rows in differing.items() if rows} <= {f.name for f in SERVICE.views[2].features}, "payments came in time"
    assert json.loads(Path(compared.path).read_text())["rows"] == compared.rows


def test_the_report_says_what_only_hindsight_gives(compared: Comparison) -> None:
    assert compared.judged_on == "known"
    known, ideal = compared.metrics["known"], compared.metrics["ideal"]
    assert known["own"]["auc"] == known["judged"]["auc"]
    assert ideal["own"]["auc"] > known["own"]["auc"] + 0.05
    assert compared.illusion["auc"] == ideal["own"]["auc"] - ideal["judged"]["auc"] > 0.05
    assert "gained only from data nobody would have had" in shown(compared)


@pytest.mark.parametrize(("first", "known", "engines"), [(10, 38, ("process", "spark")), (59, 87, ("process",))],
                         ids=["later arrivals", "earlier arrivals"])
def test_only_files_of_the_needed_arrivals_are_read(
    spark: Any, tmp_path: Path, first: int, known: int, engines: tuple[Engine, ...],
) -> None:
    """The files of other arrivals are taken away, and nobody misses them; the control: for all days they are missed."""
    settings = archived(tmp_path, slow_world(), files=40)
    start, end, as_of = (START + days * DAY_MS for days in (first, first + 2, known))
    whole = build_training_set(settings, FRAUD, start, end, as_of_ms=as_of, engine="process").manifest
    archive = open_archive(settings)
    needed = {fragment.path for topic, since in (("transactions", start - 31 * DAY_MS), ("outcomes", start - 38 * DAY_MS))
              for fragment in archive.row_groups(topic, since, as_of)}
    others = [file for file in Path(bronze_path(settings)).glob("topic=*/*.parquet") if not any(file.name in path for path in needed)]
    assert min(len(needed), len(others)) > 5
    for file in others:
        file.unlink()
    for engine in engines:
        again = build_training_set(settings, FRAUD, start, end, "known", spark if engine == "spark" else None, as_of, engine=engine)
        assert again.manifest["content_hash"] == whole["content_hash"]
        assert again.manifest["rows"] > 100
    with pytest.raises((JobError, OSError)):
        build_training_set(settings, FRAUD, START, END, engine="process")


def test_a_set_is_the_same_again_from_its_archive_version(tmp_path: Path) -> None:
    world = slow_world()
    half = world.num_rows // 2
    settings = archived(tmp_path, world.slice(0, half))
    asked = (settings, FRAUD, START + 30 * DAY_MS, START + 33 * DAY_MS)
    first = build_training_set(*asked, engine="process").manifest
    archived(tmp_path, world.slice(half))
    grown, again = (build_training_set(*asked, engine="process", version=version).manifest for version in (None, first["bronze_version"]))
    assert first["content_hash"] == again["content_hash"] != grown["content_hash"]
    assert {name: again[name] for name in ("bronze_version", "service_hash", "seed", "as_of_ms", "rows")} == {
        name: first[name] for name in ("bronze_version", "service_hash", "seed", "as_of_ms", "rows")}
