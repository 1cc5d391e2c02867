"""A topic gets more partitions: `headrace doctor` says what does not fit, its command mends it, and nothing was lost meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import redis
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from schemas.errors import LogError
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import ONE_PARTITION, catalogue
from services.cli import main
from services.ledger import end_offsets
from services.runtime.doctor import Finding, examine
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.world_check import Sent, read_predictions, small_world, wrong_sets


def publish(runtime: Runtime, sent: Sent, partitions: int) -> None:
    """Each card in a partition of its own choice among ``partitions``."""
    producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all"})
    for event, arrival_ms in sent.transactions:
        producer.produce(TRANSACTIONS, msgspec.json.encode(event), event.card_id.encode(), int(event.card_id[1:]) % partitions,
                         timestamp=arrival_ms)
    assert producer.flush(30) == 0


def findings() -> list[Finding]:
    return [finding for finding in examine() if finding.name == "partitions"]


@pytest.mark.slow
def test_more_partitions_are_noticed_mended_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    before, between, after = (small_world(200, seed=seed) for seed in (1, 2, 3))
    settings = Settings(home=tmp_path, time="replay")
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_TIME", "replay")
    monkeypatch.setattr("services.runtime.doctor.ASK_S", 60.0)
    with Runtime(settings, ("worker", "scorer")) as runtime:
        publish(runtime, before, 4)
        eventually(lambda: len(read_predictions(runtime.kafka).first) == 200)
        assert findings() == []
        admin = AdminClient({"bootstrap.servers": runtime.kafka})
        admin.create_partitions([NewPartitions(TRANSACTIONS, 6)])[TRANSACTIONS].result(30)
        eventually(lambda: len(end_offsets(runtime.kafka, TRANSACTIONS)) == 6)
        publish(runtime, between, 6)

        (found,) = findings()
        assert found.verdict == "missing"
        assert found.mend.startswith("HEADRACE_PARTITIONS=6 headrace topics --grow, ")
        assert "transactions.valid 4" in found.fact
        assert "transactions 6" not in found.fact
        monkeypatch.setenv("HEADRACE_PARTITIONS", "6")
        assert main(["topics", "--json"]) == LogError.exit_code, "not without being told to"
        assert "partitions 4 (catalogue: 6)" in capsys.readouterr().err
        assert main(["topics", "--grow", "--json"]) == 0
        assert {topic["partitions"] for topic in json.loads(capsys.readouterr().out) if topic["name"] not in ONE_PARTITION} == {6}
        assert {len(end_offsets(runtime.kafka, topic.name)) for topic in catalogue(settings) if topic.name not in ONE_PARTITION} == {6}
        assert findings() == []

    with Runtime(settings.model_copy(update={"partitions": 6}), ("worker", "scorer")) as runtime:
        publish(runtime, after, 6)
        eventually(lambda: len(read_predictions(runtime.kafka).first) == 600)
        everything = Sent(before.transactions + between.transactions + after.transactions)
        assert wrong_sets(redis.Redis.from_url(runtime.redis), everything) == []
        # Negative control: the comparison sees what came through the new partitions alone.
        assert wrong_sets(redis.Redis.from_url(runtime.redis), before)
