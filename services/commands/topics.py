"""``headrace topics``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "topics", run, help="create the topics of the catalogue that Kafka lacks; `up` does it too",
                         example="HEADRACE_KAFKA=broker-1:9092 HEADRACE_REPLICATION=3 headrace topics")
    parser.add_argument("--grow", action="store_true",
                        help="also add partitions where a topic has fewer than HEADRACE_PARTITIONS; start workers and scorers anew after")


def run(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from schemas.topics import catalogue
    from services.runtime.endpoints import kafka_endpoint
    from services.runtime.topics import create_topics

    settings = read_settings()
    topics = catalogue(settings)
    created = create_topics(kafka_endpoint(settings), topics, arguments.grow)
    facts = [{"name": topic.name, "partitions": topic.partitions, "created": topic.name in created, "config": topic.config}
             for topic in topics]
    lines = [f"{topic.name:<24} {topic.partitions} partitions, {'created' if topic.name in created else 'was there'}"
             for topic in topics]
    show(arguments, facts, "\n".join(lines))
