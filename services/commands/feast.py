"""``headrace feast apply`` and ``headrace feast get``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from schemas.errors import DefinitionError
from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    actions = subparsers.add_parser("feast", help="the feature store as Feast sees it").add_subparsers(metavar="ACTION", required=True)
    add_command(actions, "apply", apply, help="write entities, feature views and services to the Feast registry",
                example="headrace feast apply")
    get = add_command(actions, "get", get_features, help="read an entity's features through Feast",
                      example="headrace feast get card_id=596 terminal_id=3156 --at 2018-08-14T12:00:00")
    get.add_argument("entities", nargs="+", metavar="KEY=ID", help="join key and entity")
    get.add_argument("--at", type=time_ms, metavar="TIME", help="as of this time, UTC (ISO 8601, or ms since 1970); default: now")


def apply(arguments: argparse.Namespace) -> None:
    from feature_repo import feast_store
    from schemas.settings import read_settings

    names = feast_store.apply(feast_store.open_store(read_settings().home))
    show(arguments, names, "\n".join(f"{kind.replace('_', ' ')}: {', '.join(of_kind)}" for kind, of_kind in names.items() if of_kind))


def get_features(arguments: argparse.Namespace) -> None:
    entities = dict(pair(text) for text in arguments.entities)

    from feature_repo import feast_store
    from schemas.settings import read_settings
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    store = feast_store.open_store(settings.home, endpoints(settings).redis)
    at_ms, found = feast_store.look_up(store, entities, arguments.at)
    width = max(map(len, found))
    lines = [f"{name:{width}}  {'null' if f.value is None else f'{f.value:.6g}':>12}  {f.status:10}{iso(f.newest_ms)}"
             for name, f in found.items()]
    facts = {"at_ms": at_ms, **entities, "features": {name: asdict(feature) for name, feature in found.items()}}
    show(arguments, facts, "\n".join([f"at {iso(at_ms)}", *lines]))


def pair(text: str) -> tuple[str, str]:
    key, separator, entity = text.partition("=")
    if not separator or not entity:
        raise DefinitionError(f"{text!r} names no entity", hint="write it as card_id=596")
    return key, entity


def time_ms(text: str) -> int:
    """UTC ms of an ISO 8601 time (UTC where it names no zone) or of ms written as digits."""
    if text.isdigit():
        return int(text)
    told = datetime.fromisoformat(text)
    return round((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() * 1000)


def iso(ms: int | None) -> str:
    return "" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
