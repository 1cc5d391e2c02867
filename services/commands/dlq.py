"""``headrace dlq list | show | replay``"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING

from services.commands import add_command, add_group, show
from services.words import whole

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "dlq", help="dead letters: what was refused, why, and sending it again",
                        example="headrace dlq list --reason not-json")
    listing = add_command(actions, "list", list_letters, help="list dead letters with their reasons",
                          example="headrace dlq list --reason not-json")
    listing.add_argument("--reason", help="only this reason, e.g. clock-skew")
    listing.add_argument("--limit", type=whole(0), default=50, metavar="N", help="print at most N (default %(default)s); all are counted")
    one = add_command(actions, "show", show_letter, help="show one dead letter with its original bytes",
                      example="headrace dlq show transactions/0/17")
    one.add_argument("id", help="topic/partition/offset, as `headrace dlq list` prints it")
    replay = add_command(actions, "replay", replay_all, help="publish dead letters again that their contract takes by now",
                         example="headrace dlq replay --reason unknown-field --dry-run")
    replay.add_argument("--reason", help="only this reason")
    replay.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")


def list_letters(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from schemas.topics import sources
    from services.dead_letters import read_letters
    from services.runtime.endpoints import kafka_endpoint
    from services.words import iso

    settings = read_settings()
    letters = list(read_letters(kafka_endpoint(settings), sources(settings), arguments.reason))
    reasons = Counter(letter.reason for letter in letters)
    facts = {"count": len(letters), "reasons": dict(reasons),
             "letters": [{"id": x.id, "reason": x.reason, "fact": x.fact, "hint": x.hint, "arrival": iso(x.arrival_ms)}
                         for x in letters[: arguments.limit]]}
    lines = [f"{x.id:<28} {x.reason:<14} {iso(x.arrival_ms)}  {x.fact}" for x in letters[: arguments.limit]]
    total = f"{len(letters)} dead letters" + "".join(f", {n} {reason}" for reason, n in reasons.most_common())
    show(arguments, facts, "\n".join([*lines, total]))


def show_letter(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from schemas.topics import sources
    from services.dead_letters import find_letter
    from services.runtime.endpoints import kafka_endpoint
    from services.words import iso

    settings = read_settings()
    letter = find_letter(kafka_endpoint(settings), sources(settings), arguments.id)
    value = None if letter.value is None else letter.value.decode("utf-8", "backslashreplace")
    facts = {"id": letter.id, "reason": letter.reason, "fact": letter.fact, "hint": letter.hint, "arrival": iso(letter.arrival_ms),
             "key": None if letter.key is None else letter.key.decode("utf-8", "backslashreplace"), "value": value,
             "headers": {name: (content or b"").decode("utf-8", "backslashreplace") for name, content in letter.headers}}
    show(arguments, facts, "\n".join(f"{name:<8} {fact}" for name, fact in facts.items()))


def replay_all(arguments: argparse.Namespace) -> None:
    from feature_repo.online import SetReader
    from feature_repo.use_cases import services
    from schemas.settings import read_settings
    from schemas.topics import sources
    from services.dead_letters import read_letters, replay_letters
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    at = endpoints(settings)
    now_ms: int | None = time.time_ns() // 1_000_000
    if settings.time == "replay":
        reader = SetReader(at.redis, 5000, settings.partitions)
        now_ms = reader.newest_scored_ms(service.name for service in services(settings))
        reader.close()
    outcome = replay_letters(at.kafka, at.redis, read_letters(at.kafka, sources(settings), arguments.reason), now_ms, arguments.dry_run)
    lines = [f"{identity}  still refused: {fact}" for identity, fact in outcome.refused.items()]
    verb = "would be sent" if arguments.dry_run else "sent"
    lines.append(f"{len(outcome.sent)} {verb}, {len(outcome.before)} sent before, {len(outcome.refused)} still refused")
    show(arguments, {"dry_run": arguments.dry_run, "sent": outcome.sent, "sent_before": outcome.before, "refused": outcome.refused},
         "\n".join(lines))
