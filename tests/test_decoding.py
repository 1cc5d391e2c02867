"""Columns decoded from bytes are what the contract's decoder says, record by record, whatever the bytes are."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from xxhash import xxh3_64_intdigest

from feature_repo.archived import Wanted, read_events
from feature_repo.decoding import decode_columns
from feature_repo.fraud import SERVICE
from feature_repo.hashing import hash_spans
from feature_repo.layout import packer
from feature_repo.scanner import layout_of, scan
from feature_repo.views import DAY_MS
from schemas.admission import admit
from schemas.churn import PURCHASE
from schemas.contracts import Contract
from schemas.errors import ContractError
from schemas.fraud import OUTCOME, OUTCOMES, PREDICTION, TRANSACTION, TRANSACTIONS

FIELDS = {
    TRANSACTION.name: (("event_time", "amount_minor"), ("event_id", "card_id", "terminal_id")),
    OUTCOME.name: (("event_time", "fraud", "revision"), ("event_id", "card_id", "terminal_id")),
}
ODD = (b"-", b"0", b"9", b"e1", b".0", b'"', b"\\", b"\\u0041", b"\xc3\xa9", b"\xff", b" ", b"\n", b"\x01", b",", b"{", b"}", b":", b"true",
       b"null", b"99999999999999999999", b'"fraud":true,', b'"x":1,')


def written(r: random.Random, contract: Contract) -> bytes:
    """A record as some producer might write it: often right, in any order, with any spaces."""
    event: dict[str, Any] = {
        "event_id": r.choice(["", "x", "e" * 64, "é", 'q"', "a\\b", "e" * 128, "e" * 129, "e1", "e2", str(r.randrange(10**9))]),
        "event_time": r.randrange(10**12),
        "card_id": f"c{r.randrange(9)}", "terminal_id": f"t{r.randrange(9)}"}
    if r.random() < 0.1:
        event["event_time"] = r.choice([0, -1, 4_102_444_800_000, 4_102_444_800_001, 1.0, "1", None, True])
    if contract is TRANSACTION:
        event["amount_minor"] = r.choice([0, 10**11, 10**11 + 1, 1.5]) if r.random() < 0.2 else r.randrange(10**6)
    else:
        event["fraud"] = r.choice([0, "true", None]) if r.random() < 0.05 else r.random() < 0.5
        if r.random() < 0.5:
            event["revision"] = r.randrange(3)
    items = list(event.items())
    if r.random() < 0.2:
        r.shuffle(items)
    if r.random() < 0.05:
        items.pop(r.randrange(len(items)))
    if r.random() < 0.05:
        items.append((r.choice(["card_id", "unknown"]), "again"))
    ascii_only, separators = r.random() < 0.5, r.choice([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")])
    value = "{" + separators[0].join(f"{json.dumps(k)}{separators[1]}{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in items) + "}"
    return value.encode()


def damaged(r: random.Random, value: bytes) -> bytes:
    at = r.randrange(len(value) + 1)
    match r.randrange(4):
        case 0:
            return value[:at]
        case 1:
            return value[:at] + value[at + 1:]
        case 2:
            return value[:at] + r.choice(ODD) + value[at:]
    return value[:at] + bytes([r.randrange(256)]) + value[at + 1:]


def hostile_values(seed: int, contract: Contract, n: int = 4000) -> list[bytes | None]:
    r = random.Random(seed)
    values: list[bytes | None] = [None, b"", b" ", b"{}", b"[]", b"null", b'{"event_id":"x"}', b"{" * 9999, b" " * (1 << 20) + b"{}"]
    for _ in range(n):
        value = written(r, contract)
        values.append(damaged(r, value) if r.random() < 0.4 else value)
    return values


def said(contract: Contract, value: bytes | None) -> Any:
    try:
        return contract.decode(value)
    except ContractError:
        return None


@pytest.mark.parametrize("contract", [TRANSACTION, OUTCOME], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", range(5))
def test_columns_are_what_the_decoder_says_of_each_value(contract: Contract, seed: int) -> None:
    values = hostile_values(seed, contract)
    column = pa.array([b"before", *values], pa.binary()).slice(1)
    numbers, texts = FIELDS[contract.name]
    usable = np.array([i % 50 != 3 for i in range(len(values))])
    found = decode_columns(contract, column, usable, numbers, texts, texts)
    expected = {i: event for i, value in enumerate(values) if usable[i] and (event := said(contract, value)) is not None}
    assert found.rows.tolist() == list(expected)
    assert 1000 < len(expected) < len(values) - 500
    for name in numbers:
        assert found.numbers[name].tolist() == [int(getattr(event, name)) for event in expected.values()]
    for name in texts:
        assert found.texts[name].to_pylist() == [getattr(event, name) for event in expected.values()]
        hashes = [xxh3_64_intdigest(getattr(event, name).encode()) for event in expected.values()]
        assert found.hashed[name].view(np.uint64).tolist() == hashes


def test_what_a_record_derives_is_the_decoders() -> None:
    lines = [b'{"event_id":"1","event_time":5,"customer_id":"7","invoice":"i","product":"p","quantity":3,"unit_price_minor":7}', b"{}"]
    found = decode_columns(PURCHASE, pa.array(lines, pa.binary()), np.ones(2, bool), ("amount_minor",), ("product",), ("invoice",))
    assert (found.rows.tolist(), found.numbers["amount_minor"].tolist(), found.texts["invoice"].to_pylist()) == ([0], [21], ["i"])


def test_the_scanner_takes_what_producers_usually_send() -> None:
    """Else all of the above could hold with a scanner that is never sure."""
    event = {"event_id": "748066", "event_time": 1529280015000, "card_id": "596", "terminal_id": "3156", "amount_minor": 5716}
    texts = json.dumps(event), json.dumps(event, separators=(",", ":")), json.dumps(dict(reversed(event.items())))
    values = [text.encode() for text in texts]
    layout = layout_of(TRANSACTION)
    assert layout is not None
    ends = np.cumsum([len(value) for value in values])
    assert scan(layout, np.frombuffer(b"".join(values), np.uint8), np.array([0, *ends[:-1]]), ends).sure.all()


def test_contracts_that_the_scanner_cannot_read_are_left_to_the_decoder() -> None:
    assert layout_of(PREDICTION) is None
    found = decode_columns(PREDICTION, pa.array([b"{}", None], pa.binary()), np.ones(2, bool), (), (), ("event_id",))
    assert found.rows.tolist() == []


def test_hashes_are_the_librarys_at_every_length() -> None:
    r = random.Random(1)
    texts = [r.randbytes(n) for n in range(200)]
    ends = np.cumsum([len(text) for text in texts])
    spans = np.stack((ends - [len(text) for text in texts], ends), axis=1)
    hashed = hash_spans(np.frombuffer(b"".join(texts), np.uint8), spans).view(np.uint64)
    assert hashed.tolist() == [xxh3_64_intdigest(text) for text in texts]


@pytest.mark.parametrize(("source", "contract"), [(TRANSACTIONS, TRANSACTION), (OUTCOMES, OUTCOME)])
def test_events_have_the_workers_verdicts_and_words(source: str, contract: Contract) -> None:
    r = random.Random(3)
    values = hostile_values(7, contract)
    events = [said(contract, value) for value in values]
    delays = [0, 1, DAY_MS, DAY_MS + 1, 60 * DAY_MS, 60 * DAY_MS + 1, -300_000, -300_001]
    arrivals = [0 if event is None else event.event_time + r.choice(delays) for event in events]
    wanted = Wanted(source, SERVICE.views, ("event_id",), (), 10**9, 10**12 - 10**9)
    found = read_events(wanted, pa.array(values, pa.binary()), np.array(arrivals), np.ones(len(values), bool))
    expected = []
    for row, (event, arrival) in enumerate(zip(events, arrivals, strict=True)):
        verdicts = [admit(event.event_time, arrival, view.allowed_lateness_ms, view.max_skew_ms) for _, view in wanted.own] if event else []
        if event and "clock-skew" not in verdicts and wanted.first_ms <= event.event_time < wanted.end_ms:
            bits = sum(1 << bit for (bit, _), verdict in zip(wanted.own, verdicts, strict=True) if verdict == "admitted")
            expected.append((row, bits, *(packer(view)(event) for _, view in wanted.own)))
    records = [[row.tobytes() for row in found.records(view)] for _, view in wanted.own]
    rows = zip(found.rows.tolist(), found.admitted.tolist(), *records, strict=True)
    assert list(rows) == expected
    assert {row[1] for row in expected} > {0}
