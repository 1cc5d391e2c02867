"""``headrace export --edge OUT``"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import pair

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "export", run, help="write a folder that scores on a device with Python, numpy and onnxruntime alone",
                         example="headrace export --edge till-7 --entity card=596 terminal=3156")
    parser.add_argument("--edge", required=True, type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--model", help="which model (default: the first)")
    parser.add_argument("--version", help="which version of it (default: the live one)")
    parser.add_argument("--entity", nargs="+", action="extend", type=pair, default=[], metavar="ENTITY=ID",
                        help="the device's own entities; their events are read from Redis")
    parser.add_argument("--explain", action="store_true", help="scores come with the contribution of each feature; about 1 MiB more")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.bundle import bundle_folder
    from feature_repo.use_cases import find_model
    from schemas.errors import BundleError, RuntimeFault
    from schemas.releases import Chain
    from schemas.settings import read_settings
    from services.edge.export import export, held_sets
    from services.lookup import entity_field
    from services.releasing import live_bundle, read_chain
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    spec = find_model(settings, arguments.model)
    entities: dict[str, list[str]] = defaultdict(list)
    for word, entity in arguments.entity:
        entities[entity_field(spec.service.views, word)].append(entity)
    try:
        at = endpoints(settings)
    except RuntimeFault:
        if entities:  # their events are nowhere else
            raise
        at = None
    if arguments.version is not None:
        bundle = bundle_folder(settings.models, spec.name, arguments.version)
    else:
        live = live_bundle(settings.models, spec.name, read_chain(at.kafka) if at is not None else Chain())
        if live is None:
            raise BundleError(f"there is no live version of model {spec.name}", hint="`headrace train` makes one; or name a --version")
        bundle = live[0]
    now_ms, held = held_sets(settings, spec.service, at.redis, entities) if at is not None and entities else (0, {})
    done = export(settings, spec, bundle, arguments.edge, now_ms, held, explain=arguments.explain)
    text = (f"{done.model} version {done.version} in {done.folder}: {done.bytes / 1024:,.0f} KiB, and {done.records:,} events of "
            f"{len(held)} sets in {done.event_bytes / 1024:,.0f} KiB\nstarts in {done.start_ms:,.0f} ms, a whole process takes "
            f"{done.process_ms:,.0f} ms here\nmanifest sha256 {done.manifest_sha256}, signed by "
            f"{done.signed_by}\npython {done.folder}/scorer.py event.json")
    show(arguments, {**asdict(done), "sets": [list(key) for key in held]}, text)
