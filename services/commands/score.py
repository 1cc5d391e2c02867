"""``headrace score EVENT.json``"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.commands import add_command, show
from services.words import pair, time_ms

if TYPE_CHECKING:
    from feature_repo.models import ModelSpec
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "score", run, help="score one event as if it had just arrived; nothing is published",
                         example="headrace score event.json --json")
    parser.add_argument("--model", help="by which model (default: the first)")
    parser.add_argument("event", metavar="EVENT.json|ENTITY=ID", help="a file with one event in the contract's form, - for standard input; "
                        "or, for a model that is asked about entities, e.g. customer=12347")
    parser.add_argument("--at", type=time_ms, metavar="TIME", help="with ENTITY=ID: as of this time, UTC; default: now, in a replay the "
                        "stream's clock")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.bundle import load_bundle
    from feature_repo.online import SetReader
    from feature_repo.use_cases import find_model
    from feature_repo.vector import VectorBuilder
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services.lookup import clock_ms, vector_for
    from services.releasing import deciding_bundle, read_chain
    from services.runtime.endpoints import endpoints

    asks = "=" in arguments.event and not Path(arguments.event).exists()
    if arguments.at is not None and not asks:
        raise SettingsError("--at belongs to ENTITY=ID", hint="an event has its own time")
    settings = read_settings()
    spec = find_model(settings, arguments.model)
    at = endpoints(settings)
    reader = SetReader(at.redis, 5000, settings.partitions)
    try:
        if asks:
            at_ms = clock_ms(settings, reader, [spec.service]) if arguments.at is None else arguments.at
            event = _asked(spec, *pair(arguments.event), at_ms)
        else:
            event = _read(spec, arguments.event)
        row, _ = vector_for(VectorBuilder(spec.service), reader, event)
    finally:
        reader.close()
    bundle = deciding_bundle(settings.models, spec, read_chain(at.kafka), event)
    model = load_bundle(bundle, spec.service, settings.key_folder) if bundle is not None else None
    score = float(model.score(row.reshape(1, -1))[0]) if model is not None else None
    alert = score >= model.threshold if model is not None and score is not None else None
    features = {name: None if math.isnan(x) else x for name, x in zip(spec.service.feature_names, row.tolist(), strict=True)}
    facts = {"event_id": event.event_id, "model": spec.name, "model_version": model.version if model else None, "score": score,
             "threshold": model.threshold if model else None, "alert": alert, "features": features}
    told = "no model yet: `headrace train` makes one" if model is None else \
        f"score {score:.6f}, threshold {model.threshold:.6f}, {'ALERT' if alert else 'no alert'}, model {model.version}"
    lines = [f"  {name:<26} {'null' if x is None else f'{x:.10g}'}" for name, x in features.items()]
    show(arguments, facts, "\n".join([told, *lines]))


def _asked(spec: ModelSpec, word: str, entity: str, at_ms: int) -> Any:
    from services.lookup import entity_field
    from services.requests import Requests

    entity_field(spec.service.views, word)
    return Requests(spec, "/headrace/score").event(entity, at_ms)


def _read(spec: ModelSpec, name: str) -> Any:
    from schemas.errors import ContractError
    from schemas.topics import SOURCES

    try:
        value = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ContractError("no-value", f"cannot read {name}: {error.strerror}", hint="name a file with one JSON event") from error
    return SOURCES[spec.service.source].decode(value)
