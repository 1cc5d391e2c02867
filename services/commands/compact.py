"""``headrace compact``"""

from __future__ import annotations

import argparse
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers
    from services.compactor import Round


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "compact", run, help="fold old records of busy entities into tiles, round after round",
                         example="headrace compact --once")
    parser.add_argument("--once", action="store_true", help="one round, then say what it did")
    parser.add_argument("--dry-run", action="store_true", help="one round that only says what it would do")


def run(arguments: argparse.Namespace) -> None:
    from pydantic import SecretStr

    from schemas.settings import read_settings
    from services.compactor import Compactor, compact
    from services.process import set_by_signals
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    at = endpoints(settings)
    settings = settings.model_copy(update={"kafka": at.kafka, "redis": SecretStr(at.redis)})
    if not arguments.once and not arguments.dry_run:
        stopping = threading.Event()
        set_by_signals(stopping)
        return compact(settings, stopping)
    compactor = Compactor(settings)
    try:
        rounds = compactor.round(arguments.dry_run)
    finally:
        compactor.close()
    text = "\n".join(map(_line, rounds)) or "no view declares a hop: nothing to compact"
    show(arguments, {"dry_run": arguments.dry_run, "views": [asdict(each) for each in rounds]}, text)


def _line(done: Round) -> str:
    if done.b_ms is None:
        return f"{done.view}: some partition has not been applied or scored yet, so nothing may be folded"
    return (f"{done.view}: {done.compacted} of {done.entities} long sets folded up to {done.b_ms}, "
            f"{done.bytes_before} bytes became {done.bytes_after}")
