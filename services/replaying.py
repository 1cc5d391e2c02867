"""What ``headrace replay`` and ``headrace simulate`` share: connect, publish, show how it goes, sum it up."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.words import duration_ms, iso

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.progress import Progress, TaskID

    from feature_repo.models import UseCase
    from jobs.training_rows import Period
    from schemas.settings import Settings

__all__ = ["add_lockstep_options", "first_periods", "in_lockstep", "paced", "summary_text"]


def add_lockstep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=duration_ms, default="1h", metavar="TIME",
                        help="simulated time that is sent at once, when all before it has been applied (default: 1h)")
    parser.add_argument("--loop", action=argparse.BooleanOptionalAction, default=True,
                        help="at the end of each window wait until it is judged and what was granted is retrained (default: yes)")
    parser.add_argument("--drain", action=argparse.BooleanOptionalAction, default=True,
                        help="go on after the last row until every outcome is known (default: yes)")


def first_periods(train: str | None, test: str | None) -> tuple[Period, Period] | None:
    if train is None or test is None:
        return None
    from jobs.training_rows import parse_period

    return parse_period(train), parse_period(test)


def in_lockstep(settings: Settings, case: UseCase, batches: Iterable[pa.RecordBatch], *, source: str, total: int | None, step_ms: int,
                drain: bool, loop: bool, first: tuple[Period, Period] | None = None) -> dict[str, Any]:
    """Publish with simulated time, all groups keeping up. Returns the summary that ``--json`` prints.

    ``first``: the days that the first model of the use case is trained and judged on, once their labels are known.
    """
    from feature_repo.marks import Progress as Marks
    from services.first_model import FirstModel
    from services.lockstep import Lockstep
    from services.loop_pace import LoopPace
    from services.requests import ScheduledRequests
    from services.retrain_hold import wait_served
    from services.runtime.endpoints import endpoints

    at, began = endpoints(settings), time.monotonic()
    marks, pace = Marks(at.redis, case.views, case.services), LoopPace(at.redis, case.models if loop else (), lambda at_ms: hold())

    def hold() -> None:
        for model in pace.wait_retrained():
            wait_served(settings, at, model)

    try:
        with progress_bar(total) as (bar, task):
            def tell(lockstep: Lockstep) -> None:
                bar.update(task, description=iso(lockstep.now_ms)[:16], completed=_rows(case, lockstep.sent))

            asked = next((spec for spec in case.models if spec.schedule is not None), None)
            ticks = ScheduledRequests(asked, source, at.redis) if asked is not None else None
            lockstep = Lockstep(at.kafka, batches, marks, source=source, emissions=case.emissions, step_ms=step_ms,
                                ticks=ticks, pace=pace, tell=tell)
            if first is not None:
                model = FirstModel(settings, at, case.models[0], *first, bar.console.print)
                lockstep.run_until(model.at_ms)
                model.run()
            lockstep.run(drain)
    finally:
        marks.close()
        pace.close()
    return {**_counts(case, lockstep.sent, time.monotonic() - began), "simulated_until": iso(lockstep.now_ms), "steps": lockstep.steps,
            "waited_for_the_loop_s": round(pace.waited_s, 2),
            "out_of_order": lockstep.out_of_order}


def paced(settings: Settings, case: UseCase, batches: Iterable[pa.RecordBatch], *, source: str, total: int | None, rate: float,
          restamp: bool, stamp: bool) -> dict[str, Any]:
    """Publish in real time, whether the groups keep up or not. Returns the summary that ``--json`` prints."""
    from services.paced import Paced, publish_paced
    from services.runtime.endpoints import kafka_endpoint

    with progress_bar(total) as (bar, task):
        def tell(so_far: Paced) -> None:
            bar.update(task, description=iso(so_far.arrival_ms)[:16], completed=_rows(case, so_far.sent))

        result = publish_paced(kafka_endpoint(settings), batches, rate, source=source, emissions=case.emissions,
                               restamp=restamp, stamp=stamp, tell=tell)
    return {**_counts(case, result.sent, result.seconds), "rate": rate, "behind_ms": round(result.behind_ms, 3)}


def summary_text(facts: dict[str, Any]) -> str:
    told = " and ".join(f"{number:,} {topic}" for topic, number in facts["published"].items())
    lines = [f"published {told} in {facts['seconds']} s, {facts['events_per_s']:,} events/s"]
    if "simulated_until" in facts:
        lines.append(f"simulated time is {facts['simulated_until']}, after {facts['steps']:,} steps")
    if facts.get("out_of_order"):
        lines.append(f"{facts['out_of_order']:,} rows were earlier than one before them and arrived late; is the file in order of time?")
    if "behind_ms" in facts:
        lines.append(f"asked for {facts['rate']:,} events/s; the latest was sent {facts['behind_ms']} ms after it was due")
    return "\n".join(lines)


@contextmanager
def progress_bar(total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr: simulated time, rows, events/s."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Speed(TextColumn):
        def render(self, task: Any) -> Any:
            return super().render(task).append(f"{task.finished_speed or task.speed or 0:,.0f} events/s")

    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), Speed(""), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar, bar.add_task("connecting", total=total)


def _counts(case: UseCase, sent: Mapping[str, int], seconds: float) -> dict[str, Any]:
    topics = dict.fromkeys([*(emission.topic for emission in reversed(case.emissions)), *sent])
    published = {topic: sent.get(topic, 0) for topic in topics}
    return {**published, "published": published, "seconds": round(seconds, 2), "events_per_s": round(sum(published.values()) / seconds)}


def _rows(case: UseCase, sent: Mapping[str, int]) -> int:
    """How many rows were published, by what they become at once."""
    return sum(sent.get(emission.topic, 0) for emission in case.emissions if not emission.delay_ms)
