"""``headrace outcomes status`` and ``headrace outcomes join``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.commands import add_command, add_group, show
from services.words import time_ms

if TYPE_CHECKING:
    from services.commands import Subparsers

DAY_MS = 86_400_000


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "outcomes", help="predictions and what became known of them: how many met, and joining the rest",
                        example="headrace outcomes status")
    add_command(actions, "status", status, example="headrace outcomes status --json",
                help="maturity by day of event, delays of labels, what is unmatched on either side, and what waiting costs in Redis")
    parser = add_command(actions, "join", join, example="headrace outcomes join --dry-run",
                         help="join in the archive what came after the horizon or did not fit into Redis (a Spark job)")
    parser.add_argument("--from", dest="start", type=time_ms, default=0, metavar="TIME", help="event times from here on (default: all)")
    parser.add_argument("--to", dest="end", type=time_ms, metavar="TIME", help="event times before this (default: all)")
    parser.add_argument("--all", action="store_true", dest="everything",
                        help="every evaluation that is not archived, also what the streaming join may be at; with --dry-run: a check of it")
    parser.add_argument("--publish", action="store_true", help="publish what is found; without it, it is only in the table evaluations")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; say how many there are")


def join(arguments: argparse.Namespace) -> None:
    from feature_repo.pairs import LAST_MS
    from jobs.evaluations import join_archive
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services.maturity import floor_ms
    from services.runtime.endpoints import endpoints

    if arguments.publish and arguments.dry_run:
        raise SettingsError("--dry-run publishes nothing", hint="leave out one of --publish and --dry-run")
    settings = read_settings()
    at = endpoints(settings)
    found = asdict(join_archive(settings, floor_ms(settings, at.redis), arguments.start, arguments.end or LAST_MS,
                                everything=arguments.everything, kafka=at.kafka if arguments.publish else None, dry_run=arguments.dry_run))
    verb = "would join" if arguments.dry_run else "published" if arguments.publish else "joined, to be published with --publish:"
    show(arguments, found, f"{found['evaluations']:,} evaluations in the archive's predictions and outcomes, {found['missing']:,} of them "
                           f"not archived; {verb} {found['left']:,}\narchive version {found['bronze_version']}, {found['seconds']} s")


def status(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from services.maturity import read_maturity
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    found = [asdict(one) for one in read_maturity(settings, endpoints(settings).redis)]
    show(arguments, found, "\n\n".join(map(table, found)) or "no model has its labels told: absences are read from the log")


def table(found: dict[str, Any]) -> str:
    from services.words import iso

    lines = [f"{found['topic']}: about {found['predictions']:,} predictions and {found['outcomes']:,} events with outcomes wait or met, "
             f"{found['bytes'] / 2**20:.1f} of {found['budget_bytes'] / 2**20:.0f} MiB"
             + (f", {found['bytes_per_prediction']} bytes a prediction" if found["bytes_per_prediction"] else "")]
    lines.append(f"  {found['predictions_unmatched']:,} predictions without outcome, "
                 f"{found['outcomes_unmatched']:,} outcomes without prediction")
    if found["floor_ms"]:
        lines.append(f"  events before {iso(found['floor_ms'])} did not fit: headrace outcomes join")
    delays = ", ".join(f"{name} {ms / DAY_MS:.2f} d" for name, ms in found["delay_ms"].items())
    lines += [f"  from event to label {delays}"] if delays else []
    lines += [f"  {model} published up to {iso(at_ms)}" for model, at_ms in found["evaluated_ms"].items() if at_ms is not None]
    lines += [f"  {iso(day['day_ms'])[:10]}  {day['labelled']:>10,} of {day['predictions']:>10,} labelled  {day['maturity']:7.2%}"
              + (f"  {day['age_days']} days old" if day["age_days"] is not None else "") for day in found["cohorts"]]
    counts = ", ".join(f"{n:,} {name}" for name, n in sorted(found["counts"].items()))
    lines += [f"  so far: {counts}"] if counts else []
    return "\n".join(lines)
