"""Event to prediction with everything running, at a paced rate in open loop."""

from __future__ import annotations

from collections.abc import Callable

from feature_repo.fraud import SERVICE, USE_CASE, VIEWS
from feature_repo.marks import Progress
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from services.events import Encoder
from services.inputs import event_rows
from services.latency import measure_latency, one_a_millisecond
from services.ledger import end_offsets
from services.paced import in_order_of_arrival
from services.publisher import Publisher
from services.runtime.embedded import Runtime
from services.timeline import Timeline
from services.world import DAY_MS, World
from tests.bench.load import START_MS
from tests.bench.model import promote_noise
from tests.bench.report import Figure
from tests.deadline import eventually

__all__ = ["measure"]

RATE = 1_000
WARM_UP_S = 20.0
"""A broker that has just started compiles itself and takes half a core for it; the loop still joins the days before."""
DAYS_BEFORE = 3
A_CARD_A_DAY = 1.9
"""Transactions, somewhat under the world's mean: a day has enough rows."""


def measure(settings: Settings, seconds: float, tell: Callable[[str], None]) -> list[Figure]:
    """Three days of a world so busy that a day fills the measurement are scored first, so that every card has a history."""
    rows = int(RATE * (seconds + WARM_UP_S))
    cards = max(100, int(rows / A_CARD_A_DAY))
    world = World(seed=9, cards=cards, terminals=max(50, cards // 3), start_ms=START_MS)
    promote_noise(settings.models)
    with Runtime(settings, ("worker", "loop", "scorer"), tell) as runtime:
        tell(f"scoring {DAYS_BEFORE} days of {cards:,} cards")
        topics = [emission.topic for emission in USE_CASE.emissions]
        publisher, timeline = Publisher(runtime.kafka, topics), Timeline(map(event_rows, world.days(DAYS_BEFORE)), USE_CASE.emissions)
        publisher.send(in_order_of_arrival(timeline, {topic: Encoder(topic, "/bench") for topic in topics}))
        publisher.flush()
        _caught_up(runtime)
        tell(f"{RATE:,} events/s for {seconds:g} s")
        batches = list(one_a_millisecond(event_rows(world.day(DAYS_BEFORE)), START_MS + DAYS_BEFORE * DAY_MS, rows))
        found = measure_latency(runtime.kafka, batches, RATE, USE_CASE, WARM_UP_S)
    detail = found.facts()
    return [Figure("latency", f"p99 at {RATE:,} events/s", found.p99, "ms", 25, at_most=True, detail=detail),
            Figure("latency", "p50", found.p50, "ms", detail=detail)]


def _caught_up(runtime: Runtime) -> None:
    progress = Progress(runtime.redis, VIEWS, [SERVICE])
    ends = {partition: high - 1 for partition, (_, high) in end_offsets(runtime.kafka, TRANSACTIONS).items() if high}
    eventually(lambda: progress.reached(TRANSACTIONS) == ends, timeout_s=300)
    progress.close()
