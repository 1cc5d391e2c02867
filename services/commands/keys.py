"""``headrace keys list | rotate | trust | revoke``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from services.commands import add_command, add_group, show

if TYPE_CHECKING:
    from schemas.settings import Settings
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "keys", help="the keys that models are signed with and trusted by", example="headrace keys list")
    add_command(actions, "list", list_keys, help="list the keys and how many bundles each signed", example="headrace keys list --json")
    rotate = add_command(actions, "rotate", rotate_key, help="sign with a new key from now on; what the old one signed stays trusted",
                         example="headrace keys rotate --dry-run")
    trust = add_command(actions, "trust", trust_key, help="trust what the holder of a public key signs",
                        example="headrace keys trust training-host.pub")
    trust.add_argument("file", metavar="FILE", type=Path, help="an Ed25519 public key in PEM")
    revoke = add_command(actions, "revoke", revoke_key, help="refuse what a key signed, from each process's next load on",
                         example="headrace keys revoke 3f0c2a9d51b7e864")
    revoke.add_argument("id", metavar="ID", help="as `headrace keys list` prints it")
    for parser in (rotate, trust, revoke):
        parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")


def list_keys(arguments: argparse.Namespace) -> None:
    from feature_repo.key_ring import known_keys

    settings = read()
    signed = signed_by(settings)
    facts = [{**asdict(key), "bundles": signed.get(key.id, [])} for key in known_keys(settings.key_folder)]
    facts += [{"id": key, "state": "unknown", "bundles": bundles} for key, bundles in signed.items() if key not in {f["id"] for f in facts}]
    lines = [f"{fact['id']}  {fact['state']:<8} {len(fact['bundles'])} bundles" for fact in facts]
    show(arguments, {"folder": str(settings.key_folder), "keys": facts}, "\n".join(lines or [f"no key in {settings.key_folder}"]))


def rotate_key(arguments: argparse.Namespace) -> None:
    from feature_repo.key_ring import known_keys, rotate

    folder = read().key_folder
    old = next((key.id for key in known_keys(folder) if key.state == "signing"), None)
    new, old = (None, old) if arguments.dry_run else rotate(folder)
    text = "a new key would sign" if new is None else f"key {new} signs from now on; give {folder}/{new}.pub to who loads models elsewhere"
    show(arguments, {"dry_run": arguments.dry_run, "new": new, "old": old, "folder": str(folder)},
         text + (f"; {old} stays trusted" if old is not None else ""))


def trust_key(arguments: argparse.Namespace) -> None:
    from feature_repo.key_ring import trust

    identity = trust(read().key_folder, arguments.file, dry_run=arguments.dry_run)
    show(arguments, {"dry_run": arguments.dry_run, "trusted": identity},
         f"{'would trust' if arguments.dry_run else 'trusted'} key {identity}; compare that with its owner's `headrace keys list`")


def revoke_key(arguments: argparse.Namespace) -> None:
    from feature_repo.key_ring import revoke

    settings = read()
    revoke(settings.key_folder, arguments.id, dry_run=arguments.dry_run)
    bundles = signed_by(settings).get(arguments.id, [])
    verb = "would revoke" if arguments.dry_run else "revoked"
    text = f"{verb} key {arguments.id}; refused at the next load: {', '.join(bundles) or 'nothing'}"
    show(arguments, {"dry_run": arguments.dry_run, "revoked": arguments.id, "refused": bundles}, text)


def read() -> Settings:
    from schemas.settings import read_settings

    return read_settings()


def signed_by(settings: Settings) -> dict[str, list[str]]:
    """Key id -> the bundles that name it, the pointed-at champion marked; whether a signature holds is not asked."""
    from feature_repo.bundle import champion
    from feature_repo.manifest import SIGNATURE_FILE, read_plain
    from feature_repo.signing import read_signature
    from schemas.errors import BundleError

    found: dict[str, list[str]] = {}
    for path in sorted(settings.models.glob(f"*/*/{SIGNATURE_FILE}")):
        folder = path.parent
        try:
            key, live = read_signature(read_plain(folder, SIGNATURE_FILE))[0], champion(settings.models, folder.parent.name) == folder
        except BundleError:  # no loader takes it either
            continue
        if not folder.name.startswith("."):
            found.setdefault(key, []).append(f"{folder.parent.name}/{folder.name}{' (champion)' if live else ''}")
    return found
