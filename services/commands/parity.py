"""``headrace parity``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "parity", run, example="headrace parity --json",
                         help="recompute every archived prediction's features; exit code 1 if one is unexplained")
    parser.add_argument("--again", action="store_true", help="also predictions whose verdict an earlier run has settled")
    parser.add_argument("--answers", action="store_true", help="what was answered by request, instead of the log's predictions")
    parser.add_argument("--model", help="whose predictions (default: those of the first model)")


def run(arguments: argparse.Namespace) -> int:
    from feature_repo.use_cases import find_model
    from jobs.parity import parity
    from schemas.settings import read_settings

    settings = read_settings()
    result = asdict(parity(settings, find_model(settings, arguments.model).service, again=arguments.again,
                           answers=arguments.answers))
    show(arguments, result, table(result))
    return 1 if result["unexplained"] else 0


def table(result: dict[str, Any]) -> str:
    counts = ("predictions", "exact", "in_flight", "unexplained", "erased", "degraded", "other_definition", "duplicates")
    lines = [f"{name.replace('_', ' '):<18}{result[name]:>12,}" for name in counts]
    for example in result["examples"]:
        lines.append(f"{example['event_id']} {example['view'] or ''}: {example['why']}")
        lines += [f"  {name}: served {of['served']}, recomputed {of['recomputed']}" for name, of in example["differs"].items()]
    return "\n".join([*lines, f"archive version {result['bronze_version']}, {result['seconds']} s"])
