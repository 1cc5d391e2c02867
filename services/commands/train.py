"""``headrace train``: fit a model on archived features, judge it on later days, register it."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from schemas.errors import DefinitionError
from services.commands import add_command, show

if TYPE_CHECKING:
    from feature_repo.fraud import ModelSpec
    from jobs.training_rows import Period
    from schemas.settings import Settings
    from services.commands import Subparsers

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "train", run, help="train a model on archived features and register it",
                         example="headrace train --train 2018-07-25..2018-07-31 --test 2018-08-08..2018-08-14")
    parser.add_argument("--model", default="fraud", help="which model (default: fraud)")
    parser.add_argument("--train", required=True, metavar="DAY..DAY", help="days to fit on, both included, UTC")
    parser.add_argument("--test", required=True, metavar="DAY..DAY", help="later days to judge on, a label delay apart")
    parser.add_argument("--training-set", metavar="PATH", help="Parquet or Delta training set; without it one is built")
    parser.add_argument("--promote", action="store_true", help="make it the champion even if there is one")


def run(arguments: argparse.Namespace) -> None:
    from jobs import registry
    from jobs.train import train
    from jobs.training_rows import check_gap, parse_period
    from schemas.settings import read_settings

    settings = read_settings()
    spec = find_model(arguments.model)
    train_period, test_period = parse_period(arguments.train), parse_period(arguments.test)
    check_gap(train_period, test_period, spec.label_delay_ms)
    began = time.monotonic()
    source = arguments.training_set or build_training_set(settings, spec, train_period, test_period)
    result = train(source, spec, train_period, test_period, settings)
    registered = registry.register(settings, result, make_champion=arguments.promote)
    facts = {**asdict(registered), "folder": str(registered.folder), "threshold": result.manifest.threshold,
             "metrics": result.manifest.metrics, "seconds": round(time.monotonic() - began, 2)}
    show(arguments, facts, table(facts))


def find_model(name: str) -> ModelSpec:
    from feature_repo.fraud import FRAUD

    models = {spec.name: spec for spec in (FRAUD,)}
    if name not in models:
        raise DefinitionError(f"there is no model {name!r}", hint=f"one of {', '.join(models)}")
    return models[name]


def build_training_set(settings: Settings, spec: ModelSpec, train: Period, test: Period) -> Any:
    """The path of a training set from the first training day to the last test day, as labels are known now."""
    from jobs.training_set import training_set

    return training_set(settings, spec, train.start_ms, test.end_ms, mode="known")


def table(facts: dict[str, Any]) -> str:
    precision = next(key for key in facts["metrics"]["model"] if key.startswith("card_precision_"))
    columns = ("rows", "positives", "auc", "average_precision", precision)
    lines = [f"{'':12}" + "".join(f"{column:>21}" for column in columns)]
    for name, values in facts["metrics"].items():
        lines.append(f"{name:12}" + "".join(f"{values[c]:>21,}" if c in columns[:2] else f"{values[c]:>21.4f}" for c in columns))
    lines.append(f"{facts['model']} version {facts['version']} is {facts['alias']}, threshold {facts['threshold']:.4f}, "
                 f"{facts['seconds']} s, in {facts['folder']}")
    return "\n".join(lines)
