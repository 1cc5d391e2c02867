"""The topic catalogue: every topic, its contract and its settings. Topics are made from it, never by a first record."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.contracts import MAX_VALUE_BYTES, Contract
from schemas.records import DEAD_LETTER, OUTCOME, PREDICTION, TRANSACTION
from schemas.settings import Settings

__all__ = [
    "BROKER_MAX_BYTES", "DERIVED_MAX_BYTES", "OUTCOMES", "OUTCOMES_VALID", "PREDICTIONS", "SOURCES", "TRANSACTIONS", "TRANSACTIONS_VALID",
    "Topic", "catalogue", "dead_letter_topic", "valid_topic",
]

TRANSACTIONS = "transactions"
OUTCOMES = "outcomes"
PREDICTIONS = "predictions"
DAY_MS = 86_400_000
FOR_EVER = str(2**63 - 1)
BROKER_MAX_BYTES = 8 << 20  # producers may send more than a contract allows: it must reach the dead letters, not vanish
DERIVED_MAX_BYTES = BROKER_MAX_BYTES + (1 << 20)
"""A derived record is its source's record and a few headers, perhaps compressed less well."""


def valid_topic(source: str) -> str:
    return f"{source}.valid"


def dead_letter_topic(source: str) -> str:
    return f"{source}.dlq"


TRANSACTIONS_VALID = valid_topic(TRANSACTIONS)
OUTCOMES_VALID = valid_topic(OUTCOMES)
SOURCES = {TRANSACTIONS: TRANSACTION, OUTCOMES: OUTCOME}
"""What producers write, and the contract each is held to."""


@dataclass(frozen=True)
class Topic:
    name: str
    contract: Contract
    partitions: int
    replication: int
    config: dict[str, str]


def catalogue(settings: Settings) -> list[Topic]:
    """Every topic that headrace uses, as ``settings`` say it must be.

    In replays arrival times are the publisher's, so retention by time would delete 2018 at once: there it is bounded in bytes,
    and the broker takes stamps from any time (admission judges the future, not the broker).
    """
    replay = settings.time == "replay"

    def config(retention_days: int, arrival_from_broker: bool, max_bytes: int) -> dict[str, str]:
        common = {"cleanup.policy": "delete", "max.message.bytes": str(max_bytes)}
        if replay:
            return {**common, "message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": FOR_EVER,
                    "message.timestamp.before.max.ms": FOR_EVER, "retention.ms": "-1", "retention.bytes": str(8 << 30)}
        return {**common, "retention.ms": str(retention_days * DAY_MS),
                "message.timestamp.type": "LogAppendTime" if arrival_from_broker else "CreateTime"}

    def topic(name: str, contract: Contract, days: int, arrival_from_broker: bool, max_bytes: int = DERIVED_MAX_BYTES) -> Topic:
        return Topic(name, contract, settings.partitions, settings.replication, config(days, arrival_from_broker, max_bytes))

    topics = [topic(PREDICTIONS, PREDICTION, 30, True)]
    for source, contract in SOURCES.items():
        topics += [
            topic(source, contract, 30, True, BROKER_MAX_BYTES),
            topic(valid_topic(source), contract, 7, False),  # carries the source's arrival time on
            topic(dead_letter_topic(source), DEAD_LETTER, 90, True),
        ]
    return topics


assert MAX_VALUE_BYTES < BROKER_MAX_BYTES
