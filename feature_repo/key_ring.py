"""The keys that bundles are signed and trusted by: a folder (setting HEADRACE_KEYS) that only its owner may write.

    <keys>/signing.key         the private key that new bundles are signed with, for its owner's eyes only
    <keys>/<id>.pub            a trusted public key; the old ones stay when the signing key is rotated
    <keys>/revoked/<id>.pub    a public key whose bundles are refused from now on

A folder without any key gets its first pair where a bundle is to be signed. A folder that has public keys and no signing key
belongs to a machine that may load and not sign, and stays so.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_repo.signing import holds, key_id, new_key, public_of, read_signature, sign
from schemas.errors import BundleError

__all__ = ["Key", "check_signature", "ensure_key", "known_keys", "revoke", "rotate", "sign_manifest", "trust", "unsafe_files"]

SIGNING, REVOKED = "signing.key", "revoked"
MAX_BYTES = 4096
OTHERS_WRITE, OTHERS_ANY = 0o022, 0o077


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    state: Literal["signing", "trusted", "revoked"]


def check_signature(keys: Path, manifest: bytes, line: bytes, what: str) -> str:
    """The id of the trusted key that signed ``manifest``, by its signature file ``line``; ``what`` names the bundle.

    Raises BundleError for a signature that does not hold, and for a key that is not trusted, revoked, or that others may write.
    """
    identity, signature = read_signature(line)
    if identity in _ids(keys / REVOKED):
        raise BundleError(f"{what} is signed by key {identity}, which was revoked",
                          hint="release a version that another key signed, or train the model again")
    if identity not in _ids(keys):
        raise BundleError(f"{what} is signed by key {identity}, which is not trusted here ({keys})",
                          hint="`headrace keys trust FILE` with the public key, if it came from whom you think")
    if fault := _fault(keys.stat(), OTHERS_WRITE):
        raise BundleError(f"{keys} {fault}", hint=f"chmod 700 {keys}, then look at `headrace keys list`")
    public = _read(keys / f"{identity}.pub", OTHERS_WRITE)
    if key_id(public) != identity:
        raise BundleError(f"{keys}/{identity}.pub holds another key, {key_id(public)}",
                          hint="remove it; `headrace keys trust` names files itself")
    if not holds(public, manifest, signature):
        raise BundleError(f"{what} has a manifest that key {identity} did not sign", hint="it was changed: fetch or train the bundle again")
    return identity


def sign_manifest(keys: Path, manifest: bytes) -> bytes:
    """The signature file of ``manifest``; makes the first key pair where there is no key. Raises BundleError where none may be made."""
    ensure_key(keys)
    if all(key.state != "signing" for key in known_keys(keys)):
        raise BundleError(f"{keys} has no {SIGNING}, so nothing can be signed here",
                          hint="train where the key is; or `headrace keys rotate` makes one, and others have to trust it")
    return sign(_read(keys / SIGNING, OTHERS_ANY), manifest)


def ensure_key(keys: Path) -> str | None:
    """Make the first key pair where there is no key at all; its id if it was made."""
    if _any(keys):
        return None
    with _exclusive(keys):
        return None if _any(keys) else _new_pair(keys)


def known_keys(keys: Path) -> list[Key]:
    """The signing key first, revoked ones last. Raises BundleError where the folder or the signing key cannot be read."""
    signing = key_id(public_of(_read(keys / SIGNING, OTHERS_ANY))) if SIGNING in _names(keys) else None
    trusted, revoked = _ids(keys), _ids(keys / REVOKED)
    found = [Key(signing, "signing")] if signing is not None else []
    found += [Key(name, "trusted") for name in sorted(trusted - revoked - {signing})]
    return found + [Key(name, "revoked") for name in sorted(revoked)]


def rotate(keys: Path) -> tuple[str, str | None]:
    """(new, old) id: a new pair signs from now on, the old private key is gone, its public key stays trusted."""
    with _exclusive(keys):
        old = next((key.id for key in known_keys(keys) if key.state == "signing"), None)
        return _new_pair(keys), old


def trust(keys: Path, file: Path, *, dry_run: bool = False) -> str:
    """The id of the public key in ``file``, trusted from now on. Raises BundleError where it was revoked, or is none."""
    try:
        with file.open("rb") as opened:
            public = opened.read(MAX_BYTES)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", hint="name a file with a public key in PEM") from error
    identity = key_id(public)
    if identity in _ids(keys / REVOKED):
        raise BundleError(f"key {identity} was revoked", hint=f"for good; who still means it removes it from {keys / REVOKED}")
    if not dry_run:
        with _exclusive(keys):
            _write(keys / f"{identity}.pub", public, 0o644)
    return identity


def revoke(keys: Path, identity: str, *, dry_run: bool = False) -> None:
    """Refuse what that key signed, from the next load on. Raises BundleError where it is not known, or the one that signs."""
    states = {key.id: key.state for key in known_keys(keys)}
    if identity not in states:
        raise BundleError(f"there is no key {identity!r} in {keys}", hint="`headrace keys list`")
    if states[identity] == "signing":
        raise BundleError(f"key {identity} signs new bundles", hint="`headrace keys rotate` first, then revoke it")
    if states[identity] == "trusted" and not dry_run:
        with _exclusive(keys):
            (keys / REVOKED).mkdir(mode=0o700, exist_ok=True)
            (keys / f"{identity}.pub").replace(keys / REVOKED / f"{identity}.pub")


def unsafe_files(keys: Path) -> Iterator[tuple[Path, str]]:
    """(file, what is wrong) of the folder and every key in it that others may write, or, of the private one, read."""
    for path in (keys, *sorted(keys.glob("*.pub")), *sorted(keys.glob(f"{REVOKED}/*")), keys / REVOKED, keys / SIGNING):
        try:
            fault = _fault(path.stat(), OTHERS_ANY if path.name == SIGNING else OTHERS_WRITE)
        except OSError:  # not there; and what cannot be looked at, nobody can use
            continue
        if fault:
            yield path, fault


def _new_pair(keys: Path) -> str:
    """The public key is there before the private one: at no moment is signed what is not trusted."""
    private = new_key()
    public = public_of(private)
    _write(keys / f"{key_id(public)}.pub", public, 0o644)
    _write(keys / SIGNING, private, 0o600)
    return key_id(public)


def _any(keys: Path) -> bool:
    return SIGNING in _names(keys) or bool(_ids(keys) | _ids(keys / REVOKED))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}", hint="whose is it? see HEADRACE_KEYS") from error


def _ids(folder: Path) -> set[str]:
    return {name.removesuffix(".pub") for name in _names(folder) if name.endswith(".pub")}


def _fault(status: os.stat_result, forbidden: int) -> str:
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    if status.st_mode & forbidden:
        return "can be written by other users" if status.st_mode & OTHERS_WRITE else "can be read by other users"
    return ""


def _read(path: Path, forbidden: int) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is not a plain file", hint="`headrace keys list`")
            if fault := _fault(status, forbidden):
                raise BundleError(f"{path} {fault}", hint=f"chmod {'600' if forbidden == OTHERS_ANY else '644'} {path}; "
                                  "if somebody may have used that, `headrace keys rotate` and revoke it")
            return file.read(MAX_BYTES)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint="whose is it? see HEADRACE_KEYS") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def _exclusive(keys: Path) -> Iterator[None]:
    """One process at a time changes the folder. Raises BundleError where it cannot be written."""
    try:
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(keys / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BundleError(f"{keys} cannot be written: {error.strerror}", hint="set HEADRACE_KEYS to a folder of yours") from error
