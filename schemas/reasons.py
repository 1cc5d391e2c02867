"""Why a prediction is an alert, in words that do not change: published for every alert, after it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.contracts import Contract
from schemas.records import Id, TimeMs

__all__ = ["REASONS", "Reason", "Reasons"]


class Reason(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One feature that raised the score: its code, which stays when words change, its value (null: unknown), what it adds to log-odds."""

    code: Annotated[str, Meta(min_length=1, max_length=32)]
    feature: str
    value: float | None
    contribution: float
    words: str


class Reasons(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """``base`` + contributions of ``reasons`` + ``rest`` (of all other features) = ``margin``, the log-odds of ``score``.

    ``subject`` is the entity that alerts are counted by. With a ``fault`` nothing could be said of this alert, and it tells why.
    """

    prediction_id: Id
    event_id: Id
    event_time: TimeMs
    subject: Id
    model: str
    model_version: str | None
    service_hash: str
    score: float
    threshold: float
    base: float | None
    margin: float | None
    reasons: list[Reason]
    rest: float | None
    fault: str | None = None


REASONS = Contract("reasons", 1, Reasons, "headrace", "subject", "backward", frozenset({"subject"}),
                   "The reasons of one alert: what raised its score most, and what the rest added.")
