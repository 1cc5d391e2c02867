"""``headrace replay``: a file of history as events."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import SettingsError
from services.commands import add_command, show
from services.words import positive, whole

if TYPE_CHECKING:
    from services.commands import Subparsers

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    from services.replaying import add_lockstep_options

    parser = add_command(subparsers, "replay", run, example="headrace replay transactions.parquet --mapping fraud --step 1h",
                         help="publish a file of history, with simulated time or at a real rate")
    parser.add_argument("file", type=Path, metavar="FILE", help="Parquet, CSV or NDJSON, in order of time")
    parser.add_argument("--mapping", metavar="NAME|FILE.toml", help="which columns mean what: contract, fraud, churn, or a TOML file "
                        "with a [columns] table (default: the built-in one that fits)")
    add_lockstep_options(parser)
    parser.add_argument("--limit", type=whole(1), metavar="N", help="stop after N rows")
    parser.add_argument("--train", metavar="DAY..DAY", help="train a first model on these days, while the clock waits, as soon as "
                        "the labels of --test are known; from then on the loop has something to watch")
    parser.add_argument("--test", metavar="DAY..DAY", help="later days to judge it on, a label delay apart")
    parser.add_argument("--rate", type=positive, metavar="N", help="no simulated time: N events a second, whoever keeps up")
    parser.add_argument("--now", action="store_true", help="with --rate: the events happen when they are sent")
    parser.add_argument("--stamp", action="store_true", help="with --rate: header hr_sent_ns says when each record was due")


def run(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from services.files import count_rows
    from services.inputs import read_rows
    from services.mappings import find_mapping
    from services.replaying import first_periods, in_lockstep, paced, summary_text

    if arguments.rate is None and (arguments.now or arguments.stamp):
        raise SettingsError("--now and --stamp belong to --rate", hint="headrace replay FILE --rate 1000 --now")
    if (arguments.train is None) != (arguments.test is None) or (arguments.train is not None and arguments.rate is not None):
        raise SettingsError("--train and --test belong together, and to simulated time", hint="--train DAY..DAY --test DAY..DAY, no --rate")
    settings, file = read_settings(), arguments.file
    mapping = find_mapping(file, arguments.mapping)
    if mapping.use_case.name not in settings.use_cases:
        raise SettingsError(f"mapping {mapping.name} is of use case {mapping.use_case.name!r}, which is off",
                            hint=f"HEADRACE_USE_CASES={mapping.use_case.name}, for `headrace up` too")
    rows = read_rows(file, mapping, arguments.limit)
    total = min((n for n in (count_rows(file), arguments.limit) if n is not None), default=None)
    if arguments.rate is None:
        facts = in_lockstep(settings, mapping.use_case, rows, source="/headrace/replay", total=total, step_ms=arguments.step,
                            drain=arguments.drain, loop=arguments.loop, first=first_periods(arguments.train, arguments.test))
    else:
        facts = paced(settings, mapping.use_case, rows, source="/headrace/replay", total=total, rate=arguments.rate, restamp=arguments.now,
                      stamp=arguments.stamp)
    show(arguments, facts, summary_text(facts))
