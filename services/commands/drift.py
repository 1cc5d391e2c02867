"""``headrace drift status``, ``history``, ``evaluate`` and ``learn``"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.commands import add_command, add_group, show
from services.words import duration_ms, time_ms, whole

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "drift", help="drift: where monitors stand, how good alarms were, what a loop does for a learner",
                        example="headrace drift status")
    add_command(actions, "status", status, example="headrace drift status --json",
                help="levels, last windows, governor and alarms against the budget, of each monitored model")
    parser = add_command(actions, "history", history, example="headrace drift history --model fraud --days 7",
                         help="alarms, refusals, retrains and releases of a model, and whether each retrain helped")
    parser.add_argument("--model", help="default: the first")
    parser.add_argument("--days", type=whole(1), default=7, metavar="N",
                        help="compare old and new version on what was served so long before and after (default: 7)")
    parser = add_command(actions, "evaluate", evaluate, example="headrace drift evaluate alarms.csv --changes changes.csv",
                         help="score alarms against the true changes: detection delay, false alarm rate, missed, F1 per episode")
    parser.add_argument("file", type=Path, help="alarms: Parquet, CSV or NDJSON with a column at, and detector if there are several")
    parser.add_argument("--changes", type=Path, help="true changes: start and, if it ended, end (without it every alarm is false)")
    parser.add_argument("--from", dest="began", type=time_ms, metavar="TIME", help="since when was watched (default: the first time told)")
    parser.add_argument("--until", type=time_ms, metavar="TIME", help="until when (default: the last time told)")
    parser.add_argument("--horizon", type=duration_ms, help="how long after its start a change may be detected, e.g. 14d (default: any)")
    parser = add_command(actions, "learn", learn, example="headrace drift learn elec2.parquet --label class --learner logistic",
                         help="put an online learner behind the loop, beside the no-change forecast: did its retrains help?")
    parser.add_argument("file", type=Path, help="labelled rows in order of time: Parquet, CSV or NDJSON; all columns are numbers")
    parser.add_argument("--label", default="class", metavar="COLUMN", help="0 or 1 (default: class)")
    parser.add_argument("--learner", choices=("logistic", "tree"), default="logistic",
                        help="logistic regression on scaled features, or a Hoeffding adaptive tree (default: logistic)")
    parser.add_argument("--step", type=duration_ms, default="30m", metavar="TIME", help="stream time from row to row (default: 30m)")
    parser.add_argument("--delay", type=whole(1), default=1, metavar="STEPS", help="when a label is known (default: 1, by the next row)")
    parser.add_argument("--budget", type=budget, default="1 per 90 days", help='false alarms allowed (default: "1 per 90 days")')
    parser.add_argument("--calendar", type=duration_ms, metavar="TIME", help="ask for a retrain once in each such period, too, e.g. 90d")
    parser.add_argument("--last-label", action="store_true", help="give the learner what the no-change forecast knows, as one more feature")


def budget(text: str) -> tuple[float, float]:
    """``1 per 90 days`` as (1.0, 90.0)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) per (\d+(?:\.\d+)?) days", text)
    if not found or not float(found[1]) or not float(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no budget; write 1 per 90 days")
    return float(found[1]), float(found[2])


def learn(arguments: argparse.Namespace) -> None:
    from feature_repo.models import DriftPolicy
    from feature_repo.views import DAY_MS
    from services import learning_report
    from services.labelled_rows import read_labelled
    from services.online_learning import make_plan
    from services.replaying import progress_bar

    plan = make_plan(arguments.step, arguments.delay)
    alarms, days = arguments.budget
    policy = DriftPolicy(plan.delay * plan.step_ms, false_alarms=alarms, days=days, labelled_ms=2 * plan.judge * plan.step_ms,
                         cooldown_ms=7 * DAY_MS, labels=plan.judge, calendar_ms=arguments.calendar)
    stream = read_labelled(arguments.file, arguments.label)
    if arguments.last_label:
        stream = learning_report.with_last_label(stream, plan.delay)
    with progress_bar(len(stream.rows)) as (bar, task):
        found = learning_report.compare(stream, plan, policy, arguments.learner,
                                        lambda way, row: bar.update(task, description=way, completed=row))
    show(arguments, found, learning_report.table(found))


def status(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from services import drift_status
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    found = drift_status.read_drift(settings, endpoints(settings).redis)
    show(arguments, found, drift_status.table(found))


def history(arguments: argparse.Namespace) -> None:
    from feature_repo.use_cases import find_model
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services import loop_history
    from services.runtime.endpoints import kafka_endpoint

    if arguments.days < 1:
        raise SettingsError(f"--days {arguments.days}", hint="a day or more")
    settings = read_settings()
    found = loop_history.read_history(settings, kafka_endpoint(settings), find_model(settings, arguments.model), arguments.days)
    show(arguments, found, loop_history.table(found))


def evaluate(arguments: argparse.Namespace) -> None:
    from services.alarm_log import read_alarms, read_changes, score

    changes = read_changes(arguments.changes) if arguments.changes else []
    found = score(read_alarms(arguments.file), changes, arguments.began, arguments.until, arguments.horizon)
    show(arguments, found, table(found))


def table(found: dict[str, Any]) -> str:
    from services.words import iso

    day = 86_400_000
    lines = [f"{iso(found['from_ms'])} to {iso(found['until_ms'])}",
             f"{'detector':<20}{'changes':>8}{'detected':>9}{'missed':>7}{'mean delay':>12}{'false':>7}{'repeated':>9}{'F1':>7}  "
             "false in 90 days"]
    for name, s in found["scores"].items():
        delay = "" if s["mean_delay"] is None else f"{s['mean_delay'] / day:.2f} d"
        f1 = "" if s["f1"] is None else f"{s['f1']:.2f}"
        rate = "" if s["false_alarm_rate"] is None else f"{90 * day * s['false_alarm_rate']:.2f}"
        bound = "" if s["false_alarms_per_90_days_bound"] is None else f" (at most {s['false_alarms_per_90_days_bound']:.2f}, 95 %)"
        lines.append(f"{name:<20}{s['changes']:>8}{s['detected']:>9}{s['missed']:>7}{delay:>12}{s['false_alarms']:>7}"
                     f"{s['repeated']:>9}{f1:>7}  {rate}{bound}")
    return "\n".join(lines)
