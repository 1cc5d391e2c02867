"""``headrace backfill card_spend``"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from schemas.errors import SettingsError
from schemas.niceness import aside, stand_back
from services.commands import add_command, show
from services.words import iso, time_ms

if TYPE_CHECKING:
    from jobs.backfill import Course
    from services.commands import Subparsers

BEHIND_SCORING = 10
"""On a machine that also scores: a backfill takes the processor time that scoring leaves."""
SHARE = 0.25
"""Of the time, where no rate is asked for: half of it is no better for scoring beside it (docs/decisions/0043)."""
ENGINES = ("auto", "process", "spark")  # jobs.backfill.Engine; not imported for a --help


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "backfill", run, example="headrace backfill card_spend terminal_activity terminal_risk --dry-run",
                         help="bring archived records into the online store's event sets while the stream keeps running")
    parser.add_argument("views", nargs="+", metavar="VIEW", help="feature views, one after the other")
    parser.add_argument("--from", dest="start", type=time_ms, metavar="TIME",
                        help="only events at or after this time, UTC (default: all that a read can need)")
    parser.add_argument("--to", dest="end", type=time_ms, metavar="TIME", help="only events before this time, UTC")
    parser.add_argument("--history", metavar="TABLE",
                        help="first add this Delta or Parquet table of events, older than the log, to the archive")
    parser.add_argument("--mapping", default="contract", metavar="NAME|FILE.toml",
                        help="which columns of the table mean what, as for `headrace replay` (default: contract)")
    parser.add_argument("--rate", type=float, metavar="N",
                        help="records a second, inf for no bound (default: at most half of the online store's time)")
    parser.add_argument("--engine", choices=ENGINES, default="auto",
                        help="auto: no Spark is started for few records (HEADRACE_PROCESS_ROWS); default: auto")
    parser.add_argument("--dry-run", action="store_true", help="read, compare and count, write nothing")


def run(arguments: argparse.Namespace) -> None:
    if arguments.rate is not None and not arguments.rate > 0:
        raise SettingsError(f"--rate {arguments.rate:g} is not above 0")
    if arguments.start is not None and arguments.end is not None and arguments.start >= arguments.end:
        raise SettingsError("--from is not before --to")
    if arguments.history is not None and arguments.dry_run:
        raise SettingsError("--dry-run cannot say what --history would bring", hint="the history goes into the archive first")
    stand_back(BEHIND_SCORING)
    facts = aside(backfill_views, arguments, share=SHARE if arguments.rate is None else 1.0)
    show(arguments, facts, "\n".join([*map(history_text, facts["history"]), *map(text, facts["views"])]))


def backfill_views(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was recorded of ``--history``, and what was brought into each view."""
    from feature_repo import use_cases
    from jobs.backfill import backfill, fits_in_process
    from jobs.history import record_history
    from jobs.spark import session
    from schemas.settings import read_settings
    from services.histories import history
    from services.runtime.endpoints import redis_endpoint

    settings = read_settings()
    views = {view.name: view for view in use_cases.views(settings)}
    if unknown := [name for name in arguments.views if name not in views]:
        raise SettingsError(f"no feature view {', '.join(unknown)}", hint=f"there are {', '.join(views)}")
    if hops := [name for name in arguments.views if views[name].hops]:
        raise SettingsError(f"{', '.join(hops)} folds old records into tiles, which a backfill cannot add to",
                            hint="a new version of the view is bootstrapped by `headrace apply`")
    url = redis_endpoint(settings)
    period: dict[str, Any] = {"start_ms": arguments.start, "end_ms": arguments.end}
    wanted, services, engine = [views[name] for name in arguments.views], use_cases.services(settings), arguments.engine
    if engine == "auto":
        small = arguments.history is None and all(fits_in_process(settings, url, view, services, **period) for view in wanted)
        engine = "process" if small else "spark"
    found: list[dict[str, Any]] = []
    recorded: list[dict[str, Any]] = []
    with session(settings, "backfill") if engine == "spark" or arguments.history is not None else nullcontext() as spark:
        if arguments.history is not None:
            recorded = [asdict(record_history(settings, history(arguments.history, arguments.mapping, source), source, spark))
                        for source in dict.fromkeys(view.source for view in wanted)]
        for view in wanted:
            with progress_bar(view.name) as tell:
                found.append(asdict(backfill(settings, url, view, services, **period, rate=arguments.rate, dry_run=arguments.dry_run,
                                             spark=spark, engine=engine, tell=tell)))
    return {"history": recorded, "views": found}


def history_text(facts: dict[str, Any]) -> str:
    f = facts
    lines = [f"history of {f['source']}: {f['recorded']:,} of {f['rows']:,} rows are new in the archive (partition {f['partition']}, "
             f"version {f['bronze_version_before']} to {f['bronze_version']}); training sets of mode known are not to be had over it"]
    lines += [f"  {number:,} refused: {reason}" for reason, number in f["refused"].items()]
    return "\n".join([*lines, *(f"  e.g. {example['reason']}: {example['value'][:100]}" for example in f["examples"])])


def text(facts: dict[str, Any]) -> str:
    f = facts
    verb = "would be added" if f["dry_run"] else "added"
    lines = [f"{f['view']}: {f['added']:,} records {verb} ({f['bytes_added']:,} bytes, to {f['entities_added_to']:,} entities); "
             f"{f['records']:,} records of {f['entities']:,} entities compared",
             f"  {f['rows']:,} archived rows read: {f['invalid']:,} no valid events, {f['late']:,} too late for the view; "
             + (f"needed is what happened after {iso(f['floor_ms'])}" if f["floor_ms"] is not None
                else "not every partition has been scored from, so all of them count as needed"),
             f"  archive version {f['bronze_version']} (now {f['bronze_version_after']}), {f['units']} units, "
             f"{f['units_before']} of them done before, {f['units_again']} done again; {f['seconds'] / 60:.1f} min ({f['engine']})"]
    lines += [f"  reads are refused that need records of partition {partition} before offset {offset}, which the archive lacks"
              for partition, offset in f["short_of"].items()]
    if f["dry_run"]:
        lines.append("  nothing was written; the run itself takes about as long")
    return "\n".join(lines)


@contextmanager
def progress_bar(view: str) -> Iterator[Callable[[Course], None]]:
    """A bar on stderr: units, entities, records, records/s, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("units {task.fields[detail]}"),
               TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(view, total=None, detail="")

        def tell(course: Course) -> None:
            counts = course.counts
            bar.update(task, total=course.units, completed=course.units_done,
                       detail=f"{counts.entities:,} entities {counts.records:,} records {counts.records / course.seconds:,.0f}/s")

        yield tell
