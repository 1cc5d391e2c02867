"""``headrace gameday``"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show
from services.words import whole

if TYPE_CHECKING:
    from services.commands import Subparsers

SPARK_MEMORY = "768m"


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "gameday", run, example="headrace gameday --only outage concept",
                         help="plant everything that can go wrong in a running system of its own, and score what the monitors made of it")
    parser.add_argument("--only", nargs="+", default=(), metavar="KIND", help="of the programme only these (default: all of it)")
    parser.add_argument("--cards", type=whole(1), default=1500, metavar="N",
                        help="cards, two transactions a day each (default %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=7, metavar="S", help="the same seed gives the same world (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/gameday"), metavar="DIR", help="data and report.json (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be planted when, and start nothing")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 where something was not found, or alarmed, or retrained, as it should not have."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from schemas.settings import read_settings
    from services.demo import fresh, write_report
    from services.gameday import last_day, play, timetable
    from services.rehearsal import ROLES, Stage
    from services.runtime.embedded import Runtime
    from services.words import iso

    plants = timetable(arguments.only, Stage(0).start_ms)
    stage = Stage(last_day(plants, Stage(0).start_ms), arguments.cards, max(1, arguments.cards * 2 // 5), arguments.seed)
    if arguments.dry_run:
        show(arguments, {"days": stage.days, "planted": [[each.kind, each.start_ms, each.end_ms] for each in plants]},
             "\n".join(f"{iso(each.start_ms)[:10]}  {each.kind}" for each in plants))
        return 0
    home = (arguments.out / "home").resolve()
    fresh(home)
    only = {"kafka": None, "redis": None, "use_cases": ("fraud",), "spark_memory": SPARK_MEMORY}
    settings = read_settings(home=home, time="replay").model_copy(update=only)
    console, began = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Runtime(settings, ROLES, console.print) as runtime, Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=2 * stage.cards * stage.days)
        report = play(stage, plants, settings, runtime, console.print,
                      lambda now_ms, sent: bar.update(task, description=iso(now_ms)[:13], completed=sent))
    report["seconds"]["total"] = round(time.monotonic() - began, 1)
    write_report(report, arguments.out / "report.json")
    show(arguments, report, table(report))
    return 0 if report["passed"] == report["of"] and not report["false_alarms"] else 1


def table(report: dict[str, Any]) -> str:
    lines = [f"{'planted':<13}{'day':>4}{'for':>5}  {'retrains':>8}  found after"]
    for each in report["played"]:
        found = ", ".join(f"{signal} {days:g} d" for signal, days in each["detected"].items()) or "nothing"
        lines.append(f"{each['kind']:<13}{each['day']:>4}{each['days']:>5}  {each['retrains']:>8}  {found}"
                     + (f"  << {each['why']}" if each["why"] else ""))
    lines.append(f"{report['passed']} of {report['of']} as they should be; false alarms: {', '.join(report['false_alarms']) or 'none'}; "
                 f"{report['retrains']} retrains, {report['promoted']} promoted, {report['wasted']} wasted")
    return "\n".join(lines)
