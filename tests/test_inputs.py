"""Files to event rows: money to the cent, the same from every format, and nothing lost that cannot be mapped."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.models import Emission
from schemas.errors import ContractError, SettingsError
from schemas.fraud import TRANSACTION
from services.columns import minor_units, read, time_ms
from services.inputs import event_rows, read_rows
from services.mappings import MAPPINGS, ColumnMapping, find_mapping, kind_of, row_fields
from services.timeline import Timeline
from services.world import World

RAW = {
    "TRANSACTION_ID": [748066, 748067, 748068, 748069],
    "TX_DATETIME": ["2018-06-18 00:00:15", "2018-06-18 00:00:20", "2018-06-18 00:00:21.250", "2018-06-18 07:00:00"],
    "CUSTOMER_ID": [1263, 2400, 1950, 596],
    "TERMINAL_ID": [145, 7641, 8435, 3156],
    "TX_AMOUNT": [57.16, 27.6, 32.0, 1.015],
    "TX_FRAUD": [0, 1, 0, 0],
}
AT_MS = 1_529_280_015_000


def cents(amount: float | str) -> int:
    return int(Decimal(str(amount)).quantize(Decimal("0.01"), ROUND_HALF_EVEN).scaleb(2))


def rows(path: Path, mapping: str | None = None, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in read_rows(path, find_mapping(path, mapping), **options) for row in batch.to_pylist()]


def write(folder: Path, name: str, columns: dict[str, list[Any]]) -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        table = pa.table(columns)
        if "TX_DATETIME" in columns:
            times = pa.array(columns["TX_DATETIME"]).cast(pa.timestamp("ms"))
            table = table.set_column(table.schema.get_field_index("TX_DATETIME"), "TX_DATETIME", times)
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(pa.table(columns), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in pa.table(columns).to_pylist()))
    return path


def test_every_amount_in_cents_comes_out_exact() -> None:
    exact = np.arange(2_000_001)
    for amounts in (exact / 100, exact * 0.01, [f"{n // 100}.{n % 100:02d}" for n in range(0, 2_000_001, 37)]):
        expected = exact if len(amounts) == len(exact) else exact[::37]
        assert np.array_equal(np.asarray(minor_units(pa.array(amounts))), expected)


@given(st.lists(st.floats(0, 20_000) | st.integers(0, 2_000_000).map(lambda n: n / 100 + 1e-12) | st.integers(0, 20_000_000).map(
    lambda n: n / 1000), min_size=1))
def test_amounts_round_as_decimals_do(amounts: list[float]) -> None:
    assert minor_units(pa.array(amounts)).to_pylist() == [cents(repr(amount)) for amount in amounts]


@given(st.lists(st.decimals(0, 20_000, places=3), min_size=1))
def test_an_amount_means_the_same_as_float_text_and_decimal(amounts: list[Decimal]) -> None:
    expected = [cents(str(amount)) for amount in amounts]
    assert minor_units(pa.array([float(amount) for amount in amounts])).to_pylist() == expected
    assert minor_units(pa.array([str(amount) for amount in amounts])).to_pylist() == expected
    assert minor_units(pa.array(amounts, pa.decimal128(12, 3))).to_pylist() == expected


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.ndjson"])
def test_a_file_becomes_event_rows(tmp_path: Path, name: str) -> None:
    first, second, third, fourth = rows(write(tmp_path, name, RAW), "fraud")
    assert first == {"event_id": "748066", "event_time": AT_MS, "card_id": "1263", "terminal_id": "145", "amount_minor": 5716,
                     "fraud": False, "sent.transactions": True, "refused.transactions": None,
                     "sent.outcomes": True, "refused.outcomes": None}
    assert second["fraud"]
    assert third["event_time"] == AT_MS + 6_250
    assert [row["amount_minor"] for row in (second, third, fourth)] == [2760, 3200, 102]


def test_all_formats_give_equal_events(tmp_path: Path) -> None:
    world = World(seed=1, cards=50, terminals=20, start_ms=AT_MS).day(0)
    table = world.select(["event_id", "event_time", "card_id", "terminal_id", "amount_minor", "fraud"]).to_pydict()
    raw = {"TRANSACTION_ID": list(range(world.num_rows)), "CUSTOMER_ID": list(range(world.num_rows)),
           "TX_DATETIME": [str(np.datetime64(ms, "ms")) for ms in table["event_time"]], "TERMINAL_ID": table["terminal_id"],
           "TX_AMOUNT": [n / 100 for n in table["amount_minor"]], "TX_FRAUD": [int(f) for f in table["fraud"]]}
    assert rows(write(tmp_path, "w.parquet", table)) == event_rows(world).to_pylist()
    for columns in (table, raw):
        parquet, csv, ndjson = (rows(write(tmp_path, name, columns)) for name in ("w.parquet", "w.csv", "w.ndjson"))
        assert len(parquet) == world.num_rows
        assert parquet == csv == ndjson
        assert [row["amount_minor"] for row in parquet] == table["amount_minor"]
        assert not any(row["refused.transactions"] or row["refused.outcomes"] for row in parquet)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.ndjson"])
def test_missing_columns_are_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, {key: values for key, values in RAW.items() if key not in ("TX_AMOUNT", "CUSTOMER_ID")})
    with pytest.raises(SettingsError, match=r"no column CUSTOMER_ID, TX_AMOUNT, which mapping fraud reads"):
        find_mapping(path, "fraud")
    with pytest.raises(SettingsError, match=r"fits no built-in mapping"):
        find_mapping(path, None)


def test_a_mapping_file_names_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", {"id": ["a"], "at": [AT_MS], "card": ["c"], "shop": ["t"], "paid": ["1e2"]})
    declared = tmp_path / "mine.toml"
    declared.write_text('[columns]\nevent_id = "id"\nevent_time = "at"\ncard_id = "card"\nterminal_id = "shop"\namount = "paid"\n')
    (row,) = rows(path, str(declared))
    assert (row["event_time"], row["amount_minor"], row["fraud"], row["refused.transactions"]) == (AT_MS, 10_000, None, None)
    declared.write_text('[columns]\nevent_id = "id"\n')
    with pytest.raises(SettingsError, match=r"mine\.toml"):
        find_mapping(path, str(declared))


BAD = {"amount": ("TX_AMOUNT", "much", "wrong-type"), "no amount": ("TX_AMOUNT", None, "missing-field"),
       "time": ("TX_DATETIME", "yesterday", "wrong-type"), "card": ("CUSTOMER_ID", None, "missing-field"),
       "empty": ("TX_AMOUNT", "", "wrong-type")}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_mapped_is_published_so_that_it_is_refused(tmp_path: Path, case: str) -> None:
    column, value, reason = BAD[case]
    lines = pa.table(RAW).to_pylist()
    lines[1][column] = value
    path = tmp_path / "t.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    got = rows(path)
    assert [row["refused.transactions"] is None for row in got] == [True, False, True, True]
    with pytest.raises(ContractError) as refused:
        TRANSACTION.decode(got[1]["refused.transactions"])
    assert refused.value.reason == reason
    assert got[0] == rows(write(tmp_path, "good.ndjson", RAW))[0]


def test_lines_that_are_not_json_and_rows_of_another_width_are_kept_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "t.ndjson", RAW)
    path.write_bytes(b"{not json\n" + path.read_bytes() + b"[1, 2]\n\xff\xfe\n")
    assert [row["refused.transactions"] for row in rows(path)] == [b"{not json", None, None, None, None, b"[1, 2]", b"\xff\xfe"]
    path = write(tmp_path, "t.csv", RAW)
    path.write_bytes(path.read_bytes() + b'1,2,3\n"5","2018-06-18 08:00:00",\xff\xfe,"1","2.50",0\n')
    got = rows(path)
    assert len(got) == 6
    refused = [row["refused.transactions"] for row in got if row["refused.transactions"] is not None]
    assert b"1,2,3" in refused
    for value in refused:
        with pytest.raises(ContractError):
            TRANSACTION.decode(value)


def test_an_outcome_that_cannot_be_read_is_refused_and_its_transaction_is_not(tmp_path: Path) -> None:
    (row, *_) = rows(write(tmp_path, "t.ndjson", {**RAW, "TX_FRAUD": [7, 0, 0, 0]}))
    assert row["refused.transactions"] is None
    assert json.loads(row["refused.outcomes"])["fraud"] == 7


def test_what_can_be_read_of_a_column_is_read_however_much_cannot() -> None:
    values = pa.array(["1.00", "x"] * 5_000)
    assert read(minor_units, values).to_pylist() == [100, None] * 5_000


@pytest.mark.parametrize(("text", "expected"), [
    ("2018-06-18 00:00:15", AT_MS), ("2018-06-18T00:00:15Z", AT_MS), ("2018-06-18T02:00:15.0009+02:00", AT_MS), (str(AT_MS), AT_MS),
])
def test_times_are_utc_unless_they_say_otherwise(text: str, expected: int) -> None:
    assert time_ms(pa.array([text])).to_pylist() == [expected]


@pytest.mark.parametrize("limit", [1, 3, 4, 9])
def test_limit_stops_after_that_many_rows(tmp_path: Path, limit: int) -> None:
    assert len(rows(write(tmp_path, "t.parquet", RAW), limit=limit)) == min(limit, 4)


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(SettingsError, match="cannot be read"):
        find_mapping(path, None)


def test_rows_arrive_in_their_order_and_outcomes_after_the_label_delay() -> None:
    times = [100, 50, 200, None, 300]
    batch = event_rows(pa.RecordBatch.from_pydict({
        "event_id": list("abcde"), "event_time": pa.array(times, pa.int64()), "card_id": ["c"] * 5, "terminal_id": ["t"] * 5,
        "amount_minor": [1] * 5, "fraud": [False, True, None, False, True]}))
    timeline = Timeline([batch.slice(0, 2), batch.slice(2)], [Emission("outcomes", 1_000, when="fraud"), Emission("transactions")])
    assert timeline.take("transactions", 99) == []
    taken = [piece for until_ms in (100, 250, 10_000) for piece in timeline.take("transactions", until_ms)]
    assert [ms for piece in taken for ms in piece.arrival_ms.tolist()] == [100, 100, 200, 200, 300]
    assert timeline.out_of_order == 1
    known = [(id, ms) for piece in timeline.take("outcomes", 10_000)
             for id, ms in zip(piece.rows["event_id"].to_pylist(), piece.arrival_ms.tolist(), strict=True)]
    assert known == [("a", 1100), ("b", 1100), ("d", 1200), ("e", 1300)]


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=lambda mapping: mapping.name)
def test_a_built_in_mapping_reads_every_field_or_makes_it(mapping: ColumnMapping) -> None:
    fields = row_fields(mapping.use_case)
    read_into = {kind_of(target, fields)[0] for target in mapping.columns}
    assert fields.keys() - read_into == (set() if mapping.prepare is None else {"event_id"})
    assert read_into <= fields.keys()
