"""``headrace demo``"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show
from services.words import whole

if TYPE_CHECKING:
    from services.commands import Subparsers


SPARK_MEMORY = "512m"  # of a machine with 4 GiB, beside everything else


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "demo", run, help="start stream and loop, simulate, train, score, drift, retrain, check; one table",
                         example="headrace demo --days 120 --keep")
    parser.add_argument("--days", type=whole(1), default=120, metavar="N", help="days to simulate (default %(default)s)")
    parser.add_argument("--cards", type=whole(1), default=1500, metavar="N",
                        help="cards, two transactions a day each (default %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=7, metavar="S", help="the same seed gives the same world (default %(default)s)")
    parser.add_argument("--latency-seconds", type=whole(1), default=60, metavar="S", help="real time for the latency (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave it running afterwards, until Ctrl-C or `headrace down`")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), metavar="DIR", help="data and report.json (default %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from schemas.settings import read_settings
    from services.demo import Demo, fresh, write_report
    from services.memory import PeakMemory
    from services.rehearsal import ROLES, Stage
    from services.runtime.embedded import Runtime
    from services.words import iso

    home = (arguments.out / "home").resolve()
    fresh(home)
    only = {"kafka": None, "redis": None, "use_cases": ("fraud",), "spark_memory": SPARK_MEMORY}
    settings = read_settings(home=home, time="replay").model_copy(update=only)
    stage = Stage(days=arguments.days, cards=arguments.cards, terminals=max(1, arguments.cards * 2 // 5), seed=arguments.seed)
    console, began = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Runtime(settings, ROLES, console.print) as runtime:
        up_s = time.monotonic() - began
        names = {process.pid: process.name for process in runtime.state.processes if process.pid is not None}
        with PeakMemory(names) as memory, Progress(*columns, console=console) as bar:
            task = bar.add_task("starting", total=2 * stage.cards * stage.days)
            demo = Demo(stage, arguments.latency_seconds, settings, console.print,
                        lambda now_ms, sent: bar.update(task, description=iso(now_ms)[:13], completed=sent))
            report = demo.run(runtime, memory)
        report["seconds"]["setup"] = round(up_s, 1)
        report["seconds"]["total"] = round(time.monotonic() - began, 1)
        write_report(report, arguments.out / "report.json")
        show(arguments, report, table(report) + f"\n\nwritten to {arguments.out / 'report.json'}")
        if arguments.keep:
            print(f"still running; look inside with HEADRACE_TIME=replay HEADRACE_HOME={home}; Ctrl-C stops it", file=sys.stderr)
            runtime.wait()
    return 0 if report["parity"]["unexplained"] == 0 else 1


def table(report: dict[str, Any]) -> str:
    """One line a figure."""
    lines = []
    for name, value in report.items():
        told = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else \
            f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        lines.append(f"{name:<20} {told}")
    return "\n".join(lines)
