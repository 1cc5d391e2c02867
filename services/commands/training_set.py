"""``headrace training-set``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers

MODES = ("known", "ideal", "served")  # jobs.training_set.MODES; not imported for a --help


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "training-set", run, help="build labelled rows with their features as of each event's time",
                         example="headrace training-set 2018-07-25..2018-07-31 --mode known")
    parser.add_argument("period", metavar="DAY..DAY", help="days of the transactions, both included, UTC")
    parser.add_argument("--model", default="fraud", help="whose features and label (default: fraud)")
    parser.add_argument("--mode", choices=MODES, default="known",
                        help="known: what had arrived by then; ideal: whatever arrived since; served: as logged (default: known)")


def run(arguments: argparse.Namespace) -> None:
    from jobs.training_rows import parse_period
    from jobs.training_set import build_training_set
    from schemas.settings import read_settings
    from services.commands.train import find_model

    period = parse_period(arguments.period)
    built = build_training_set(read_settings(), find_model(arguments.model), period.start_ms, period.end_ms, arguments.mode)
    m = built.manifest
    maturity = "labels are mature" if m["labels_mature"] else "labels are still coming in"
    show(arguments, asdict(built), f"{m['rows']:,} rows ({m['positives']:,} positive), {m['unlabelled']:,} transactions without a label "
         f"left out, {maturity}, {m['seconds']} s\n{built.path}")
