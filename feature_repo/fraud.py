"""The card-fraud use case, declared in one place: views, request-time features, feature service, model."""

from __future__ import annotations

from typing import Any

import numpy as np

from feature_repo.models import Bands, DriftPolicy, Emission, Fairness, ModelSpec, Outcomes, Slice, UseCase
from feature_repo.reason_codes import FRAUD_REASONS
from feature_repo.rules import Rule
from feature_repo.views import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    Column,
    Feature,
    FeatureService,
    FeatureView,
    RequestFeature,
)
from schemas.fraud import OUTCOMES, PREDICTIONS, TRANSACTIONS

__all__ = ["CARD_SPEND", "FRAUD", "LABEL_DELAY_MS", "SERVICE", "TERMINAL_ACTIVITY", "TERMINAL_RISK", "USE_CASE", "VIEWS"]

Arrays = dict[str, np.ndarray[Any, Any]]
DAYS = (1, 7, 30)
MINUTES = (1, 10, 60)
LABEL_DELAY_MS = 7 * DAY_MS

CARD_SPEND = FeatureView(
    name="card_spend", entity="card_id", source=TRANSACTIONS, owner="fraud-scoring",
    doc="How this card has been used lately.",
    columns=(Column("amount_minor", scale=100), Column("terminal_id", hashed=True)),
    features=(
        *(Feature(f"card_count_{m}m", "count", m * MINUTE_MS) for m in MINUTES),
        *(Feature(f"card_count_{d}d", "count", d * DAY_MS) for d in DAYS),
        *(Feature(f"card_amount_mean_{d}d", "mean", d * DAY_MS, "amount_minor") for d in DAYS),
        Feature("card_amount_max_30d", "max", 30 * DAY_MS, "amount_minor"),
        Feature("card_amount_std_30d", "std", 30 * DAY_MS, "amount_minor"),
        Feature("card_terminals_1d", "count_distinct", DAY_MS, "terminal_id"),
        Feature("card_at_terminal_30d", "count_same", 30 * DAY_MS, "terminal_id"),
    ),
)

TERMINAL_ACTIVITY = FeatureView(
    name="terminal_activity", entity="terminal_id", source=TRANSACTIONS, owner="fraud-scoring",
    doc="How busy this terminal is, with how many cards.",
    columns=(Column("amount_minor", scale=100), Column("card_id", hashed=True)),
    features=(
        *(Feature(f"terminal_count_{m}m", "count", m * MINUTE_MS) for m in (10, 60)),
        Feature("terminal_count_24h", "count", 24 * HOUR_MS),
        Feature("terminal_amount_mean_24h", "mean", 24 * HOUR_MS, "amount_minor"),
        Feature("terminal_cards_24h", "count_distinct", 24 * HOUR_MS, "card_id"),
    ),
)

TERMINAL_RISK = FeatureView(
    name="terminal_risk", entity="terminal_id", source=OUTCOMES, owner="fraud-scoring",
    doc="What became known of this terminal's transactions, no earlier than labels mature.",
    columns=(Column("revision", revision=True), Column("fraud")),
    delay_ms=LABEL_DELAY_MS,
    allowed_lateness_ms=60 * DAY_MS,  # a chargeback may take two months and still counts where it is read
    features=(
        *(Feature(f"terminal_count_{d}d", "count", d * DAY_MS) for d in DAYS),
        *(Feature(f"terminal_fraud_ratio_{d}d", "mean", d * DAY_MS, "fraud") for d in DAYS),
    ),
)

VIEWS = (CARD_SPEND, TERMINAL_ACTIVITY, TERMINAL_RISK)


def amount(x: Arrays) -> np.ndarray[Any, Any]:
    """In units of the currency."""
    return x["amount_minor"].astype(np.float64) / 100.0


def weekend(x: Arrays) -> np.ndarray[Any, Any]:
    """1 on Saturday and Sunday, UTC (1970-01-01 was a Thursday)."""
    return ((x["event_time"] // DAY_MS + 3) % 7 >= 5).astype(np.float64)


def night(x: Arrays) -> np.ndarray[Any, Any]:
    """1 from 00:00 to 06:59 UTC."""
    return (x["event_time"] % DAY_MS < 7 * HOUR_MS).astype(np.float64)


def amount_to_mean_30d(x: Arrays) -> np.ndarray[Any, Any]:
    """This amount over the card's mean of 30 days, this one included; null where that mean is 0 or null."""
    mean = x["card_amount_mean_30d"]
    usable = mean > 0
    return np.where(usable, amount(x) / np.where(usable, mean, 1.0), np.nan)


def new_terminal(x: Arrays) -> np.ndarray[Any, Any]:
    """1 where the card has not been at this terminal in 30 days before this event; null where its history is unknown."""
    seen = x["card_at_terminal_30d"]
    return np.where(np.isnan(seen), np.nan, (seen <= 1).astype(np.float64))


SERVICE = FeatureService(
    name="fraud", source=TRANSACTIONS, predictions=PREDICTIONS, views=VIEWS, event_columns=("event_time", "amount_minor"),
    doc="Everything the fraud model reads about a transaction.",
    request=(
        RequestFeature("amount", amount, doc="amount of this transaction, currency units"),
        RequestFeature("weekend", weekend, doc="1 on Saturday and Sunday, UTC"),
        RequestFeature("night", night, doc="1 from 00:00 to 06:59 UTC"),
        RequestFeature("amount_to_mean_30d", amount_to_mean_30d, doc="amount over the card's 30-day mean"),
        RequestFeature("new_terminal", new_terminal, doc="1 where the card was not at this terminal in the last 30 days"),
    ),
)


FRAUD = ModelSpec(name="fraud", service=SERVICE, label="fraud", labels=Outcomes(OUTCOMES, "fraud"), label_delay_ms=LABEL_DELAY_MS,
                  subject="card_id", alerts_per_day=100, trees=100, depth=5, learning_rate=0.1, seed=0, baselines=("amount",),
                  blocks=True, rules=(
                      Rule("amount", 0, nullable=False), Rule("weekend", 0, 1, nullable=False), Rule("night", 0, 1, nullable=False),
                      *(Rule(f"terminal_fraud_ratio_{d}d", 0, 1) for d in DAYS)),
                  drift=DriftPolicy(age_ms=LABEL_DELAY_MS + DAY_MS, echo_ms=LABEL_DELAY_MS + 2 * DAY_MS, labelled_ms=4 * DAY_MS, slices=(
                      Slice("night", lambda at_ms: at_ms % DAY_MS < 7 * HOUR_MS),)),
                  groups=(Bands("amount", (20, 100)), Bands("terminal_count_24h", (5,)),
                          # Of fresh cards. Their share of fraud is another one, so equal shares of alerts would be unfair to the others.
                          Bands("card_count_30d", (30,), Fairness(parity_ratio=None))), reasons=FRAUD_REASONS)
USE_CASE = UseCase("fraud", (FRAUD,), (Emission(OUTCOMES, LABEL_DELAY_MS, when="fraud"), Emission(TRANSACTIONS)))
