"""``headrace archive``"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import not_negative

if TYPE_CHECKING:
    from jobs.archive import Archived
    from services.commands import Subparsers

EVERY_S = 10.0


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "archive", run, help="append what Kafka has and the archive lacks to the Delta table, once",
                         example="headrace archive --continuous 30")
    parser.add_argument("--continuous", type=not_negative, nargs="?", const=EVERY_S, metavar="SECONDS",
                        help=f"go on until stopped, with this pause between two rounds (default: {EVERY_S:g}); with --json a line a round")
    parser.add_argument("--conflicts", action="store_true",
                        help="archive nothing; list events sent with other content under one id, exit code 1 if there are any")


def run(arguments: argparse.Namespace) -> int:
    from jobs.archive import archive, archive_forever
    from schemas.settings import read_settings
    from services.runtime.endpoints import kafka_endpoint

    settings = read_settings()
    if arguments.conflicts:
        return _conflicts(arguments)

    def tell(archived: Archived) -> None:
        ends = ", ".join(f"{topic} {sum(ends.values()):,}" for topic, ends in sorted(archived.end_offsets.items()))
        if arguments.json and arguments.continuous is not None:
            return print(json.dumps(asdict(archived)), flush=True)
        show(arguments, asdict(archived), f"{archived.rows:,} rows archived, table version {archived.version}; read up to: {ends or '-'}")

    if arguments.continuous is None:
        tell(archive(settings, kafka_endpoint(settings)))
    else:
        stopping = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        archive_forever(settings, kafka_endpoint(settings), arguments.continuous, stopping, tell)
    return 0


def _conflicts(arguments: argparse.Namespace) -> int:
    from feature_repo.use_cases import USE_CASES
    from jobs.archive import conflicts
    from schemas.settings import read_settings

    found = conflicts(read_settings(), [view for case in USE_CASES for view in case.views])
    lines = [f"{c['topic']} {c['event_id']} at {c['event_time']}: {c['contents']} contents of revision {c['revision']}, "
             f"partition/offset {', '.join(c['records'])}" for c in found]
    show(arguments, found, "\n".join([*lines, f"{len(found)} conflicts"]))
    return 1 if found else 0
