"""A model bundle: a folder that is verified before anything in it is opened, and the pointer to the one that is live.

    <models>/<model>/champion.json   which bundle is live, with the hash of its manifest
    <models>/<model>/<version>/      manifest.json  manifest.sig  model.onnx  golden.json  model_card.md

The signature (``feature_repo.signing``) is over the bytes of the manifest, and the manifest names the sha256 of every other file, so
all is covered. Each file is read once, and the bytes that were verified are the bytes that are used. Nothing here can run code from
a bundle: JSON, text, and an ONNX file that holds trees only (``feature_repo.tree_file``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from feature_repo.key_ring import check_signature, sign_manifest
from feature_repo.manifest import (
    CARD_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    POINTER_FILE,
    SIGNATURE_FILE,
    Golden,
    Manifest,
    decode,
    encode,
    read_plain,
    sha256,
    write_synced,
)
from feature_repo.tree_file import check_tree_file
from feature_repo.views import FeatureService
from schemas.errors import BundleError

__all__ = ["Golden", "Manifest", "Model", "Scorer", "as_input", "bundle_folder", "champion", "load_bundle", "promote", "read_bundle",
           "write_bundle"]

GOLDEN_TOLERANCE = 1e-6
INPUT, OUTPUT = "input", "probabilities"

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    version: str
    bundle: str
    sha256: str


def as_input(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The one conversion from features (float64, NaN is null) to what trees compare, in training as in scoring."""
    return np.ascontiguousarray(matrix, dtype=np.float32)


