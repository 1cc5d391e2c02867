"""``headrace maintain``"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from jobs.maintain import Maintained, TableReport
    from jobs.retention import Pin
    from services.commands import Subparsers

KEEP_HOURS = 168.0  # jobs.retention.DEFAULT_HOURS; not imported for a --help


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "maintain", run, help="compact the Delta tables and remove files that no kept version has",
                         example="headrace maintain --dry-run")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; say what would be done")
    parser.add_argument("--keep-hours", type=float, default=KEEP_HOURS, metavar="HOURS",
                        help=f"how long older versions stay readable, 24 to 720 (default: {KEEP_HOURS:g})")
    parser.add_argument("--release-pins", action="store_true",
                        help="let go of versions that training sets were made from once they are older than that")


def run(arguments: argparse.Namespace) -> None:
    from jobs.maintain import maintain
    from schemas.settings import read_settings

    done = maintain(read_settings(), arguments.keep_hours, arguments.dry_run, arguments.release_pins,
                    partial(print, file=sys.stderr, flush=True))
    show(arguments, asdict(done), _text(done))


def _text(done: Maintained) -> str:
    lines = [line for table in done.tables for line in _table(table)]
    lines += [_pin(pin) for pin in done.pins]
    conflicts = ", ".join(f"{count} {name}" for name, count in sorted(done.conflicts.items())) or "none"
    return "\n".join([*lines, f"versions stay readable for {done.keep_hours:g} h; conflicts retried: {conflicts}; files of checkpoints: "
                      f"{done.checkpoint_files}; {done.seconds} s", *(["nothing was changed"] if done.dry_run else [])])


def _table(report: TableReport) -> list[str]:
    before, after = asdict(report.before), asdict(report.after) if report.after else None
    steps = [f"{'to be ' if after is None else ''}{kind} {', '.join(names)}"
             for kind, names in (("sorted:", report.sorted), ("packed:", report.packed)) if names]
    steps += [f"unused files {'to be ' if after is None else ''}removed: {report.unused_files}"] if report.unused_files else []
    figures = [f"  {name:<12} {value:>16,}" + (f" -> {after[name]:>16,}" if after else "") for name, value in before.items()]
    return [report.table, *(f"  {step}" for step in steps), *figures]


def _pin(pin: Pin) -> str:
    state = "readable" if pin.readable else "no longer readable: its rows are those of today at or below the manifest's offsets"
    return f"{pin.name} needs version {pin.version} of bronze: {state}"
