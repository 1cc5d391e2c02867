"""``headrace late``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "late", run, example="headrace late --view terminal_risk",
                         help="say which archived events came too late, and which decisions they would have changed")
    parser.add_argument("--view", help="only events too late for this view (default: all views that the model reads)")
    parser.add_argument("--model", help="whose predictions (default: those of the first model)")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.use_cases import find_model
    from jobs.late import late
    from schemas.settings import read_settings

    settings = read_settings()
    result = asdict(late(settings, find_model(settings, arguments.model), arguments.view))
    show(arguments, result, table(result))


def table(result: dict[str, Any]) -> str:
    from services.words import duration

    lines = []
    for view in result["views"]:
        by = ", ".join(f"{name} {duration(ms)}" for name, ms in view["by_ms"].items())
        lines.append(f"{view['view']}: {view['late']:,} of {view['records']:,} records later than {duration(view['allowed_ms'])} "
                     f"({view['share']:.3%})" + (f", by {by}" if by else ""))
        lines += [f"  {'up to ' + duration(bound) if bound else 'more':<12}{n:>12,}" for bound, n in view["histogram"] if n]
    lines.append(f"{result['changed']:,} of {result['judged']:,} predictions would have had other values, "
                 f"{result['decided']:,} of them have a decision: {result['to_alert']:,} would have become alerts, "
                 f"{result['to_none']:,} would have been none")
    lines += [f"  {name:<26}{n:>10,}" for name, n in result["changed_by_feature"].items()]
    for example in result["examples"]:
        score, would = ("no score" if x is None else f"{x:.4f}" for x in (example["score"], example["would_score"]))
        flip = " FLIPS" if None is not example["would_alert"] != example["alert"] else ""
        lines.append(f"{example['prediction_id']} {example['event_id']}: {score} -> {would}{flip} ({', '.join(example['views'])})")
    return "\n".join([*lines, f"archive version {result['bronze_version']}, {result['seconds']} s"])
