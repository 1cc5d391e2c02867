"""``headrace request``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import iso, pair, time_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.commands import Subparsers
    from services.events import Record


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "request", run, help="publish requests to score entities: those named, or those of the schedule",
                         example="headrace request --model churn customer=12347")
    parser.add_argument("entities", nargs="*", type=pair, metavar="ENTITY=ID", help="customer=12347; none: all that the schedule names")
    parser.add_argument("--model", help="by which model (default: the first)")
    parser.add_argument("--at", type=time_ms, metavar="TIME",
                        help="as of this time, UTC (ISO 8601, or ms since 1970); default: now, in a replay the stream's clock")
    parser.add_argument("--dry-run", action="store_true", help="say how many would be published, publish nothing")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.online import SetReader
    from feature_repo.use_cases import find_model
    from schemas.settings import read_settings
    from services.lookup import clock_ms, entity_field
    from services.publisher import Publisher
    from services.requests import Requests, ScheduledRequests
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    spec, at = find_model(settings, arguments.model), endpoints(settings)
    requests = Requests(spec, "/headrace/request")
    reader = SetReader(at.redis, 5000, settings.partitions)
    at_ms = clock_ms(settings, reader, [spec.service]) if arguments.at is None else arguments.at
    reader.close()
    for word, _ in arguments.entities:
        entity_field(spec.service.views, word)
    records: Iterable[Record] = [requests.record(entity, at_ms) for _, entity in arguments.entities]
    if not arguments.entities:
        records = ScheduledRequests(spec, "/headrace/request", at.redis).due(at_ms)
    if arguments.dry_run:
        number = sum(1 for _ in records)
    else:
        publisher = Publisher(at.kafka, [requests.topic])
        number = publisher.send(records)
        publisher.flush()
    verb = "would be published" if arguments.dry_run else "published"
    show(arguments, {"model": spec.name, "topic": requests.topic, "at": iso(at_ms), "requests": number, "dry_run": arguments.dry_run},
         f"{number:,} requests {verb} to {requests.topic}, as of {iso(at_ms)}")
