"""The churn use case, declared in one place: which customers will buy nothing in the next 90 days.

A score is asked for, weekly of everybody who bought in the last 90 days and at any time of anybody; nothing a customer does is scored
by itself. The label is the absence of purchases, so nobody reports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from feature_repo.models import Absence, Bands, Emission, Fairness, ModelSpec, Schedule, UseCase
from feature_repo.reason_codes import CHURN_REASONS
from feature_repo.views import DAY_MS, Column, Feature, FeatureService, FeatureView, RequestFeature
from schemas.churn import CANCELLATIONS, PREDICTIONS, PURCHASES, REQUESTS

__all__ = ["CHURN", "CUSTOMER_CANCELLATIONS", "CUSTOMER_PURCHASES", "SERVICE", "USE_CASE"]

Arrays = dict[str, np.ndarray[Any, Any]]
DAYS = (30, 90, 180)
LONGEST = DAYS[-1]
HORIZON_MS = 90 * DAY_MS
COLUMNS = (Column("amount_minor", scale=100), Column("invoice", hashed=True), Column("product", hashed=True))

CUSTOMER_PURCHASES = FeatureView(
    name="customer_purchases", entity="customer_id", source=PURCHASES, owner="churn-scoring",
    doc="How lately, how often and for how much this customer has bought.",
    columns=COLUMNS,
    features=(
        Feature("recency_s", "time_since_last", LONGEST * DAY_MS),
        *(Feature(f"invoices_{d}d", "count_distinct", d * DAY_MS, "invoice") for d in DAYS),
        *(Feature(f"value_{d}d", "sum", d * DAY_MS, "amount_minor") for d in DAYS),
        *(Feature(f"lines_{d}d", "count", d * DAY_MS) for d in DAYS),
        *(Feature(f"products_{d}d", "count_distinct", d * DAY_MS, "product") for d in DAYS),
    ),
)

CUSTOMER_CANCELLATIONS = FeatureView(
    name="customer_cancellations", entity="customer_id", source=CANCELLATIONS, owner="churn-scoring",
    doc="What this customer has given back.",
    columns=COLUMNS[:2],
    features=(
        *(Feature(f"cancellations_{d}d", "count_distinct", d * DAY_MS, "invoice") for d in DAYS),
        *(Feature(f"cancelled_value_{d}d", "sum", d * DAY_MS, "amount_minor") for d in DAYS),
    ),
)


def over(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """a / b; null where b is 0 or null."""
    usable = b > 0
    return np.where(usable, a / np.where(usable, b, 1.0), np.nan)


def value_per_invoice(x: Arrays) -> np.ndarray[Any, Any]:
    return over(x["value_180d"], x["invoices_180d"])


def recency_to_pace(x: Arrays) -> np.ndarray[Any, Any]:
    """Time since the last purchase over the customer's mean time between two in 180 days: above 1 a purchase is overdue."""
    return over(x["recency_s"] * x["invoices_180d"], np.full(len(x["recency_s"]), LONGEST * DAY_MS / 1000.0))


def cancelled_share(x: Arrays) -> np.ndarray[Any, Any]:
    return over(x["cancelled_value_180d"], x["value_180d"])


SERVICE = FeatureService(
    name="churn", source=REQUESTS, predictions=PREDICTIONS, views=(CUSTOMER_PURCHASES, CUSTOMER_CANCELLATIONS),
    doc="Everything the churn model reads about a customer.",
    request=(
        RequestFeature("value_per_invoice", value_per_invoice, doc="value of a mean invoice of 180 days, currency units"),
        RequestFeature("recency_to_pace", recency_to_pace, doc="time since the last purchase over the mean time between two"),
        RequestFeature("cancelled_share", cancelled_share, doc="value given back over value bought, 180 days"),
    ),
)

CHURN = ModelSpec(
    name="churn", service=SERVICE, label="churned", labels=Absence(PURCHASES), label_delay_ms=HORIZON_MS, subject="customer_id",
    alerts_per_day=100, trees=100, depth=3, learning_rate=0.05, seed=0, baselines=("recency_s", "invoices_180d"),
    schedule=Schedule(CUSTOMER_PURCHASES, every_ms=7 * DAY_MS, active_ms=HORIZON_MS),
    groups=(Bands("invoices_180d", (3, 10)), Bands("value_180d", (500,), Fairness())),
    reasons=CHURN_REASONS,
)
USE_CASE = UseCase("churn", (CHURN,), (Emission(PURCHASES), Emission(CANCELLATIONS)))
