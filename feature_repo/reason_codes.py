"""Reason codes: what is said where a feature raised a score. A table, not derived: codes outlive names, order and windows of features.

A code is never used again for something else; a feature that goes leaves its code behind.
"""

from __future__ import annotations

from feature_repo.models import ReasonCode

__all__ = ["CHURN_REASONS", "FRAUD_REASONS"]

FRAUD_REASONS = (
    ReasonCode("card_count_1m", "C01", "payments with this card in one minute"),
    ReasonCode("card_count_10m", "C02", "payments with this card in ten minutes"),
    ReasonCode("card_count_60m", "C03", "payments with this card in an hour"),
    ReasonCode("card_count_1d", "C04", "payments with this card in a day"),
    ReasonCode("card_count_7d", "C05", "payments with this card in a week"),
    ReasonCode("card_count_30d", "C06", "payments with this card in 30 days"),
    ReasonCode("card_amount_mean_1d", "C07", "mean amount of this card in a day"),
    ReasonCode("card_amount_mean_7d", "C08", "mean amount of this card in a week"),
    ReasonCode("card_amount_mean_30d", "C09", "mean amount of this card in 30 days"),
    ReasonCode("card_amount_max_30d", "C10", "largest amount of this card in 30 days"),
    ReasonCode("card_amount_std_30d", "C11", "how much the amounts of this card vary in 30 days"),
    ReasonCode("card_terminals_1d", "C12", "terminals that this card was used at in a day"),
    ReasonCode("card_at_terminal_30d", "C13", "payments with this card at this terminal in 30 days"),
    ReasonCode("terminal_count_10m", "T01", "payments at this terminal in ten minutes"),
    ReasonCode("terminal_count_60m", "T02", "payments at this terminal in an hour"),
    ReasonCode("terminal_count_24h", "T03", "payments at this terminal in 24 hours"),
    ReasonCode("terminal_amount_mean_24h", "T04", "mean amount at this terminal in 24 hours"),
    ReasonCode("terminal_cards_24h", "T05", "cards used at this terminal in 24 hours"),
    ReasonCode("terminal_count_1d", "R01", "payments at this terminal with a known outcome, one day"),
    ReasonCode("terminal_count_7d", "R02", "payments at this terminal with a known outcome, one week"),
    ReasonCode("terminal_count_30d", "R03", "payments at this terminal with a known outcome, 30 days"),
    ReasonCode("terminal_fraud_ratio_1d", "R04", "share of known fraud at this terminal, one day"),
    ReasonCode("terminal_fraud_ratio_7d", "R05", "share of known fraud at this terminal, one week"),
    ReasonCode("terminal_fraud_ratio_30d", "R06", "share of known fraud at this terminal, 30 days"),
    ReasonCode("amount", "P01", "amount of this payment"),
    ReasonCode("weekend", "P02", "payment at a weekend"),
    ReasonCode("night", "P03", "payment at night"),
    ReasonCode("amount_to_mean_30d", "P04", "amount over this card's mean of 30 days"),
    ReasonCode("new_terminal", "P05", "terminal that is new to this card"),
)

CHURN_REASONS = (
    ReasonCode("recency_s", "B01", "time since the last purchase"),
    ReasonCode("invoices_30d", "B02", "invoices in 30 days"),
    ReasonCode("invoices_90d", "B03", "invoices in 90 days"),
    ReasonCode("invoices_180d", "B04", "invoices in 180 days"),
    ReasonCode("value_30d", "B05", "value bought in 30 days"),
    ReasonCode("value_90d", "B06", "value bought in 90 days"),
    ReasonCode("value_180d", "B07", "value bought in 180 days"),
    ReasonCode("lines_30d", "B08", "invoice lines in 30 days"),
    ReasonCode("lines_90d", "B09", "invoice lines in 90 days"),
    ReasonCode("lines_180d", "B10", "invoice lines in 180 days"),
    ReasonCode("products_30d", "B11", "different products in 30 days"),
    ReasonCode("products_90d", "B12", "different products in 90 days"),
    ReasonCode("products_180d", "B13", "different products in 180 days"),
    ReasonCode("cancellations_30d", "G01", "credit notes in 30 days"),
    ReasonCode("cancellations_90d", "G02", "credit notes in 90 days"),
    ReasonCode("cancellations_180d", "G03", "credit notes in 180 days"),
    ReasonCode("cancelled_value_30d", "G04", "value given back in 30 days"),
    ReasonCode("cancelled_value_90d", "G05", "value given back in 90 days"),
    ReasonCode("cancelled_value_180d", "G06", "value given back in 180 days"),
    ReasonCode("value_per_invoice", "H01", "value of a mean invoice"),
    ReasonCode("recency_to_pace", "H02", "time since the last purchase over this customer's pace"),
    ReasonCode("cancelled_share", "H03", "share of value given back"),
)
