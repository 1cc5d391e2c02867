"""``headrace feast apply`` and ``headrace feast get``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, add_group, show
from services.words import iso, pair, time_ms

if TYPE_CHECKING:
    from services.commands import Subparsers

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "feast", help="the feature store as Feast sees it", example="headrace feast get card_id=596")
    add_command(actions, "apply", apply, help="write entities, feature views and services to the Feast registry",
                example="headrace feast apply")
    get = add_command(actions, "get", get_features, help="read an entity's features through Feast",
                      example="headrace feast get card_id=596 terminal_id=3156 --at 2018-08-14T12:00:00")
    get.add_argument("entities", nargs="+", type=pair, metavar="KEY=ID", help="join key and entity")
    get.add_argument("--at", type=time_ms, metavar="TIME",
                     help="as of this time, UTC (ISO 8601, or ms since 1970); default: now, in a replay the stream's clock")


def apply(arguments: argparse.Namespace) -> None:
    from feature_repo import feast_store
    from schemas.settings import read_settings

    names = feast_store.apply(feast_store.open_store(read_settings().home))
    show(arguments, names, "\n".join(f"{kind.replace('_', ' ')}: {', '.join(of_kind)}" for kind, of_kind in names.items() if of_kind))


def get_features(arguments: argparse.Namespace) -> None:
    from feature_repo import feast_store
    from schemas.settings import read_settings
    from services.runtime.endpoints import redis_endpoint

    settings = read_settings()
    store = feast_store.open_store(settings.home, redis_endpoint(settings))
    entities = dict(arguments.entities)
    at_ms, found = feast_store.look_up(store, entities, arguments.at)
    width = max(map(len, found))
    lines = [f"{name:{width}}  {'null' if f.value is None else f'{f.value:.10g}':>14}  {f.status:10}{iso(f.newest_ms)}"
             for name, f in found.items()]
    facts = {"at_ms": at_ms, **entities, "features": {name: asdict(feature) for name, feature in found.items()}}
    show(arguments, facts, "\n".join([f"at {iso(at_ms)}", *lines]))
