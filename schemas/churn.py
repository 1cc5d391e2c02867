"""What travels in the churn use case: what customers buy and give back, requests to score a customer, and the scores.

An invoice line is one event: its id is the invoice with the line's number in it, so two equal lines of an invoice are two lines.
A request says nothing but who and as of when; its id may be any, and a retry keeps it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.contracts import Contract, Traffic
from schemas.records import Id, TimeMs, prediction_record

__all__ = ["CANCELLATION", "CANCELLATIONS", "PREDICTION", "PREDICTIONS", "PURCHASE", "PURCHASES", "REQUEST", "REQUESTS", "TRAFFIC",
           "ChurnPrediction", "InvoiceLine", "ScoreRequest"]

PURCHASES, CANCELLATIONS, REQUESTS, PREDICTIONS = "purchases", "cancellations", "churn-requests", "churn-predictions"

Quantity = Annotated[int, Meta(ge=1, le=100_000)]
PriceMinor = Annotated[int, Meta(ge=0, le=10**7)]
"""With ``Quantity`` a line is at most 10**12 minor units: a million lines still sum within int64."""


class InvoiceLine(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A line of an invoice, or of the credit note that takes it back."""

    event_id: Id
    event_time: TimeMs
    customer_id: Id
    invoice: Id
    product: Id
    quantity: Quantity
    unit_price_minor: PriceMinor

    @property
    def amount_minor(self) -> int:
        return self.quantity * self.unit_price_minor


class ScoreRequest(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    event_id: Id
    event_time: TimeMs
    customer_id: Id


ChurnPrediction = prediction_record("ChurnPrediction", __name__, ("customer_id",))

PERSONAL = frozenset({"customer_id"})
PURCHASE = Contract("purchase", 1, InvoiceLine, "shop", "customer_id", "backward", PERSONAL,
                    "A line of an invoice. A retry keeps event_id and event_time.")
CANCELLATION = Contract("cancellation", 1, InvoiceLine, "shop", "customer_id", "backward", PERSONAL,
                        "A line of a credit note: what a customer gave back. Quantities are positive here too.")
REQUEST = Contract("churn-request", 1, ScoreRequest, "churn-scoring", "customer_id", "backward", PERSONAL,
                   "Asks for the churn score of a customer as of event_time.")
PREDICTION = Contract("churn-prediction", 1, ChurnPrediction, "churn-scoring", "customer_id", "backward", PERSONAL,
                      "The answer to one request with the features it was made from and their provenance.")
TRAFFIC = Traffic("churn", {PURCHASES: PURCHASE, CANCELLATIONS: CANCELLATION, REQUESTS: REQUEST}, {PREDICTIONS: PREDICTION})
