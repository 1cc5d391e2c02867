"""``headrace train``: fit a model on archived features, judge it on later days, register it."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show

if TYPE_CHECKING:
    from feature_repo.models import ModelSpec
    from jobs.training_rows import Period
    from schemas.settings import Settings
    from services.commands import Subparsers

__all__ = ["KINDS", "register"]

KINDS = ("schema", "null", "range", "duplicate", "drift")  # jobs.checks.KINDS; not imported for a --help


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "train", run, help="train a model on archived features and register it",
                         example="headrace train --train 2018-07-25..2018-07-31 --test 2018-08-08..2018-08-14")
    parser.add_argument("--model", help="which model (default: the first)")
    parser.add_argument("--train", required=True, metavar="DAY..DAY", help="days to fit on, both included, UTC")
    parser.add_argument("--test", required=True, metavar="DAY..DAY", help="later days to judge on, a label delay apart")
    parser.add_argument("--training-set", metavar="PATH", help="Parquet or Delta training set; without it one is built")
    parser.add_argument("--declared", action="store_true", help="on features as declared, which `headrace apply` has yet to make live")
    parser.add_argument("--accept", nargs="+", default=(), choices=KINDS, metavar="KIND",
                        help=f"kinds of rules that may be broken: {', '.join(KINDS)}")
    parser.add_argument("--promote", action="store_true", help="make it the champion even if there is one")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.use_cases import find_model
    from jobs import registry
    from jobs.checks import check_training_set
    from jobs.train import train
    from jobs.training_rows import check_gap, parse_period
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services.releasing import record_release

    if arguments.declared and arguments.promote:
        raise SettingsError("--declared --promote: the champion would not fit what is live", hint="`headrace apply` promotes it")
    settings = read_settings()
    spec = find_model(settings, arguments.model, code=arguments.declared)
    train_period, test_period = parse_period(arguments.train), parse_period(arguments.test)
    check_gap(train_period, test_period, spec.label_delay_ms)
    began = time.monotonic()
    source = arguments.training_set or build_training_set(settings, spec, train_period, test_period)
    checked = check_training_set(source, spec, settings, arguments.accept)
    result = train(source, spec, train_period, test_period, settings)
    registered = registry.register(settings, result, make_champion=arguments.promote)
    live, why = registered.alias == "champion", "promoted by hand" if arguments.promote else "the first"
    release = record_release(settings, spec.name, registered.version, why, by="train") if live else None
    facts = {**asdict(registered), "epoch": None if release is None else release.epoch, "checked": asdict(checked),
             "folder": str(registered.folder), "threshold": result.manifest.threshold, "metrics": result.manifest.metrics,
             "seconds": round(time.monotonic() - began, 2)}
    show(arguments, facts, table(facts))


def build_training_set(settings: Settings, spec: ModelSpec, train: Period, test: Period) -> Any:
    """The path of a training set from the first training day to the last test day, as labels are known now."""
    from jobs.training_set import training_set

    return training_set(settings, spec, train.start_ms, test.end_ms, mode="known")


def table(facts: dict[str, Any]) -> str:
    precision = next(key for key in facts["metrics"]["model"] if "_precision_" in key)
    columns = ("rows", "positives", "auc", "average_precision", precision)
    lines = [f"{'':20}" + "".join(f"{column:>24}" for column in columns)]
    for name, values in facts["metrics"].items():
        lines.append(f"{name:20}" + "".join(f"{values[c]:>24,}" if c in columns[:2] else f"{values[c]:>24.4f}" for c in columns))
    lines.append(f"{facts['model']} version {facts['version']} is {facts['alias']}, threshold {facts['threshold']:.4f}, "
                 f"{facts['seconds']} s, in {facts['folder']}")
    return "\n".join(lines)
