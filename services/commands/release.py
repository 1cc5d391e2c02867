"""``headrace release champion|rollback|pause|resume``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from services.commands import add_command, show
from services.commands.live import line

if TYPE_CHECKING:
    from schemas.releases import Release
    from schemas.settings import Settings
    from services.commands import Subparsers
    from services.runtime.endpoints import Endpoints


def register(subparsers: Subparsers) -> None:
    group = subparsers.add_parser("release", help="make a version of a model live, go back, hold automatic releases")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    parser = _action(actions, "champion", champion, "headrace release champion fraud@3 --why 'night shift is fooled'",
                     "make a version live, once it is known to load")
    parser.add_argument("version", metavar="MODEL@VERSION")
    for name, run, text in (("rollback", rollback, "go back to what was live before; again: one further"),
                            ("pause", pause, "from now on only people release: what a retrain makes is rejected"),
                            ("resume", resume, "let retrains release again")):
        parser = _action(actions, name, run, f"headrace release {name} --why 'alerts doubled'", text)
        parser.add_argument("--model", help="default: the first")


def _action(actions: Any, name: str, run: Any, example: str, text: str) -> argparse.ArgumentParser:
    parser = add_command(actions, name, run, example=example, help=text)
    parser.add_argument("--why", required=True, help="goes on the record")
    parser.add_argument("--dry-run", action="store_true", help="say what would be released, change nothing")
    return parser


def champion(arguments: argparse.Namespace) -> None:
    from schemas.errors import SettingsError

    model, _, version = arguments.version.partition("@")
    if not model or not version:
        raise SettingsError(f"{arguments.version!r} names no version", hint="write fraud@3; `headrace models list` says which there are")
    _release(arguments, model, lambda live, before: version)


def rollback(arguments: argparse.Namespace) -> None:
    def target(live: Release, before: str | None) -> str:
        from schemas.errors import JobError

        if before is None:
            raise JobError(f"nothing was live of {live.model} before version {live.champion}", hint="`headrace live --history`")
        return before

    _release(arguments, arguments.model, target, rollback=True)


def pause(arguments: argparse.Namespace) -> None:
    _release(arguments, arguments.model, lambda live, before: live.champion, paused=True)


def resume(arguments: argparse.Namespace) -> None:
    _release(arguments, arguments.model, lambda live, before: live.champion, paused=False)


def _release(arguments: argparse.Namespace, model: str | None, target: Any, *, rollback: bool = False, paused: bool | None = None) -> None:
    from feature_repo.use_cases import find_model
    from schemas.errors import JobError
    from schemas.settings import read_settings
    from services.releasing import read_chain
    from services.runtime.endpoints import endpoints

    settings: Settings = read_settings()
    at: Endpoints = endpoints(settings)
    name = find_model(settings, model).name
    chain = read_chain(at.kafka)
    live = chain.current(name)
    if live is None and arguments.run is not champion:
        raise JobError(f"nothing was released of {name} yet", hint="`headrace train` makes a first model, `headrace release champion` any")
    version = target(live, chain.before(name))
    if arguments.dry_run:
        facts = {"model": name, "version": version, "live": None if live is None else live.champion, "released": None}
        return show(arguments, facts, f"would make {name} version {version} live; {facts['live'] or 'nothing'} is")
    _carry_out(arguments, settings, at, name, version, rollback, paused)


def _carry_out(arguments: argparse.Namespace, settings: Settings, at: Endpoints, model: str, version: str, rollback: bool,
               paused: bool | None) -> None:
    from services.releasing import release_by_hand
    from services.retrain_hold import wait_served

    release = release_by_hand(settings, at, model, version, arguments.why, rollback=rollback, paused=paused)
    served_s = wait_served(settings, at, model)
    facts = {"model": model, "version": version, "released": msgspec.to_builtins(release), "served_after_s": round(served_s, 2)}
    paused_text = "; automatic releases are paused" if release.paused else ""
    show(arguments, facts, f"{line(release)}\nserved on every partition {served_s:.1f} s after{paused_text}")
