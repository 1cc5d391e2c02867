"""Contracts: the fast decoder and the published JSON Schema give the same verdicts; bad input gets a reason a producer understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import schemas
from schemas.contracts import HINTS, MAX_VALUE_BYTES, Contract
from schemas.envelope import check_cloud_event, clock, cloud_event_headers
from schemas.errors import ContractError
from schemas.evaluations import EVALUATION
from schemas.fraud import OUTCOME, TRANSACTION
from schemas.monitoring import CONTROL
from schemas.reasons import REASONS
from schemas.records import DEAD_LETTER
from schemas.releases import RELEASE
from schemas.settings import Settings
from schemas.shadow import SHADOW
from schemas.topics import PREDICTION_TOPICS, SOURCES, catalogue, sources

GOOD = {"event_id": "e1", "event_time": 1_530_000_000_000, "card_id": "596", "terminal_id": "3156", "amount_minor": 5716}
PUBLISHED = Path(schemas.__file__).parent / "published"
VALIDATORS = {contract.type: jsonschema.Draft4Validator(contract.json_schema()) for contract in (TRANSACTION, OUTCOME)}
CONTRACTS = (*SOURCES.values(), *PREDICTION_TOPICS.values(), DEAD_LETTER, EVALUATION, REASONS, SHADOW, RELEASE, *CONTROL.values())


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.type)
def test_the_published_schema_is_the_generated_one(contract: Contract) -> None:
    assert json.loads((PUBLISHED / f"{contract.type}.json").read_text()) == contract.json_schema()
    jsonschema.Draft4Validator.check_schema(contract.json_schema())


def accepted(contract: Contract, value: bytes) -> bool:
    try:
        contract.decode(value)
    except ContractError:
        return False
    return True


def valid_by_schema(contract: Contract, value: bytes) -> bool:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        instance = json.loads(value.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return VALIDATORS[contract.type].is_valid(instance)


field_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=130), st.just("x" * 129), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([10**11, 10**11 + 1, 4_102_444_800_000, 4_102_444_800_001]),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([TRANSACTION, OUTCOME]), st.data())
def test_decoder_and_schema_agree_on_any_object(contract: Contract, data: st.DataObject) -> None:
    names = list(contract.json_schema()["properties"])
    changes = data.draw(st.dictionaries(st.sampled_from([*names, "extra"]), field_values, max_size=3))
    missing = data.draw(st.sets(st.sampled_from(names), max_size=2))
    base = {**GOOD, "fraud": True, "revision": 0} if contract is OUTCOME else GOOD
    record = {name: value for name, value in {**base, **changes}.items() if name in names or name in changes}
    value = json.dumps({name: v for name, v in record.items() if name not in missing}, ensure_ascii=False).encode()
    assert accepted(contract, value) == valid_by_schema(contract, value), value


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")),
                 st.recursive(field_values, lambda inner: st.lists(inner, max_size=3), max_leaves=5).map(lambda x: json.dumps(x).encode())))
def test_decoder_and_schema_agree_on_any_bytes(value: bytes) -> None:
    assert accepted(TRANSACTION, value) == valid_by_schema(TRANSACTION, value), value


@pytest.mark.parametrize(("value", "reason"), [
    (None, "no-value"),
    (b"", "not-json"),
    (b"garbage", "not-json"),
    (b"\xff\xfe", "not-json"),
    (b"[" * 100_000, "wrong-type"),
    (b'{"amount_minor": NaN}', "not-json"),
    (b'"' + b"x" * 5_000_000 + b'"', "too-large"),
    (json.dumps({**GOOD, "amount_minor": "57"}).encode(), "wrong-type"),
    (json.dumps({**GOOD, "amount_minor": 57.16}).encode(), "wrong-type"),
    (json.dumps({**GOOD, "amount_minor": True}).encode(), "wrong-type"),
    (json.dumps({**GOOD, "card_id": None}).encode(), "wrong-type"),
    (json.dumps({**GOOD, "amount_minor": -1}).encode(), "out-of-range"),
    (json.dumps({**GOOD, "card_id": ""}).encode(), "out-of-range"),
    (json.dumps({**GOOD, "colour": "red"}).encode(), "unknown-field"),
    (json.dumps({k: v for k, v in GOOD.items() if k != "card_id"}).encode(), "missing-field"),
    (b"[]", "wrong-type"),
], ids=lambda x: str(x)[:30])
def test_bad_input_gets_a_reason_and_a_hint(value: bytes | None, reason: str) -> None:
    with pytest.raises(ContractError) as caught:
        TRANSACTION.decode(value)
    assert caught.value.reason == reason
    assert caught.value.hint == HINTS[reason]


def test_a_value_of_exactly_the_limit_is_read() -> None:
    padded = json.dumps(GOOD).encode()
    assert accepted(TRANSACTION, padded + b" " * (MAX_VALUE_BYTES - len(padded)))


def test_cloud_event_headers_are_accepted_as_written_and_a_contradiction_is_not() -> None:
    headers = cloud_event_headers(TRANSACTION, "test")("e1", 1_530_000_000_000)
    assert dict(headers)["ce_time"] == b"2018-06-26T08:00:00.000Z"
    check_cloud_event(headers, TRANSACTION)
    check_cloud_event(None, TRANSACTION)
    with pytest.raises(ContractError, match="this topic takes"):
        check_cloud_event(headers, OUTCOME)
    assert not clock(headers)


def test_personal_data_is_tagged_in_the_schema_and_never_in_a_refusal() -> None:
    assert TRANSACTION.json_schema()["properties"]["card_id"]["x-personal-data"] is True
    secret = "4111-1111-1111-1111"
    for change in ({"card_id": secret * 20}, {"amount_minor": secret}, {"event_id": [secret]}):
        with pytest.raises(ContractError) as caught:
            TRANSACTION.decode(json.dumps({**GOOD, **change}).encode())
        assert secret not in str(caught.value)


def test_every_source_has_its_valid_and_dead_letter_topics_and_replays_keep_old_records() -> None:
    for time in ("live", "replay"):
        topics = {topic.name: topic for topic in catalogue(Settings(time=time))}
        for source in sources(Settings(time=time)):
            assert {source, f"{source}.valid", f"{source}.dlq"} <= topics.keys()
        stamped = topics["transactions"].config["message.timestamp.type"]
        assert stamped == ("LogAppendTime" if time == "live" else "CreateTime")
        assert (topics["transactions"].config["retention.ms"] == "-1") == (time == "replay")
