"""What was decided: detections, requests, runs and releases, from Kafka and from the archive, each record once."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from feature_repo.archive_table import control_records
from schemas.errors import ContractError, LogError, RuntimeFault
from schemas.monitoring import (
    ASKS,
    DECISIONS,
    DETECTIONS,
    REQUESTS,
    RUNS,
    Detection,
    RetrainAsk,
    RetrainDecision,
    RetrainRequest,
    RunRecord,
)
from schemas.releases import RELEASE, RELEASES, Chain, Release
from schemas.settings import Settings
from services.ledger import read_topic
from services.runtime.endpoints import kafka_endpoint

__all__ = ["Chronicle", "read_chronicle"]

TOPICS = (DETECTIONS, DECISIONS, REQUESTS, RUNS, ASKS, RELEASES)
TIMEOUT_S = 10.0


@dataclass
class Chronicle:
    """In the order of their topics. What was said twice under one id is there once, as it was first said.

    ``read`` says where from: Kafka (with the fault where it did not answer) and the version of the archive's table.
    """

    detections: dict[str, Detection] = field(default_factory=dict)
    decisions: dict[str, RetrainDecision] = field(default_factory=dict)
    requests: dict[str, RetrainRequest] = field(default_factory=dict)
    runs: list[RunRecord] = field(default_factory=list)
    asks: dict[str, RetrainAsk] = field(default_factory=dict)
    chain: Chain = field(default_factory=Chain)
    read: dict[str, str | int | None] = field(default_factory=dict)

    def release_of(self, model: str, version: str | None, at_ms: int, epoch: int | None = None) -> Release | None:
        """The release under which ``version`` predicted at ``at_ms``. Where the prediction names no epoch: the last that made this version
        live by then, for a scorer takes a release up a moment after its time."""
        history = self.chain.history(model)
        if epoch is not None:
            return next((each for each in history if each.epoch == epoch), None)
        return next((each for each in reversed(history) if each.champion == version and each.at_ms <= at_ms), None)

    def release_from(self, retrain_id: str) -> Release | None:
        return next((each for each in self.releases() if each.release_id == retrain_id), None)

    def releases(self) -> list[Release]:
        return [each for model in self.chain.models() for each in self.chain.history(model)]

    def take(self, topic: str, offset: int, value: bytes) -> None:
        """A record that is not what its topic is for says nothing."""
        try:
            if topic == RELEASES:
                self.chain.take(offset, RELEASE.decode(value))
            elif topic == DETECTIONS:
                detection = msgspec.json.decode(value, type=Detection)
                self.detections.setdefault(detection.detection_id, detection)
            elif topic == DECISIONS:
                decision = msgspec.json.decode(value, type=RetrainDecision)
                self.decisions.setdefault(decision.decision_id, decision)
            elif topic == REQUESTS:
                request = msgspec.json.decode(value, type=RetrainRequest)
                self.requests.setdefault(request.retrain_id, request)
            elif topic == RUNS:
                self.runs.append(msgspec.json.decode(value, type=RunRecord))
            elif topic == ASKS:
                ask = msgspec.json.decode(value, type=RetrainAsk)
                self.asks.setdefault(ask.ask_id, ask)
        except (msgspec.MsgspecError, UnicodeError, ContractError):
            return


def read_chronicle(settings: Settings) -> Chronicle:
    """All that is known of either source. Raises what Kafka raised where nothing was archived either."""
    found: dict[tuple[str, int], bytes] = {}
    version, fault = control_records(settings, TOPICS, found), None
    try:
        kafka = kafka_endpoint(settings)
        for topic in TOPICS:
            found |= {(topic, message.offset()): message.value() or b"" for message in read_topic(kafka, topic, TIMEOUT_S)}
    except (LogError, RuntimeFault) as error:
        fault = error
    if fault is not None and version is None:
        raise fault
    told = Chronicle(read={"kafka": "read" if fault is None else fault.fact, "control_version": version})
    for (topic, offset), value in sorted(found.items()):
        told.take(topic, offset, value)
    return told
