"""What travels in the fraud use case: card payments, what became known of them, and their scores."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.contracts import Contract, Traffic
from schemas.records import Id, Revision, TimeMs, prediction_record

__all__ = ["MAX_AMOUNT_MINOR", "OUTCOME", "OUTCOMES", "PREDICTION", "PREDICTIONS", "TRAFFIC", "TRANSACTION", "TRANSACTIONS", "Outcome",
           "Prediction", "Transaction"]

TRANSACTIONS, OUTCOMES, PREDICTIONS = "transactions", "outcomes", "predictions"

MAX_AMOUNT_MINOR = 10**11
"""Ten million records of this size still sum within int64 (semantics: sums are exact integers)."""

AmountMinor = Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR)]


class Transaction(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    event_id: Id
    event_time: TimeMs
    card_id: Id
    terminal_id: Id
    amount_minor: AmountMinor


class Outcome(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What became known of a transaction: ``event_id`` and ``event_time`` are the transaction's own."""

    event_id: Id
    event_time: TimeMs
    card_id: Id
    terminal_id: Id
    fraud: bool
    revision: Revision = 0


Prediction = prediction_record("Prediction", __name__, ("card_id", "terminal_id"))

TRANSACTION = Contract("transaction", 1, Transaction, "payments", "card_id", "backward", frozenset({"card_id"}),
                       "A card payment at a terminal. A retry keeps event_id and event_time.")
OUTCOME = Contract("outcome", 1, Outcome, "fraud-operations", "card_id", "backward", frozenset({"card_id"}),
                   "Whether a transaction was fraud, sent when it is known; a correction has a higher revision.")
PREDICTION = Contract("prediction", 1, Prediction, "fraud-scoring", "card_id", "backward", frozenset({"card_id"}),
                      "The score of one transaction with the features it was made from and their provenance.")
TRAFFIC = Traffic("fraud", {TRANSACTIONS: TRANSACTION, OUTCOMES: OUTCOME}, {PREDICTIONS: PREDICTION})
