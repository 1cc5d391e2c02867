"""What a bundle says about itself, and how its files are read and written: bounded, no link followed, on disk when it returns."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from schemas.errors import BundleError

__all__ = ["CARD_FILE", "GOLDEN_FILE", "MANIFEST_FILE", "MODEL_FILE", "POINTER_FILE", "SIGNATURE_FILE", "Golden", "Manifest",
           "decode", "encode", "read_plain", "sha256", "write_synced"]

MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE, CARD_FILE = "manifest.json", "model.onnx", "golden.json", "model_card.md"
SIGNATURE_FILE = "manifest.sig"
POINTER_FILE = "champion.json"
MAX_BYTES = {MANIFEST_FILE: 1 << 20, SIGNATURE_FILE: 256,
             MODEL_FILE: 64 << 20, GOLDEN_FILE: 1 << 20, CARD_FILE: 1 << 20, POINTER_FILE: 4096}
Struct = TypeVar("Struct", bound=msgspec.Struct)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is known about a model. ``files`` is filled by ``write_bundle``; hashes are sha256 in hex.

    ``train`` and ``test`` are first and last day, inclusive, UTC. ``data`` says which training table this came from (version,
    offsets), ``metrics`` hold one entry for the model and one for each baseline, on the same test rows.
    """

    model: str
    version: str
    service: str
    service_hash: str
    views: dict[str, str]
    inputs: list[str]
    threshold: float
    defaults: dict[str, float]
    label: str
    label_delay_ms: int
    train: tuple[str, str]
    test: tuple[str, str]
    seed: int
    parameters: dict[str, float | int | str | None]
    metrics: dict[str, dict[str, float]]
    data: dict[str, Any]
    frameworks: dict[str, str]
    git_commit: str | None = None
    files: dict[str, str] = {}
    format: int = 1


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the vector as scorers see it (null: no value), and the probability the model gave when it was made."""

    inputs: list[list[float | None]]
    outputs: list[float]


def read_plain(folder: Path, name: str) -> bytes:
    """The bytes of a regular file of bounded size; no link is followed, neither the file nor its folder."""
    path = folder / name
    try:
        if folder.is_symlink():
            raise BundleError(f"{folder} is a symbolic link", hint="a bundle is a plain folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is not a plain file", hint="a bundle has plain files only")
            if status.st_size > MAX_BYTES[name]:
                raise BundleError(f"{path} has {status.st_size:,} bytes", hint=f"at most {MAX_BYTES[name]:,} are read")
            return file.read(MAX_BYTES[name])
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}",
                          hint="links are not followed; train or copy the bundle again") from error


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1)


def decode(data: bytes, kind: type[Struct], path: Path) -> Struct:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BundleError(f"{path} is not a {kind.__name__.lower()}: {error}", hint="train or copy the bundle again") from error


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
