"""``headrace api-keys``: who may use the HTTP API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from services.commands import add_command, show
from services.words import positive

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "api-keys", run, help="list, make and revoke keys of the HTTP API",
                         example="headrace api-keys add --scopes score --rate 500 --out scorer.key")
    parser.add_argument("action", nargs="?", choices=("list", "add", "revoke"), default="list")
    parser.add_argument("id", nargs="?", help="with revoke: which key")
    parser.add_argument("--scopes", default="score", help="with add: some of score,ingest,admin (default: %(default)s)")
    parser.add_argument("--rate", type=positive, default=1000.0, metavar="N", help="with add: events a second (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with add: where the key is written; it is shown nowhere")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")


def run(arguments: argparse.Namespace) -> None:
    from schemas.errors import SettingsError
    from schemas.settings import read_settings
    from services.api.keys import SCOPES, add_key, key_file, read_keys, revoke_key, save_token

    folder = read_settings().api
    keys = read_keys(key_file(folder))
    if arguments.action == "add":
        scopes = arguments.scopes.split(",")
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise SettingsError(f"there is no scope {unknown[0]!r}", hint=f"some of {','.join(SCOPES)}")
        if arguments.out is None or arguments.out.exists():
            raise SettingsError("a key is written to a new file", hint="--out FILE names one that is not there")
        if arguments.dry_run:
            return show(arguments, {"out": str(arguments.out), "scopes": scopes}, f"would write a key for {', '.join(scopes)}")
        try:
            arguments.out.touch(mode=0o600, exist_ok=False)  # before there is a key: nobody else is told its text
        except OSError as error:
            raise SettingsError(f"{arguments.out} cannot be written: {error.strerror}", hint="--out FILE names a new file") from error
        key, token = add_key(folder, scopes, arguments.rate)
        save_token(arguments.out, token)
        return show(arguments, {"id": key.id, "scopes": scopes, "out": str(arguments.out)}, f"key {key.id} is in {arguments.out}")
    if arguments.action == "list" and arguments.id is not None:
        raise SettingsError(f"{arguments.id!r} belongs to revoke", hint=f"headrace api-keys revoke {arguments.id}")
    if arguments.action == "revoke":
        if arguments.id not in {key.id for key in keys}:
            raise SettingsError(f"there is no key {arguments.id!r}", hint="`headrace api-keys` lists them")
        if not arguments.dry_run:
            revoke_key(folder, arguments.id)
        return show(arguments, {"revoked": arguments.id}, f"key {arguments.id} {'would stop' if arguments.dry_run else 'stops'} within 1 s")
    lines = [f"{key.id}  {','.join(key.scopes):<20} {key.rate_per_s:>10,.0f}/s  {key.created}" for key in keys]
    show(arguments, [{k: v for k, v in msgspec.to_builtins(key).items() if k != "sha256"} for key in keys],
         "\n".join(lines) or "no key yet: `headrace up` makes the first one")
