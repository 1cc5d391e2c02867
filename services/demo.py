"""The demo: everything on this machine, from raw events to a retrain that was earned, and a report of what was seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer

from feature_repo.fraud import SERVICE, USE_CASE
from feature_repo.views import DAY_MS, HOUR_MS
from schemas.envelope import LATE, header
from schemas.errors import SettingsError
from schemas.fraud import OUTCOMES, PREDICTIONS, TRAFFIC, TRANSACTIONS, Transaction
from schemas.settings import Settings
from schemas.topics import dead_letter_topic, valid_topic
from services.demo_loop import loop_facts
from services.inputs import event_rows
from services.latency import Latency, measure_latency, one_a_millisecond
from services.ledger import end_offsets, read_topic
from services.memory import PeakMemory
from services.planting import Plant, parse_plant
from services.rehearsal import TRAIN_DAY, Calendar, Rehearsal, Stage
from services.runtime.embedded import Runtime

__all__ = ["Demo", "demo_plants", "fresh", "misbehave", "write_report"]

LATENCY_RATE = 500.0
FAULTS = ("outage@60", "skew@63", "duplicates@66", "nulls@69")
"""Of the feed: none of them may cause a retrain."""
CONCEPT_DAY = 78
BROKEN = (b"not JSON at all", b'{"event_id":"demo-broken","amount_minor":"12,50"}',
          b'{"event_id":"demo-negative","event_time":0,"card_id":"c","terminal_id":"t","amount_minor":-1}')


def demo_plants(stage: Stage) -> list[Plant]:
    """Faults of the feed, then a fraud that is new; those that begin within the days."""
    plants = [parse_plant(text, stage.start_ms) for text in (*FAULTS, f"concept@{CONCEPT_DAY}")]
    return [plant for plant in plants if plant.start_ms < stage.at_ms(stage.days)]


@dataclass
class Demo:
    """One run. ``tell`` hears a line for each phase, ``step`` the simulated time and the transactions so far."""

    stage: Stage
    latency_s: int
    settings: Settings
    tell: Callable[[str], None]
    step: Callable[[int, int], None]

    def run(self, runtime: Runtime, memory: PeakMemory) -> dict[str, Any]:
        """Everything after the runtime is up. Returns the report."""
        from jobs.spark import session

        plants = demo_plants(self.stage)
        played = Rehearsal(self.stage, self.settings, plants, self.tell, self.step)
        self.tell(f"simulating {self.stage.days} days of {self.stage.cards:,} cards in lockstep; "
                  f"the first model is trained on day {TRAIN_DAY}")
        with played.on(runtime):
            played.until_training()
            with session(self.settings, "headrace-demo") as spark:
                trained = played.train(spark)
                misbehave(runtime.kafka, Calendar.of(self.stage).train_at_ms)
                played.play()
                self.tell(f"measuring latency: {LATENCY_RATE:.0f} events/s for {self.latency_s} s of real time")
                latency = self._latency(runtime, played)
                parity = self._parity(runtime, played, spark)
            return self._report(runtime, played, trained, latency, parity, plants, memory)

    def _latency(self, runtime: Runtime, played: Rehearsal) -> Latency:
        events, now_ms = int(LATENCY_RATE * self.latency_s), played.lockstep.now_ms or 0
        days = -(-events // max(1, self.stage.cards))
        batches = [event_rows(played.world.day(self.stage.days + day)) for day in range(days)]
        paced: list[Any] = []
        for batch in batches:
            paced += list(one_a_millisecond(batch, now_ms + sum(b.num_rows for b in paced), events - sum(b.num_rows for b in paced)))
        return measure_latency(runtime.kafka, [batch for batch in paced if batch.num_rows], LATENCY_RATE, USE_CASE)

    def _parity(self, runtime: Runtime, played: Rehearsal, spark: Any) -> dict[str, Any]:
        from jobs.archive import archive
        from jobs.parity import parity

        self.tell("archiving the rest and recomputing every prediction from the log")
        with played.timed("archive"):
            archive(self.settings, runtime.kafka, spark=spark)
        with played.timed("parity"):
            return asdict(parity(self.settings, SERVICE, spark))

    def _report(self, runtime: Runtime, played: Rehearsal, trained: Any, latency: Latency, parity: dict[str, Any], plants: Sequence[Plant],
                memory: PeakMemory) -> dict[str, Any]:
        registered, result = trained
        metrics, sent, seconds = result.manifest.metrics["model"], played.lockstep.sent, played.seconds
        counted = {topic: sum(high - low for low, high in end_offsets(runtime.kafka, topic).values())
                   for topic in (PREDICTIONS, *map(dead_letter_topic, TRAFFIC.sources))}
        return {
            "events": sent[TRANSACTIONS], "outcomes": sent[OUTCOMES],
            "dead_letters": sum(counted[dead_letter_topic(source)] for source in TRAFFIC.sources), "late": count_late(runtime.kafka),
            "predictions": counted[PREDICTIONS],
            "events_per_s": round((sent[TRANSACTIONS] + sent[OUTCOMES]) / seconds["stream"]),
            "latency_ms": latency.facts(), "model": f"{registered.model} {registered.version}",
            "auc": metrics["auc"], "card_precision_100": metrics["card_precision_100"],
            **loop_facts(runtime.kafka, self.stage, plants, metrics["average_precision"]),
            "parity": parity,
            "peak_rss_mb": {**{name: round(size, 1) for name, size in sorted(memory.peaks_mb.items())},
                            "all_at_once": round(memory.total_mb, 1)},
            "seconds": {name: round(took, 1) for name, took in seconds.items()},
        }


def misbehave(bootstrap: str, now_ms: int) -> None:
    """What real producers do: three broken records, one from the future, five that come two days late."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    odd = [Transaction("demo-future", now_ms + HOUR_MS, "card-000001", "terminal-000001", 100)]
    odd += [Transaction(f"demo-late-{n}", now_ms - 2 * DAY_MS, "card-000001", "terminal-000001", 100 + n) for n in range(5)]
    for value in (*BROKEN, *map(msgspec.json.encode, odd)):
        producer.produce(TRANSACTIONS, value, b"card-000001", timestamp=now_ms)
    producer.flush(30)


def count_late(bootstrap: str) -> int:
    """Valid events that some view did not admit because they came too late."""
    return sum(header(message.headers(), LATE) is not None for message in read_topic(bootstrap, valid_topic(TRANSACTIONS)))


def write_report(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def fresh(home: Path) -> None:
    """Make way for a new run; refused where a runtime still lives there."""
    from services.runtime.home import running

    if running(home) is not None:
        raise SettingsError(f"a demo still runs in {home}", hint=f"HEADRACE_HOME={home} headrace down")
    shutil.rmtree(home, ignore_errors=True)
