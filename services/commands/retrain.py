"""``headrace retrain``"""

from __future__ import annotations

import argparse
import hashlib
from typing import TYPE_CHECKING

import msgspec

from services.commands import add_command, show
from services.words import stated

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "retrain", run, help="ask for a retrain; the governor answers, by the rules that bind alarms too",
                         example='headrace retrain fraud --why "new acquirer since Monday"')
    parser.add_argument("model", nargs="?", help="default: the first")
    parser.add_argument("--why", required=True, type=stated, metavar="REASON", help="goes into the request and the release")
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked, ask nothing")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 where it was granted, 1 where it was declined or nobody answered."""
    from feature_repo.online import SetReader
    from feature_repo.use_cases import find_model, services
    from schemas.errors import JobError
    from schemas.monitoring import ASKS, RetrainAsk
    from schemas.settings import read_settings
    from services.control_log import ControlLog
    from services.lookup import clock_ms
    from services.releasing import live_bundle, read_chain
    from services.runtime.endpoints import kafka_endpoint, redis_endpoint

    settings = read_settings()
    spec, kafka = find_model(settings, arguments.model), kafka_endpoint(settings)
    bundle = live_bundle(settings.models, spec.name, read_chain(kafka))
    if bundle is None:
        raise JobError(f"{spec.name} has no champion yet", hint="train the first model by hand: `headrace train`")
    version = bundle[0].name
    name = hashlib.sha256(f"{spec.name}|{version}|{arguments.why}".encode()).hexdigest()[:16]
    ask = RetrainAsk(name, spec.name, version, arguments.why)  # the same words about the same champion are the same ask
    if arguments.dry_run:
        text = f"would ask for a retrain of {spec.name}, version {version}: {ask.why}"
        show(arguments, {"asked": msgspec.to_builtins(ask), "decision": None}, text)
        return 0
    log = ControlLog(kafka)
    reader = SetReader(redis_endpoint(settings), 5000, settings.partitions)
    try:
        at_ms = clock_ms(settings, reader, services(settings))
    finally:
        reader.close()
    decision = log.answer(ASKS, log.publish(ASKS, ask, at_ms), ("requested", "declined"))
    facts = {"asked": msgspec.to_builtins(ask), "decision": None if decision is None else msgspec.to_builtins(decision)}
    said = "no answer: is the loop up? see `headrace status`"
    show(arguments, facts, said if decision is None else f"{decision.what} {decision.retrain_id}: {decision.reason}")
    return 0 if decision is not None and decision.what == "requested" else 1
