"""From what is live to a folder that scores by itself: the verified bundle, the features as data, events of a device's own entities."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from feature_repo import contributions
from feature_repo.bundle import load_bundle, read_bundle
from feature_repo.layout import rows
from feature_repo.manifest import MODEL_FILE, SIGNATURE_FILE, sha256
from feature_repo.models import ModelSpec
from feature_repo.online import SetReader
from feature_repo.signing import read_signature
from feature_repo.trees import read_trees
from feature_repo.views import FeatureService, FeatureView
from schemas.errors import BundleError, DefinitionError
from schemas.settings import Settings
from schemas.topics import SOURCES
from services.edge.scorer import EXPLAINING, HASHED, write_events
from services.edge.source_text import module_of
from services.lookup import clock_ms

__all__ = ["Exported", "described", "export", "held_sets"]

SCORER = Path(__file__).with_name("scorer.py")
KNOWN = {"type", "minimum", "maximum", "minLength", "maxLength", "default"}
CHECK_S = 120.0


@dataclass(frozen=True)
class Exported:
    """``bytes`` of all files but the events; ``process_ms`` is what a whole run of the scorer took, ``start_ms`` its own part of that."""

    folder: Path
    model: str
    version: str
    bytes: int
    event_bytes: int
    records: int
    start_ms: float
    process_ms: float
    signed_by: str | None
    manifest_sha256: str


def export(settings: Settings, spec: ModelSpec, bundle: Path, out: Path, held_ms: int, held: Mapping[tuple[str, str], Any], *,
           explain: bool = False) -> Exported:
    """Write ``out``, then run it once: what does not verify itself is not left behind.

    ``held``: (versioned view, entity) -> int64[m, words], as of ``held_ms``; with ``explain`` scores come with contributions.

    Raises BundleError for a bundle that no loader would take, or a folder that is there; DefinitionError for features that cannot travel.
    """
    if out.exists():
        raise BundleError(f"{out} is there already", hint="name a new folder; what was exported is not written over")
    model = load_bundle(bundle, spec.service, settings.key_folder)
    files = read_bundle(bundle, settings.key_folder)[1]
    signer = read_signature(files[SIGNATURE_FILE])[0]
    code, told = request_module(spec.service), described(spec.service)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".edge-", dir=out.parent))
        try:
            draft.chmod(0o755)
            (draft / "bundle").mkdir()
            for name, data in files.items():
                (draft / "bundle" / name).write_bytes(data)
            shutil.copy(SCORER, draft / "scorer.py")
            shutil.copy(settings.key_folder / f"{signer}.pub", draft / "trusted.pub")
            (draft / "request_features.py").write_text(code, encoding="utf-8")
            (draft / "features.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
            if explain:
                shutil.copy(contributions.__file__, draft / "contributions.py")
                (draft / "trees.json").write_text(json.dumps(trees_of(files[MODEL_FILE])), encoding="utf-8")
            hashes = {name: sha256((draft / name).read_bytes()) for name in (*HASHED, *(EXPLAINING if explain else ()))}
            (draft / "edge.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
            write_events(draft / "events.bin", held_ms, dict(held))
            checked, process_ms = _run(draft)
            draft.rename(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}", hint="is there room, and may this user write?") from error
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    events = (out / "events.bin").stat().st_size
    return Exported(out, model.name, model.version, size - events, events, sum(map(len, held.values())), checked["start_ms"], process_ms,
                    checked["signed_by"], checked["manifest_sha256"])


def held_sets(settings: Settings, service: FeatureService, redis: str,
              entities: Mapping[str, Sequence[str]]) -> tuple[int, dict[tuple[str, str], Any]]:
    """(stream time, sets) of ``entities`` (contract field -> names) as the online store has them now."""
    wanted = [(view, list(entities[view.entity])) for view in service.views if entities.get(view.entity)]
    reader = SetReader(redis, 5000, settings.partitions)
    try:
        now_ms, reading = clock_ms(settings, reader, [service], nothing_ms=0), reader.read(wanted)
    finally:
        reader.close()
    return now_ms, {(view.versioned_name, entity): rows(view, value or b"")
                    for (view, _), sets in zip(wanted, reading.sets, strict=True) for entity, value in sets.items()}


def described(service: FeatureService) -> dict[str, Any]:
    """The service as data, for a scorer that knows nothing of headrace."""
    sources = dict.fromkeys((service.source, *(view.source for view in service.views)))
    return {"service": service.name, "service_hash": service.definition_hash, "source": service.source,
            "names": list(service.feature_names), "event_columns": list(service.event_columns),
            "scored_lateness_ms": service.scored_lateness_ms, "views": [_view(view) for view in service.views],
            "contracts": {source: _contract(source) for source in sources}}


def request_module(service: FeatureService) -> str:
    """The functions of the request-time features and of columns that records derive."""
    derived: dict[str, dict[str, Any]] = {}
    for view in service.views:
        contract = SOURCES[view.source]
        fields = contract.json_schema()["properties"]
        of_source = derived.setdefault(view.source, {})
        of_source.update({name: getattr(contract.record, name).fget for name in (c.field for c in view.columns) if name not in fields})
    return module_of({feature.name: feature.function for feature in service.request}, derived)


def trees_of(onnx: bytes) -> dict[str, Any]:
    """The model's trees as data: each leaf with the conditions on the way to it."""
    trees = read_trees(onnx)
    leaves = [(leaf.value, [astuple(split) for split in leaf.path]) for leaf in trees.leaves]
    return {"leaves": leaves, "base": trees.base, "width": trees.width, "counted": trees.counted}


def _view(view: FeatureView) -> dict[str, Any]:
    if view.hops:
        raise DefinitionError(f"feature view {view.name!r} has hops: its older events are tiles", hint="a device reads exact windows only")
    features = [{key: value for key, value in asdict(feature).items() if key != "hop_ms"} for feature in view.features]
    return {"name": view.versioned_name, "entity": view.entity, "source": view.source, "columns": [asdict(c) for c in view.columns],
            "features": features, "delay_ms": view.delay_ms, "allowed_lateness_ms": view.allowed_lateness_ms,
            "max_skew_ms": view.max_skew_ms, "include_current": view.include_current}


def _contract(source: str) -> dict[str, Any]:
    schema = SOURCES[source].json_schema()
    told = schema["properties"].items()
    fields = {name: {key: value for key, value in field.items() if not key.startswith("x-")} for name, field in told}
    for name, field in fields.items():
        if not field.keys() <= KNOWN or field["type"] not in ("string", "integer", "boolean"):
            raise DefinitionError(f"the scorer of devices cannot check field {name!r} of {source}", hint="a text, an integer or a boolean")
    return {"properties": fields, "required": schema["required"]}


def _run(folder: Path) -> tuple[dict[str, Any], float]:
    """What the scorer says of its folder when it runs as a device runs it."""
    began = time.perf_counter()
    command = [sys.executable, "-I", str(folder / "scorer.py"), "check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"the exported scorer does not start within {CHECK_S:.0f} s", hint="is this machine overloaded?") from error
    if done.returncode:
        raise BundleError(f"the exported scorer refuses: {done.stderr.strip()[-500:]}", hint="is numpy or onnxruntime broken here?")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts, round(1000 * (time.perf_counter() - began), 1)
