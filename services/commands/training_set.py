"""``headrace training-set``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show
from services.commands.train import KINDS
from services.words import time_ms, whole

if TYPE_CHECKING:
    from feature_repo.models import ModelSpec
    from jobs.compare import Comparison
    from schemas.settings import Settings
    from services.commands import Subparsers

MODES = ("known", "ideal", "served")  # jobs.training_set.MODES and .Engine; not imported for a --help
ENGINES = ("auto", "process", "spark")


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "training-set", run, help="build labelled rows with their features as of each event's time",
                         example="headrace training-set 2018-07-25..2018-07-31 --mode known")
    parser.add_argument("period", metavar="DAY..DAY", help="days of the scored events, both included, UTC")
    parser.add_argument("--model", help="whose features and label (default: the first model's)")
    parser.add_argument("--mode", choices=MODES, default="known",
                        help="known: what had arrived by then; ideal: whatever arrived since; served: as logged (default: known)")
    parser.add_argument("--engine", choices=ENGINES, default="auto",
                        help="process: in this process, no JVM; auto: so up to HEADRACE_PROCESS_ROWS archived records (default: auto)")
    parser.add_argument("--as-of", type=time_ms, metavar="TIME",
                        help="as known at this time, UTC (ISO 8601, or ms since 1970); default: now")
    parser.add_argument("--archive-version", type=whole(0), metavar="N", help="from this version of the archive (default: the newest)")
    parser.add_argument("--check", action="store_true", help="hold the set to its rules; exit 8 where one is broken")
    parser.add_argument("--accept", nargs="+", default=(), choices=KINDS, metavar="KIND",
                        help=f"kinds of rules that may be broken: {', '.join(KINDS)}")
    parser.add_argument("--compare", action="store_true", help="build all three modes and say how they differ")
    parser.add_argument("--train", metavar="DAY..DAY", help="with --compare: train a model on each mode's rows of these days ...")
    parser.add_argument("--test", metavar="DAY..DAY", help="... and judge it on these")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.use_cases import find_model
    from jobs.checks import check_training_set
    from jobs.training_rows import parse_period
    from jobs.training_set import build_training_set
    from schemas.errors import SettingsError
    from schemas.settings import read_settings

    settings = read_settings()
    spec, period = find_model(settings, arguments.model), parse_period(arguments.period)
    if not arguments.compare and (arguments.train or arguments.test):
        raise SettingsError("--train and --test belong to --compare", hint="`headrace train` trains one model")
    if arguments.compare:
        return compared(arguments, settings, spec)
    built = build_training_set(settings, spec, period.start_ms, period.end_ms, arguments.mode, as_of_ms=arguments.as_of,
                               engine=arguments.engine, version=arguments.archive_version)
    facts, m = asdict(built), built.manifest
    maturity = "labels are mature" if m["labels_mature"] else "labels are still coming in"
    lines = [f"{m['rows']:,} rows ({m['positives']:,} positive), {m['unlabelled']:,} transactions without a label left out, "
             f"{m['labelled_percent']:g} % labelled, {maturity}, {m['seconds']} s ({m['engine']})",
             f"archive version {m['bronze_version']}, definitions {m['service_hash']}, content {m['content_hash']}", built.path]
    if arguments.check:
        facts["checked"] = asdict(checked := check_training_set(built.path, spec, settings, arguments.accept))
        lines.append(f"rules: {len(checked.broken)} broken (accepted)" if checked.broken else "rules: all hold")
    show(arguments, facts, "\n".join(lines))


def compared(arguments: argparse.Namespace, settings: Settings, spec: ModelSpec) -> None:
    from jobs.compare import compare
    from jobs.training_rows import parse_period

    train, test = (parse_period(text) if text else None for text in (arguments.train, arguments.test))
    found = compare(settings, spec, parse_period(arguments.period), train, test)
    show(arguments, asdict(found), table(found))


def table(found: Comparison) -> str:
    lines = [f"{mode}: {rows:,} rows" for mode, rows in found.rows.items()]
    lines.append(f"{'differing rows of':28}" + "".join(f"{pair:>18}" for pair in found.differences))
    for of_feature in zip(*found.differences.values(), strict=True):
        lines.append(f"{of_feature[0].feature:28}" + "".join(f"{share(each.differing, each.rows):>18}" for each in of_feature))
    if found.metrics:
        lines.append(f"a model trained on each set, judged on its own test rows, and on those of {found.judged_on}:")
    for mode, metrics in found.metrics.items():
        told = [name for name in metrics["judged"] if name not in ("rows", "positives")]
        lines.append(f"{mode:8}" + "".join(f"  {name} {metrics['own'][name]:.4f} / {metrics['judged'][name]:.4f}" for name in told))
    if found.illusion:
        lines.append("gained only from data nobody would have had: "
                     + ", ".join(f"{name} {value:+.4f}" for name, value in found.illusion.items()))
    return "\n".join([*lines, found.path])


def share(part: Any, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "-"