class Scorer:
    """ONNX bytes as a function of rows. One thread, no spinning: a process scores one batch at a time."""

    def __init__(self, onnx: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.log_severity_level = 3
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
            self._run = self._session.run
            shape = self._session.get_inputs()[0].shape
            if [item.name for item in self._session.get_inputs()] != [INPUT] or len(shape) != 2:
                raise BundleError(f"model.onnx does not take one matrix named {INPUT!r}", hint="train the model again")
            if OUTPUT not in [item.name for item in self._session.get_outputs()]:
                raise BundleError(f"model.onnx does not give {OUTPUT!r}", hint="train the model again")
            self.width = int(shape[1])
        except BundleError:
            raise
        except Exception as error:  # onnxruntime raises a dozen unrelated types for a bad model
            raise BundleError(f"model.onnx cannot be opened: {error}", hint="train the model again") from error

    def __call__(self, matrix: np.ndarray[Any, Any]) -> Floats:
        """Probability of the label, float64[n], for features[n, F]."""
        if not len(matrix):
            return np.empty(0)
        try:
            probabilities = self._run([OUTPUT], {INPUT: as_input(matrix)})[0]
        except Exception as error:  # as above
            raise BundleError(f"the model refused {matrix.shape[0]} rows of {matrix.shape[1]} features: {error}") from error
        column: Floats = probabilities[:, 1].astype(np.float64)
        return column


class Model:
    """A verified model. ``score(features float64[n, F]) -> float64[n]``; a score of ``threshold`` or more is an alert.

    ``defaults`` is float64[F]: what a vector holds where the online store could not be read (NaN: null).
    """

    def __init__(self, manifest: Manifest, score: Scorer) -> None:
        self.manifest = manifest
        self.name = manifest.model
        self.version = manifest.version
        self.threshold = manifest.threshold
        self.defaults: Floats = np.array([manifest.defaults.get(name, np.nan) for name in manifest.inputs])
        self.score = score


def load_bundle(folder: Path, service: FeatureService, keys: Path) -> Model:
    """The model in ``folder``, once every check holds: signature, files, hashes, contents, fit to ``service``, golden outputs.

    ``keys`` is the folder of trusted keys (``Settings.key_folder``). Raises BundleError with the first thing that does not hold.
    """
    manifest, files = read_bundle(folder, keys)
    _check_fit(manifest, service)
    check_tree_file(files[MODEL_FILE])
    score = Scorer(files[MODEL_FILE])
    if score.width != len(manifest.inputs):
        raise BundleError(f"model.onnx takes {score.width} features, its manifest names {len(manifest.inputs)}",
                          hint="train the model again")
    _check_golden(decode(files[GOLDEN_FILE], Golden, folder / GOLDEN_FILE), score)
    return Model(manifest, score)


def read_bundle(folder: Path, keys: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and all five files of a bundle whose signature and hashes hold; what is in them was not looked at yet.

    The manifest is not parsed before its signature holds, and must speak of the model and version that were asked for.
    """
    what = f"bundle {folder.name!r} of model {folder.parent.name!r}"
    data = read_plain(folder, MANIFEST_FILE)
    if SIGNATURE_FILE not in os.listdir(folder):
        raise BundleError(f"{what} is not signed", hint="train the model again: what is not signed is not loaded")
    signature = read_plain(folder, SIGNATURE_FILE)
    check_signature(keys, data, signature, what)
    manifest = decode(data, Manifest, folder / MANIFEST_FILE)
    if (manifest.model, manifest.version) != (folder.parent.name, folder.name):
        raise BundleError(f"{what} holds version {manifest.version!r} of model {manifest.model!r}",
                          hint="a bundle is never moved: fetch or train it again")
    return manifest, {MANIFEST_FILE: data, SIGNATURE_FILE: signature, **_verified_files(folder, manifest)}


def write_bundle(folder: Path, manifest: Manifest, onnx: bytes, golden: Golden, card: str, keys: Path) -> Manifest:
    """Write a signed bundle that is there in full or not at all; returns the manifest with the hashes of its files.

    Raises BundleError where ``folder`` exists, for a version is written once, and where ``keys`` has nothing to sign with.
    """
    if folder.exists():
        raise BundleError(f"bundle {folder.name!r} of model {manifest.model!r} exists",
                          hint="a version is written once; make a new one")
    files = {MODEL_FILE: onnx, GOLDEN_FILE: encode(golden), CARD_FILE: card.encode()}
    manifest = msgspec.structs.replace(manifest, files={name: sha256(data) for name, data in files.items()})
    told = encode(manifest)
    signed = {**files, MANIFEST_FILE: told, SIGNATURE_FILE: sign_manifest(keys, told)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        for name, data in signed.items():
            write_synced(draft / name, data)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise BundleError(f"bundle {folder} cannot be written: {error.strerror}",
                          hint="is there room, and may this user write?") from error
    return manifest


def champion(models: Path, name: str) -> Path | None:
    """The folder of the live bundle of model ``name``, None before the first promotion.

    Reads two small files (50 µs), so it may be asked every second. Raises BundleError where the pointer is damaged or
    the manifest is not the promoted one.
    """
    own = models / name
    if not (own / POINTER_FILE).exists():
        return None
    pointer = decode(read_plain(own, POINTER_FILE), Pointer, own / POINTER_FILE)
    if pointer.model != name:
        raise BundleError(f"{own / POINTER_FILE} names model {pointer.model!r}", hint="promote a model again")
    parts = PurePosixPath(pointer.bundle)
    if parts.is_absolute() or ".." in parts.parts:
        raise BundleError(f"{POINTER_FILE} points out of the models folder: {pointer.bundle!r}", hint="promote a model again")
    if parts.parts != (name, pointer.version):
        raise BundleError(f"{own / POINTER_FILE} names version {pointer.version!r} and points at {pointer.bundle!r}",
                          hint="promote a model again")
    folder = models / parts
    if sha256(read_plain(folder, MANIFEST_FILE)) != pointer.sha256:
        raise BundleError(f"the manifest of {name} version {pointer.version} is not the one that was promoted",
                          hint="promote a model again")
    return folder


def bundle_folder(models: Path, name: str, version: str) -> Path:
    """Where that version of model ``name`` lies. Raises BundleError where it is not there, or no version at all."""
    folder = models / name / version
    if version.startswith(".") or PurePosixPath(version).name != version or not folder.is_dir():
        raise BundleError(f"model {name} has no version {version!r} here", hint="`headrace models list` says which there are")
    return folder


def promote(models: Path, folder: Path) -> None:
    """Make the bundle in ``folder``, which lies below ``models``, the live one of its model."""
    data = read_plain(folder, MANIFEST_FILE)
    manifest = decode(data, Manifest, folder / MANIFEST_FILE)
    target = models / manifest.model / POINTER_FILE
    pointer = Pointer(manifest.model, manifest.version, folder.relative_to(models).as_posix(), sha256(data))
    draft = target.with_name(f".{POINTER_FILE}.{os.getpid()}")
    write_synced(draft, encode(pointer))
    draft.replace(target)


def _verified_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    if set(manifest.files) != {MODEL_FILE, GOLDEN_FILE, CARD_FILE}:
        raise BundleError(f"the manifest lists {', '.join(sorted(manifest.files)) or 'no file'}",
                          hint=f"a bundle of format 1 has {MODEL_FILE}, {GOLDEN_FILE} and {CARD_FILE}")
    if unlisted := sorted(set(os.listdir(folder)) - {*manifest.files, MANIFEST_FILE, SIGNATURE_FILE}):
        raise BundleError(f"the bundle has a file that its manifest does not list: {unlisted[0]!r}",
                          hint="a bundle is never edited")
    files = {name: read_plain(folder, name) for name in manifest.files}
    for name, data in files.items():
        if sha256(data) != manifest.files[name]:
            raise BundleError(f"{name} of bundle {folder.name!r} is damaged: its sha256 is {sha256(data)[:12]}..., "
                              f"the manifest says {manifest.files[name][:12]}...", hint="fetch or train the bundle again")
    return files


def _check_fit(manifest: Manifest, service: FeatureService) -> None:
    if manifest.format != 1:
        raise BundleError(f"the bundle has format {manifest.format}", hint="this headrace reads format 1")
    if not (0.0 <= manifest.threshold <= 1.0):
        raise BundleError(f"the threshold is {manifest.threshold}", hint="a probability lies between 0 and 1")
    if (manifest.service, manifest.service_hash) != (service.name, service.definition_hash):
        raise BundleError(f"the model was trained on features {manifest.service}@{manifest.service_hash}, "
                          f"served are {service.name}@{service.definition_hash}", hint="train it on today's features")
    if tuple(manifest.inputs) != service.feature_names:
        raise BundleError(f"the model's inputs are not the features of service {service.name!r} in their order",
                          hint="train it on today's features")
    if unknown := sorted(set(manifest.defaults) - set(manifest.inputs)):
        raise BundleError(f"the model has a default for {unknown[0]!r}, which is no input", hint="name a feature of the service")


def _check_golden(golden: Golden, score: Scorer) -> None:
    if not golden.inputs or {len(row) for row in golden.inputs} != {score.width} or len(golden.inputs) != len(golden.outputs):
        raise BundleError(f"{GOLDEN_FILE} has no rows that fit the model", hint="train the model again")
    rows = np.array(golden.inputs, dtype=np.float64)
    difference = float(np.max(np.abs(score(rows) - np.array(golden.outputs))))
    if not difference <= GOLDEN_TOLERANCE:
        raise BundleError(f"the model's outputs differ from its golden ones by {difference:.2g}",
                          hint="another ONNX Runtime, or a damaged bundle: train the model again")
