"""API keys: who may do what, how often. The file holds hashes only; a key itself is shown once, by writing it to a file of its owner.

    <home>/api/keys.json   id, sha256 of the key, scopes, requests a second
    <home>/api/admin.key   the first key, made at the first start

A key is 32 random bytes, so a plain hash of it tells nothing; comparing takes the same time whatever was sent.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from feature_repo.manifest import write_synced
from schemas.errors import SettingsError

__all__ = ["SCOPES", "Key", "KeyRing", "Scope", "add_key", "ensure_key", "key_file", "read_keys", "revoke_key",
           "save_token"]

log = logging.getLogger("api")
Scope = Literal["score", "ingest", "admin"]
SCOPES: tuple[Scope, ...] = ("score", "ingest", "admin")
RATE_PER_S = 20_000.0
LOOK_EVERY_S = 1.0
NOBODY = hashlib.sha256(b"").hexdigest()


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``rate_per_s``: how many events a second it may send, for one second's worth at once."""

    id: str
    sha256: str
    scopes: tuple[Scope, ...]
    rate_per_s: Annotated[float, msgspec.Meta(gt=0)] = RATE_PER_S
    created: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class KeyRing:
    """The keys that count now: the file is looked at once a second, so a new key works, and a revoked one stops, without a restart."""

    def __init__(self, file: Path) -> None:
        self._file, self._next = file, 0.0
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._left: dict[str, tuple[float, float]] = {}

    def find(self, token: bytes) -> Key | None:
        """The key that ``token`` is; None where it is none."""
        self._look()
        text = token.decode("latin-1")
        key = self._keys.get(text[3:11])
        same = hmac.compare_digest(hashlib.sha256(token).hexdigest(), key.sha256 if key is not None else NOBODY)
        return key if same else None

    def take(self, key: Key, events: int = 1) -> float:
        """Seconds until ``key`` may send so many events; 0.0: they are taken from what it has left, which may go below nothing."""
        now = time.monotonic()
        most = max(1.0, key.rate_per_s)
        left, at = self._left.get(key.id, (most, now))
        left = min(most, left + (now - at) * key.rate_per_s)
        if left < 1:
            self._left[key.id] = left, now
            return (1 - left) / key.rate_per_s
        self._left[key.id] = left - events, now
        return 0.0

    def _look(self) -> None:
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + LOOK_EVERY_S
        try:
            told = self._file.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        if (stamp := (told.st_mtime_ns, told.st_ino)) == self._stamp:
            return
        try:
            self._keys, self._stamp = {key.id: key for key in read_keys(self._file)}, stamp
        except SettingsError as error:
            log.error("keys refused, those before them stay: %s", error)


def key_file(folder: Path) -> Path:
    return folder / "keys.json"


def read_keys(file: Path) -> list[Key]:
    """Raises SettingsError where the file is damaged."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Key])
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{file} is no file of keys: {error}",
                            hint="move it away: the next start of the API makes one, with a new admin.key") from error


def add_key(folder: Path, scopes: Iterable[Scope], rate_per_s: float = RATE_PER_S) -> tuple[Key, str]:
    """A new key, and its text, which is kept nowhere."""
    identity = secrets.token_hex(4)
    token = f"hr_{identity}_{secrets.token_urlsafe(32)}"
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    key = Key(identity, hashlib.sha256(token.encode()).hexdigest(), tuple(scopes), rate_per_s, made)
    with _held(folder):
        _write(folder, [*read_keys(key_file(folder)), key])
    return key, token


def revoke_key(folder: Path, identity: str) -> None:
    """Raises SettingsError where there is no such key."""
    with _held(folder):
        keys = read_keys(key_file(folder))
        if identity not in {key.id for key in keys}:
            raise SettingsError(f"there is no key {identity!r}", hint="`headrace api-keys` lists them")
        _write(folder, [key for key in keys if key.id != identity])


def ensure_key(folder: Path) -> Path:
    """Where the first key lies, which is made where there is no file of keys yet. Raises SettingsError where that is damaged."""
    first = folder / "admin.key"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(folder, "first"):
        if not key_file(folder).exists():
            _, token = add_key(folder, SCOPES)
            save_token(first, token)
        read_keys(key_file(folder))
    return first


def save_token(file: Path, token: str) -> None:
    """For its owner's eyes only."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as to:
        to.write(token + "\n")


@contextmanager
def _held(folder: Path, name: str = "keys") -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(folder: Path, keys: list[Key]) -> None:
    file = key_file(folder)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    write_synced(draft, msgspec.json.format(msgspec.json.encode(keys), indent=1))
    draft.chmod(0o600)
    draft.replace(file)
