"""``headrace features card=596 terminal=3156``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import iso, pair, time_ms

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "features", run, help="show entities' features as the scorer would read them",
                         example="headrace features card=596 terminal=3156 --at 2018-08-14T12:00:00")
    parser.add_argument("entities", nargs="+", type=pair, metavar="ENTITY=ID", help="card=596 or card_id=596, terminal=3156")
    parser.add_argument("--at", type=time_ms, metavar="TIME",
                        help="as of this time, UTC (ISO 8601, or ms since 1970); default: now, in a replay the stream's clock")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.online import SetReader
    from feature_repo.use_cases import services, views
    from schemas.settings import read_settings
    from services.lookup import clock_ms, entity_field, features_at
    from services.runtime.endpoints import redis_endpoint

    settings = read_settings()
    entities = {entity_field(views(settings), word): name for word, name in arguments.entities}
    reader = SetReader(redis_endpoint(settings), 5000, settings.partitions)
    try:
        at_ms = clock_ms(settings, reader, services(settings)) if arguments.at is None else arguments.at
        found = features_at(views(settings), reader, entities, at_ms)
    finally:
        reader.close()
    lines = [f"at {iso(at_ms)}"]
    for view in found:
        newest = f", newest {iso(view.newest_ms)}" if view.newest_ms is not None else ""
        lines.append(f"{view.view} of {view.entity}: {view.records} of {view.stored} records used{newest}, fingerprint {view.fingerprint}")
        lines += [f"  {name:<26} {'null' if value is None else f'{value:.10g}'}" for name, value in view.values.items()]
    show(arguments, {"at_ms": at_ms, "at": iso(at_ms), "views": [asdict(view) for view in found]}, "\n".join(lines))
