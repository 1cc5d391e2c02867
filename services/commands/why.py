"""``headrace why ID``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import time_ms, whole

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "why", run, example="headrace why fraud@2",
                         help="walk the chain from an id: what led to it, and what came of it")
    parser.add_argument("id", metavar="ID", help="of an event, prediction, evaluation, detection, retrain or release; model@epoch; "
                        "model@version. Where that is not enough: kind:ID, e.g. version:fraud@3")
    parser.add_argument("--most", type=whole(1), default=5, metavar="N",
                        help="how many of many are told, the most telling first (default: 5)")
    parser.add_argument("--at", type=time_ms, metavar="TIME", help="the event time, where an event id was used twice")


def run(arguments: argparse.Namespace) -> None:
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services.why.node import text
    from services.why.walk import why

    if arguments.most < 1:
        raise SettingsError(f"--most {arguments.most} tells nothing")
    found, read = why(read_settings(), arguments.id, arguments.at, arguments.most)
    show(arguments, {**found.as_facts(), "read": read}, text(found))
