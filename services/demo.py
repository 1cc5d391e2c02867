"""The demo: everything on this machine, from raw events to an exact, explained prediction, and a report of what was seen."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer

from feature_repo.fraud import FRAUD, SERVICE, VIEWS
from feature_repo.marks import Progress
from feature_repo.views import DAY_MS, HOUR_MS
from jobs.training_rows import Period
from schemas.envelope import LATE, header
from schemas.errors import SettingsError
from schemas.records import Transaction
from schemas.settings import Settings
from schemas.topics import OUTCOMES, PREDICTIONS, SOURCES, TRANSACTIONS, TRANSACTIONS_VALID, dead_letter_topic
from services.inputs import event_rows
from services.latency import Latency, measure_latency, one_a_millisecond
from services.ledger import end_offsets, read_topic
from services.lockstep import Lockstep
from services.memory import PeakMemory
from services.runtime.embedded import Runtime
from services.world import World

__all__ = ["Calendar", "Demo", "Plan"]

LATENCY_RATE = 500.0
BROKEN = (b"not JSON at all", b'{"event_id":"demo-broken","amount_minor":"12,50"}',
          b'{"event_id":"demo-negative","event_time":0,"card_id":"c","terminal_id":"t","amount_minor":-1}')


@dataclass(frozen=True)
class Plan:
    """What to simulate. ``start_ms`` is midnight of day 0."""

    days: int = 60
    cards: int = 2_500
    terminals: int = 1_000
    seed: int = 7
    start_ms: int = 1_736_121_600_000  # 2025-01-06, a Monday
    latency_s: int = 60


@dataclass(frozen=True)
class Calendar:
    """When the model is trained, on what: the labels of the test days are mature on the day of training, those of the train days
    were before the first test day."""

    train: Period
    test: Period
    train_at_ms: int

    @classmethod
    def of(cls, plan: Plan, train_days: int = 14, test_days: int = 6) -> Calendar:
        delay = FRAUD.label_delay_ms // DAY_MS
        train_at = plan.days - 8
        test_first = train_at - delay - test_days
        train_first = test_first - delay - train_days
        if train_first < 1:
            raise SettingsError(f"{plan.days} days are too few: labels take {delay} days to mature", hint="--days 45 or more")

        def period(first: int, days: int) -> Period:
            on = [datetime.fromtimestamp(plan.start_ms / 1000 + day * 86_400, UTC).date() for day in (first, first + days - 1)]
            return Period(*on)

        return cls(period(train_first, train_days), period(test_first, test_days), plan.start_ms + train_at * DAY_MS)


@dataclass
class Demo:
    """One run. ``tell`` hears a line for each phase, ``step`` the simulated time and the transactions so far."""

    plan: Plan
    settings: Settings
    tell: Callable[[str], None]
    step: Callable[[int, int], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, runtime: Runtime, memory: PeakMemory) -> dict[str, Any]:
        """Everything after the runtime is up. Returns the report."""
        from jobs.spark import session

        plan, calendar = self.plan, Calendar.of(self.plan)
        world = World(plan.seed, plan.cards, plan.terminals, plan.start_ms)
        progress = Progress(runtime.redis, VIEWS, SERVICE.name, SERVICE.source)
        rows = (event_rows(batch) for batch in world.days(plan.days))
        lockstep = Lockstep(runtime.kafka, rows, progress, source=f"/headrace/simulate/{plan.seed}", label_delay_ms=FRAUD.label_delay_ms,
                            tell=lambda now: self.step(now.now_ms or 0, now.sent[TRANSACTIONS]))
        self.tell(f"simulating {plan.days} days of {plan.cards:,} cards in lockstep; the first model is trained on day {plan.days - 8}")
        with self._timed("stream"):
            lockstep.run_until(calendar.train_at_ms)
        self.tell("the simulated clock waits: archive, training set, first model")
        with session(self.settings, "headrace-demo") as spark:
            trained = self._train(runtime, calendar, spark)
            with self._timed("stream"):
                misbehave(runtime.kafka, calendar.train_at_ms)
                lockstep.run()
            self.tell(f"measuring latency: {LATENCY_RATE:.0f} events/s for {plan.latency_s} s of real time")
            latency = self._latency(runtime, world, lockstep.now_ms or 0)
            progress.close()
            return self._report(runtime, lockstep, trained, latency, self._parity(runtime, spark), memory)

    def _train(self, runtime: Runtime, calendar: Calendar, spark: Any) -> Any:
        from jobs.archive import archive
        from jobs.registry import register
        from jobs.train import train
        from jobs.training_set import build_training_set

        with self._timed("archive"):
            archive(self.settings, runtime.kafka, spark=spark)
        with self._timed("train"):
            built = build_training_set(self.settings, FRAUD, calendar.train.start_ms, calendar.test.end_ms, "known", spark)
            result = train(built.path, FRAUD, calendar.train, calendar.test, self.settings, data=built.manifest, spark=spark)
            registered = register(self.settings, result)
        self.tell(f"model {registered.model} version {registered.version} is {registered.alias}; the scorer takes it up")
        return registered, result

    def _latency(self, runtime: Runtime, world: World, now_ms: int) -> Latency:
        events = int(LATENCY_RATE * self.plan.latency_s)
        days = -(-events // max(1, self.plan.cards))
        batches = [event_rows(world.day(self.plan.days + day)) for day in range(days)]
        paced: list[Any] = []
        for batch in batches:
            paced += list(one_a_millisecond(batch, now_ms + sum(b.num_rows for b in paced), events - sum(b.num_rows for b in paced)))
        return measure_latency(runtime.kafka, [batch for batch in paced if batch.num_rows], LATENCY_RATE, FRAUD.label_delay_ms)

    def _parity(self, runtime: Runtime, spark: Any) -> dict[str, Any]:
        from jobs.archive import archive
        from jobs.parity import parity

        self.tell("archiving the rest and recomputing every prediction from the log")
        with self._timed("archive"):
            archive(self.settings, runtime.kafka, spark=spark)
        with self._timed("parity"):
            return asdict(parity(self.settings, SERVICE, spark))

    def _report(self, runtime: Runtime, lockstep: Lockstep, trained: Any, latency: Latency, parity: dict[str, Any],
                memory: PeakMemory) -> dict[str, Any]:
        registered, result = trained
        metrics = result.manifest.metrics["model"]
        counted = {topic: sum(high - low for low, high in end_offsets(runtime.kafka, topic).values())
                   for topic in (PREDICTIONS, *map(dead_letter_topic, SOURCES))}
        return {
            "events": lockstep.sent[TRANSACTIONS], "outcomes": lockstep.sent[OUTCOMES],
            "dead_letters": sum(counted[dead_letter_topic(source)] for source in SOURCES), "late": count_late(runtime.kafka),
            "predictions": counted[PREDICTIONS],
            "events_per_s": round((lockstep.sent[TRANSACTIONS] + lockstep.sent[OUTCOMES]) / self.seconds["stream"]),
            "latency_ms": latency.facts(), "model": f"{registered.model} {registered.version}",
            "auc": metrics["auc"], "average_precision": metrics["average_precision"],
            "card_precision_100": metrics["card_precision_100"], "parity": parity,
            "peak_rss_mb": {**{name: round(size, 1) for name, size in sorted(memory.peaks_mb.items())},
                            "all_at_once": round(memory.total_mb, 1)},
            "seconds": {name: round(took, 1) for name, took in self.seconds.items()},
        }

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began


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
    return sum(header(message.headers(), LATE) is not None for message in read_topic(bootstrap, TRANSACTIONS_VALID))


def write_report(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def fresh(home: Path) -> None:
    """Make way for a new run; refused where a runtime still lives there."""
    from services.runtime.home import running

    if running(home) is not None:
        raise SettingsError(f"a demo still runs in {home}", hint=f"HEADRACE_HOME={home} headrace down")
    shutil.rmtree(home, ignore_errors=True)
