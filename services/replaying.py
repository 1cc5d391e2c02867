"""What ``headrace replay`` and ``headrace simulate`` share: connect, publish, show how it goes, sum it up."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.words import duration_ms, iso

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.progress import Progress, TaskID

    from schemas.settings import Settings

__all__ = ["add_lockstep_options", "in_lockstep", "paced", "summary_text"]

def add_lockstep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=duration_ms, default="1h", metavar="TIME",
                        help="simulated time that is sent at once, when all before it has been applied (default: 1h)")
    parser.add_argument("--drain", action=argparse.BooleanOptionalAction, default=True,
                        help="go on after the last transaction until every outcome is known (default: yes)")


def in_lockstep(settings: Settings, batches: Iterable[pa.RecordBatch], *, source: str, total: int | None, step_ms: int,
                drain: bool) -> dict[str, Any]:
    """Publish with simulated time, all groups keeping up. Returns the summary that ``--json`` prints."""
    from feature_repo.fraud import FRAUD, SERVICE, VIEWS
    from feature_repo.marks import Progress as Marks
    from schemas.topics import TRANSACTIONS
    from services.lockstep import Lockstep
    from services.runtime.endpoints import endpoints

    at, began = endpoints(settings), time.monotonic()
    marks = Marks(at.redis, VIEWS, SERVICE.name, SERVICE.source)
    try:
        with progress_bar(total) as (bar, task):
            def tell(lockstep: Lockstep) -> None:
                bar.update(task, description=iso(lockstep.now_ms)[:16], completed=lockstep.sent[TRANSACTIONS])

            lockstep = Lockstep(at.kafka, batches, marks, source=source, label_delay_ms=FRAUD.label_delay_ms, step_ms=step_ms, tell=tell)
            lockstep.run(drain)
    finally:
        marks.close()
    return {**_counts(lockstep.sent, time.monotonic() - began), "simulated_until": iso(lockstep.now_ms), "steps": lockstep.steps,
            "out_of_order": lockstep.out_of_order}


def paced(settings: Settings, batches: Iterable[pa.RecordBatch], *, source: str, total: int | None, rate: float, restamp: bool,
          stamp: bool) -> dict[str, Any]:
    """Publish in real time, whether the groups keep up or not. Returns the summary that ``--json`` prints."""
    from feature_repo.fraud import FRAUD
    from schemas.topics import TRANSACTIONS
    from services.paced import Paced, publish_paced
    from services.runtime.endpoints import kafka_endpoint

    with progress_bar(total) as (bar, task):
        def tell(so_far: Paced) -> None:
            bar.update(task, description=iso(so_far.arrival_ms)[:16], completed=so_far.sent.get(TRANSACTIONS, 0))

        result = publish_paced(kafka_endpoint(settings), batches, rate, source=source, label_delay_ms=FRAUD.label_delay_ms,
                               restamp=restamp, stamp=stamp, tell=tell)
    return {**_counts(result.sent, result.seconds), "rate": rate, "behind_ms": round(result.behind_ms, 3)}


def summary_text(facts: dict[str, Any]) -> str:
    lines = [f"published {facts['transactions']:,} transactions and {facts['outcomes']:,} outcomes in {facts['seconds']} s, "
             f"{facts['events_per_s']:,} events/s"]
    if "simulated_until" in facts:
        lines.append(f"simulated time is {facts['simulated_until']}, after {facts['steps']:,} steps")
    if facts.get("out_of_order"):
        lines.append(f"{facts['out_of_order']:,} rows were earlier than one before them and arrived late; is the file in order of time?")
    if "behind_ms" in facts:
        lines.append(f"asked for {facts['rate']:,} events/s; the latest was sent {facts['behind_ms']} ms after it was due")
    return "\n".join(lines)


@contextmanager
def progress_bar(total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr: simulated time, transactions, events/s."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Speed(TextColumn):
        def render(self, task: Any) -> Any:
            return super().render(task).append(f"{task.finished_speed or task.speed or 0:,.0f} events/s")

    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), Speed(""), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar, bar.add_task("connecting", total=total)


def _counts(sent: Any, seconds: float) -> dict[str, Any]:
    from schemas.topics import OUTCOMES, TRANSACTIONS

    transactions, outcomes = sent.get(TRANSACTIONS, 0), sent.get(OUTCOMES, 0)
    return {"transactions": transactions, "outcomes": outcomes, "seconds": round(seconds, 2),
            "events_per_s": round((transactions + outcomes) / seconds)}
