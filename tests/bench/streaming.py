"""The two hot paths over one backlog, one after the other: first only the worker runs, then only the scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feature_repo.fraud import LABEL_DELAY_MS, SERVICE, VIEWS
from feature_repo.marks import Progress
from schemas.fraud import OUTCOMES, TRANSACTIONS
from schemas.settings import Settings
from services.runtime.embedded import Runtime
from tests.bench import baselines, load
from tests.bench.model import promote_noise
from tests.bench.report import Figure
from tests.bench.watch import Course, release_and_watch

__all__ = ["Streamed", "measure"]

WITH_HEADERS = 4
"""One event in so many is sent again with CloudEvents headers."""


@dataclass(frozen=True)
class Streamed:
    features: list[Figure]
    scoring: list[Figure]
    memory: list[Figure]


def measure(settings: Settings, n: int, scoring: bool, tell: Callable[[str], None]) -> Streamed:
    """``n`` events through the worker, then through the scorer where ``scoring``."""
    fitted = promote_noise(settings.models)
    with Runtime(settings, ("worker", "scorer"), tell) as runtime:
        for name in ("scorer", "worker-1"):
            runtime.hold(name)
        done = _Done(runtime.redis)
        events = load.Events.draw(n)
        tell(f"publishing {n:,} events")
        load.publish_transactions(runtime.kafka, events)
        applied = release_and_watch(runtime, "worker-1", lambda: done.applied(TRANSACTIONS), n)
        memory = [_memory("worker", applied, 250)]
        features = [Figure("features", "events/s per worker", applied.events_per_s, "/s", 80_000),
                    Figure("features", "CPU per event", applied.cpu_us, "µs", 10, at_most=True)]
        figures = []
        if scoring:
            tell("publishing and applying their outcomes")
            load.publish_outcomes(runtime.kafka, events, LABEL_DELAY_MS)
            done.wait_applied(OUTCOMES, n)
            runtime.hold("worker-1")
            scored = release_and_watch(runtime, "scorer", done.scored, n)
            runtime.hold("scorer")
            memory.append(_memory("scorer", scored, 350))
            figures = _scoring(runtime, scored, fitted, tell)
        runtime.hold("worker-1")
        features += _against(runtime, applied, n, tell)
        tell("publishing events with CloudEvents headers")
        more = load.Events.draw(n // WITH_HEADERS, load.DAYS / WITH_HEADERS, n, events.end_ms, population=n)
        load.publish_transactions(runtime.kafka, more, headers=True)
        course = release_and_watch(runtime, "worker-1", lambda: done.applied(TRANSACTIONS), n + len(more))
        features += [Figure("features", "events/s, CloudEvents headers", course.events_per_s, "/s"),
                     Figure("features", "CPU per event, CloudEvents headers", course.cpu_us, "µs")]
        done.close()
    return Streamed(features, figures, memory)


def _against(runtime: Runtime, applied: Course, n: int, tell: Callable[[str], None]) -> list[Figure]:
    tell("reading the same topic with nothing and with stock Faust")
    bare = baselines.bare_consumer(runtime.kafka, TRANSACTIONS, n)
    few = min(n, baselines.FAUST_EVENTS)
    stock, uvloop = (baselines.stock_faust(runtime.kafka, TRANSACTIONS, few, loop) for loop in ("aio", "uvloop"))
    return [
        Figure("features", "bare consumer, same topic", bare["events_per_s"], "/s", baseline="the worker is slower by",
               ratio=bare["events_per_s"] / applied.events_per_s, detail=bare),
        Figure("features", "stock Faust no-op agent, same topic", stock["events_per_s"], "/s", baseline="the worker is faster by",
               ratio=applied.events_per_s / stock["events_per_s"], ratio_target=6, detail=stock),
        Figure("features", "the same with uvloop, as the worker has it", uvloop["events_per_s"], "/s", baseline="the worker is faster by",
               ratio=applied.events_per_s / uvloop["events_per_s"], detail=uvloop),
    ]


def _scoring(runtime: Runtime, scored: Course, fitted: Any, tell: Callable[[str], None]) -> list[Figure]:
    from tests.bench import feast_stock

    tell("the same features from Feast's own Redis store")
    one, many = feast_stock.measure(runtime.redis, fitted)
    return [
        Figure("scoring", "events/s per process", scored.events_per_s, "/s", 45_000),
        Figure("scoring", "CPU per event", scored.cpu_us, "µs"),
        Figure("scoring", "Feast's Redis store + scikit-learn wrapper, one row a request", one, "/s", baseline="the scorer is faster by",
               ratio=scored.events_per_s / one),
        Figure("scoring", f"the same, {feast_stock.BATCH} rows a request", many, "/s", baseline="the scorer is faster by",
               ratio=scored.events_per_s / many),
    ]


def _memory(what: str, course: Course, most_mb: float) -> Figure:
    sizes = {f"{share:.0%}": round(course.moments[share].rss_mb, 1) for share in (0.25, 0.5, 0.75, 1.0)}
    growth = sizes["100%"] - sizes["25%"]
    return Figure("memory", f"{what}, {growth:+.0f} MB from 25 % to 100 %", max(sizes.values()), "MB", most_mb, at_most=True,
                  detail={"resident_mb": sizes, "growth_mb": round(growth, 1)})


class _Done:
    """How many events are done, from the marks that the processes leave in the store."""

    def __init__(self, redis: str) -> None:
        self._views = Progress(redis, VIEWS, [])
        self._service = Progress(redis, (), [SERVICE])

    def applied(self, source: str) -> int:
        return sum(offset + 1 for offset in self._views.reached(source).values())

    def scored(self) -> int:
        return sum(offset + 1 for offset in self._service.reached(TRANSACTIONS).values())

    def wait_applied(self, source: str, n: int) -> None:
        from tests.deadline import eventually

        eventually(lambda: self.applied(source) == n, timeout_s=60 + n / 5_000)

    def close(self) -> None:
        self._views.close()
        self._service.close()
