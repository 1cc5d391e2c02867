"""What a contract is: a record type, its owner, key, compatibility and personal data, its published JSON Schema, its decoder.

The record type (a msgspec Struct) is the one declaration; JSON Schema and the fast decoder are two readings of it and give the
same verdicts. The schema is published as draft-04 because there an integer is "a number without a fraction or exponent part",
which is what the decoder accepts; later drafts take ``1.0`` for an integer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import msgspec

from schemas.errors import ContractError

__all__ = ["MAX_VALUE_BYTES", "Contract", "Traffic", "explain_reason", "refusal"]

MAX_VALUE_BYTES = 1 << 20
"""A larger value is refused unread: a decoder must not be made to allocate."""

Compatibility = Literal["backward", "forward", "full", "none"]
UNKNOWN_FIELD = re.compile(r"unknown field")
MISSING_FIELD = re.compile(r"missing required field")
WRONG_TYPE = re.compile(r"^Expected `[^`]+`, got")
HINTS = {
    "not-json": "send one UTF-8 JSON object per record",
    "no-value": "a tombstone means nothing on this topic; send the event, or nothing",
    "too-large": f"keep a value under {MAX_VALUE_BYTES} bytes",
    "missing-field": "add the field; the published JSON Schema lists what is required",
    "unknown-field": "remove the field, or have it added to the contract first",
    "wrong-type": "send the JSON type that the contract names; numbers are not quoted, integers have no fraction",
    "out-of-range": "send a value within the contract's bounds",
    "clock-skew": "set the producer's clock; event_time may not lie in the future",
}


def explain_reason(reason: str) -> str:
    """What a producer can do about a dead letter of this ``reason``."""
    return HINTS.get(reason, "see the contract's published JSON Schema")


def refusal(error: Exception) -> ContractError:
    """What an error of a decoder says of the record."""
    fact = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return ContractError("not-json", f"value is not JSON: {fact}", hint=HINTS["not-json"])
    reason = ("unknown-field" if UNKNOWN_FIELD.search(fact) else "missing-field" if MISSING_FIELD.search(fact)
              else "wrong-type" if WRONG_TYPE.search(fact) else "out-of-range")
    return ContractError(reason, fact, hint=HINTS[reason])


@dataclass(frozen=True)
class Contract:
    """The agreement on one kind of record.

    Parameters
    ----------
    name, version
        The CloudEvents type is ``headrace.<name>.v<version>``.
    record
        The msgspec Struct that declares fields, types and bounds.
    owner
        The team that answers for it.
    key
        The field whose text is the Kafka key, so that one entity's records keep their order.
    compatibility
        What a new version must keep: ``backward`` readers of the new read the old.
    personal_data
        Fields that identify a person, directly or by a lookup; they are never logged.
    """

    name: str
    version: int
    record: type[msgspec.Struct]
    owner: str
    key: str
    compatibility: Compatibility
    personal_data: frozenset[str] = frozenset()
    doc: str = ""

    @property
    def type(self) -> str:
        return f"headrace.{self.name}.v{self.version}"

    @cached_property
    def type_bytes(self) -> bytes:
        return self.type.encode()

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.record)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached: a decoder cannot travel to Spark's workers."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def decode(self, value: bytes | None) -> Any:
        """The record in ``value``.

        Raises ContractError with one of the reasons in ``HINTS`` and a fact that names field and fault, never the value.
        """
        if value is None:
            raise ContractError("no-value", "record has no value", hint=HINTS["no-value"])
        if len(value) > MAX_VALUE_BYTES:
            raise ContractError("too-large", f"value has {len(value)} bytes", hint=HINTS["too-large"])
        try:
            return self.decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refusal(error) from error

    def blank(self) -> Any:
        """A record that says nothing, for trying out what takes one: texts are "-", all else is 0."""
        kinds = msgspec.inspect.type_info(self.record)
        assert isinstance(kinds, msgspec.inspect.StructType)
        return self.record(*("-" if isinstance(field.type, msgspec.inspect.StrType) else 0 for field in kinds.fields))

    def json_schema(self) -> dict[str, Any]:
        """The published JSON Schema (draft-04), with owner, key and personal-data tags as ``x-`` members."""
        generated = msgspec.json.schema(self.record)
        body = dict(generated["$defs"][self.record.__name__])
        body["properties"] = {
            name: {**field, "x-personal-data": True} if name in self.personal_data else field
            for name, field in body["properties"].items()
        }
        return {"$schema": "http://json-schema.org/draft-04/schema#", "id": self.type, **body, "description": self.doc,
                "x-owner": self.owner, "x-key": self.key, "x-compatibility": self.compatibility}


@dataclass(frozen=True)
class Traffic:
    """What of one use case travels: topics that producers write and those that its scorers write, each with its contract.

    A predictions topic belongs to one feature service: its last record says how far that service's scorers have come.
    """

    use_case: str
    sources: Mapping[str, Contract]
    predictions: Mapping[str, Contract]
