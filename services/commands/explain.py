"""``headrace explain PREDICTION_ID``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import whole

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "explain", run, example="headrace explain 6f1c0c2ab7a94a1be1f1b2b0c0d1e2f3 --html why.html",
                         help="say why a prediction scored as it did, from the archive and its model alone")
    parser.add_argument("prediction_id", metavar="PREDICTION_ID", help="as in the record on the predictions topic")
    parser.add_argument("--answer", action="store_true", help="the newest answer to a request of that id, not what the log's scorer said")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page too")
    parser.add_argument("--events", type=whole(0), default=100, metavar="N",
                        help="how many of a view's events to tell, newest first (default: 100); late and in-flight ones are always told")


def run(arguments: argparse.Namespace) -> None:
    from jobs.explain import explain
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services.explanations import page, text

    facts = explain(read_settings(), arguments.prediction_id, arguments.events, answer=arguments.answer)
    if arguments.html is not None:
        try:
            arguments.html.write_text(page(facts), encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{arguments.html} cannot be written: {error.strerror}",
                                hint="name a file in a folder that is there") from error
    show(arguments, facts, text(facts))
