"""``headrace score EVENT.json``"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "score", run, help="score one event as if it had just arrived; nothing is published",
                         example="headrace score event.json --json")
    parser.add_argument("event", metavar="EVENT.json", help="a file with one event in the contract's form; - for standard input")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.bundle import champion, load_bundle
    from feature_repo.fraud import FRAUD
    from feature_repo.online import SetReader
    from feature_repo.vector import VectorBuilder
    from schemas.errors import ContractError
    from schemas.records import TRANSACTION
    from schemas.settings import read_settings
    from services.lookup import vector_for
    from services.runtime.endpoints import redis_endpoint

    settings = read_settings()
    try:
        value = sys.stdin.buffer.read() if arguments.event == "-" else Path(arguments.event).read_bytes()
    except OSError as error:
        raise ContractError("no-value", f"cannot read {arguments.event}: {error.strerror}",
                            hint="name a file with one JSON event") from error
    event = TRANSACTION.decode(value)
    reader = SetReader(redis_endpoint(settings), 5000, settings.partitions)
    try:
        row, _ = vector_for(VectorBuilder(FRAUD.service), reader, event)
    finally:
        reader.close()
    folder = champion(settings.models, FRAUD.name)
    model = load_bundle(folder, FRAUD.service) if folder is not None else None
    score = float(model.score(row.reshape(1, -1))[0]) if model is not None else None
    alert = score >= model.threshold if model is not None and score is not None else None
    features = {name: None if math.isnan(x) else x for name, x in zip(FRAUD.service.feature_names, row.tolist(), strict=True)}
    facts = {"event_id": event.event_id, "model": FRAUD.name, "model_version": model.version if model else None, "score": score,
             "threshold": model.threshold if model else None, "alert": alert, "features": features}
    told = "no model yet: `headrace train` makes one" if model is None else \
        f"score {score:.6f}, threshold {model.threshold:.6f}, {'ALERT' if alert else 'no alert'}, model {model.version}"
    lines = [f"  {name:<26} {'null' if x is None else f'{x:.10g}'}" for name, x in features.items()]
    show(arguments, facts, "\n".join([told, *lines]))
