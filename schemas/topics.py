"""The topic catalogue: every topic, its contract and its settings. Topics are made from it, never by a first record."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.contracts import MAX_VALUE_BYTES, Contract
from schemas.evaluations import EVALUATION, EVALUATIONS
from schemas.monitoring import ASKS, CONTROL, RUNS
from schemas.reasons import REASONS
from schemas.records import DEAD_LETTER
from schemas.releases import RELEASE, RELEASES
from schemas.settings import Settings
from schemas.shadow import SHADOW
from schemas.use_cases import TRAFFIC

__all__ = ["BROKER_MAX_BYTES", "DERIVED_MAX_BYTES", "ONE_PARTITION", "PREDICTION_TOPICS", "SOURCES", "VALID_DAYS", "Topic",
           "answered_topic", "catalogue", "dead_letter_topic", "reasons_topic", "shadow_topic", "sources", "valid_topic"]

SOURCES: dict[str, Contract] = {topic: contract for traffic in TRAFFIC for topic, contract in traffic.sources.items()}
"""What producers write in any use case, and the contract each is held to."""
PREDICTION_TOPICS: dict[str, Contract] = {topic: contract for traffic in TRAFFIC for topic, contract in traffic.predictions.items()}
VALID_DAYS = 7
CONTROL_DAYS = 730
ONE_PARTITION = frozenset({RELEASES, *CONTROL})
"""Topics whose records have one order, however many partitions the others have."""
DAY_MS = 86_400_000
FOR_EVER = str(2**63 - 1)
BROKER_MAX_BYTES = 8 << 20  # producers may send more than a contract allows: it must reach the dead letters, not vanish
DERIVED_MAX_BYTES = BROKER_MAX_BYTES + (1 << 20)
"""A derived record is its source's record and a few headers, perhaps compressed less well."""


def valid_topic(source: str) -> str:
    return f"{source}.valid"


def dead_letter_topic(source: str) -> str:
    return f"{source}.dlq"


def answered_topic(predictions: str) -> str:
    """Predictions made by request. Not ``predictions`` itself: there the last record of a partition says how far its scorer is."""
    return f"{predictions}.answered"


def reasons_topic(predictions: str) -> str:
    """The reasons of its alerts."""
    return f"{predictions}.reasons"


def shadow_topic(predictions: str) -> str:
    """What versions that decide nothing say of those predictions."""
    return f"{predictions}.shadow"


def sources(settings: Settings) -> dict[str, Contract]:
    """Those of the use cases that ``settings`` name."""
    return {topic: contract for traffic in TRAFFIC if traffic.use_case in settings.use_cases
            for topic, contract in traffic.sources.items()}


@dataclass(frozen=True)
class Topic:
    name: str
    contract: Contract
    partitions: int
    replication: int
    config: dict[str, str]


def catalogue(settings: Settings) -> list[Topic]:
    """Every topic of the use cases that ``settings`` name, as they say it must be.

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

    topics = [Topic(RELEASES, RELEASE, 1, settings.replication, {
        "cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "message.timestamp.type": "CreateTime"})]
    topics.append(topic(EVALUATIONS, EVALUATION, 30, True))
    for traffic in TRAFFIC:
        if traffic.use_case not in settings.use_cases:
            continue
        topics += [topic(name, contract, 30, True) for predictions, contract in traffic.predictions.items()
                   for name in (predictions, answered_topic(predictions))]
        topics += [topic(reasons_topic(predictions), REASONS, 30, True) for predictions in traffic.predictions]
        topics += [topic(shadow_topic(predictions), SHADOW, 30, True) for predictions in traffic.predictions]
        for source, contract in traffic.sources.items():
            topics += [
                topic(source, contract, 30, True, BROKER_MAX_BYTES),
                topic(valid_topic(source), contract, VALID_DAYS, False),  # carries the source's arrival time on
                topic(dead_letter_topic(source), DEAD_LETTER, 90, True),
            ]
    topics += [Topic(name, contract, 1, settings.replication, config(CONTROL_DAYS, name in (RUNS, ASKS), DERIVED_MAX_BYTES))
               for name, contract in CONTROL.items()]
    return topics


assert MAX_VALUE_BYTES < BROKER_MAX_BYTES
