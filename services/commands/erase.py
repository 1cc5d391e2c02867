"""``headrace erase card=123``"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show
from services.words import iso, pair

if TYPE_CHECKING:
    from schemas.settings import Settings
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "erase", run, example="headrace erase card=123 --dry-run",
                         help="erase a person's events from the online store and the tables; exit code 1: run it again")
    parser.add_argument("entity", type=pair, metavar="ENTITY=ID", help="card=123 or card_id=123: a field that contracts call personal")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; say what would be erased")
    parser.add_argument("--vacuum-now", action="store_true",
                        help="remove the tables' old versions at once: no job may be running, and no older version can be read again")


def run(arguments: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from feature_repo.versions import exclusive
    from jobs.erase import erase
    from schemas.settings import read_settings
    from services.runtime.endpoints import endpoints

    settings, (word, entity) = read_settings(), arguments.entity
    at = endpoints(settings)
    with nullcontext() if arguments.dry_run else exclusive(settings):  # a version that is being built would get back what is taken out
        found = asdict(erase(settings, personal_field(word), entity, at.kafka, at.redis, dry_run=arguments.dry_run,
                             vacuum_now=arguments.vacuum_now, tell=lambda line: print(line, file=sys.stderr, flush=True)))
    facts = {**found, "kafka_until_ms": kafka_until(settings, next(iter(found["entity"])), time.time_ns() // 1_000_000)}
    show(arguments, facts, text(facts))
    return 1 if found["behind"] and not arguments.dry_run else 0


def personal_field(word: str) -> str:
    """The contract field that ``word`` (card or card_id) names. Raises DefinitionError where it names no person."""
    from jobs.erasures import personal_fields
    from schemas.errors import DefinitionError

    found = {word, f"{word}_id"} & personal_fields()
    if not found:
        raise DefinitionError(f"no contract calls {word!r} personal data", hint=f"one of {', '.join(sorted(personal_fields()))}")
    return found.pop()


def kafka_until(settings: Settings, field: str, now_ms: int) -> dict[str, int | None]:
    """By topic, when what it holds now is gone from Kafka; None: by size only, as in replays."""
    from jobs.erasures import topics_of
    from schemas.topics import catalogue, valid_topic

    sources, dead_letters, predictions = topics_of(field)
    mine = {*sources, *dead_letters, *predictions, *map(valid_topic, sources)}
    kept = {topic.name: int(topic.config["retention.ms"]) for topic in catalogue(settings) if topic.name in mine}
    return {name: now_ms + ms if ms >= 0 else None for name, ms in kept.items()}


def text(facts: dict[str, Any]) -> str:
    verb = "would erase" if facts["dry_run"] else "erased"
    lines = [f"{verb} of {', '.join(f'{name} {value}' for name, value in facts['entity'].items())}:"]
    lines += [f"  {n:>9,} records of its set {view}" for view, n in facts["sets"].items()]
    lines += [f"  {n:>9,} records in others' sets {view}" for view, n in facts["shared"].items()]
    lines += [f"  {facts['pairs']:>9,} predictions and labels that wait for their other side"] if facts["pairs"] else []
    lines += [f"  {n:>9,} rows of {table}" for table, n in sorted(facts["rows"].items())]
    lines += [f"built from it: training set {name}" for name in facts["training_sets"]]
    lines += [f"built from it: model {name}" for name in facts["models"]]
    until = sorted(facts["kafka_until_ms"].items())
    lines.append("still in Kafka until " + ", ".join(f"{name} {iso(ms) if ms is not None else 'its size limit'}" for name, ms in until))
    if facts["old_versions_until_ms"] is not None:
        lines.append(f"still in old versions of the tables until `headrace maintain` runs after {iso(facts['old_versions_until_ms'])}")
    if facts["behind"]:
        lines.append(f"feature workers have not applied all of the log yet ({', '.join(facts['behind'])}): run it again")
    return "\n".join([*lines, f"{facts['seconds']} s"])
