"""``headrace release champion|canary|advance|rollback|pause|resume|shadow``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from services.commands import add_command, add_group, show
from services.commands.live import line
from services.words import duration_ms, stated

if TYPE_CHECKING:
    from schemas.releases import Release
    from schemas.settings import Settings
    from services.commands import Subparsers
    from services.runtime.endpoints import Endpoints


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "release", help="make a version live, at once or by a canary, go back, hold automatic releases",
                        example="headrace release rollback --why 'alerts doubled'")
    parser = _action(actions, "champion", champion, "headrace release champion fraud@3 --why 'night shift is fooled'",
                     "make a version live, once it is known to load")
    parser.add_argument("version", metavar="MODEL@VERSION")
    _canary(actions)
    for name, run, text in (("advance", advance, "the next step of the canary; after the last one its version is the champion"),
                            ("rollback", rollback, "end the canary, or go back to what was live before; again: one further"),
                            ("pause", pause, "from now on only people release: what a retrain makes is not, a canary stands still"),
                            ("resume", resume, "let retrains release again, and the canary go on")):
        parser = _action(actions, name, run, f"headrace release {name} --why 'alerts doubled'", text)
        parser.add_argument("--model", help="default: the first")
    parser = _action(actions, "shadow", shadow, "headrace release shadow fraud 4 5 --why 'both look good'",
                     "say which versions score along without deciding")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("versions", metavar="VERSION", nargs="*")
    parser.add_argument("--none", action="store_true", help="none any more")


def _canary(actions: Any) -> None:
    parser = _action(actions, "canary", canary, "headrace release canary fraud@3 --steps 1,5,25,50,100 --why 'a week of new fraud'",
                     "give a version a share of all entities, more step by step, watched by guardrails")
    parser.add_argument("version", metavar="MODEL@VERSION")
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--steps", type=_steps, metavar="PERCENT,...", help="default: 1,5,25,50,100; 100 alone: blue/green, one switch")
    shares.add_argument("--hold-at", type=_steps, metavar="PERCENT", help="an A/B test: held at this share until it is decided by --rule")
    parser.add_argument("--hold", type=duration_ms, metavar="TIME", default="1d", help="how long each step lasts at least, stream time")
    parser.add_argument("--deadline", type=duration_ms, metavar="TIME", default="7d", help="of a step: without enough evidence by then the "
                        "canary stops and asks")
    parser.add_argument("--alpha", type=_probability, default=0.05, help="at most so probably is a version taken back that is no worse")
    parser.add_argument("--rule", choices=("guardrails", "losses", "person"), help="what decides: guardrails step by step (default); "
                        "losses: which version has fewer wrong decisions (default of --hold-at); person: guardrails only take back")


def _action(actions: Any, name: str, run: Any, example: str, text: str) -> argparse.ArgumentParser:
    parser = add_command(actions, name, run, example=example, help=text)
    parser.add_argument("--why", required=True, type=stated, help="goes on the record")
    parser.add_argument("--dry-run", action="store_true", help="say what would be released, change nothing")
    return parser


def champion(arguments: argparse.Namespace) -> None:
    model, version = _named(arguments.version)
    _act(arguments, "champion", model, version=version)


def canary(arguments: argparse.Namespace) -> None:
    from services.release_machine import STEPS

    model, version = _named(arguments.version)
    rule = arguments.rule or ("losses" if arguments.hold_at else "guardrails")
    _act(arguments, "canary", model, version=version, steps=arguments.hold_at or arguments.steps or STEPS, hold_ms=arguments.hold,
         deadline_ms=arguments.deadline, alpha=arguments.alpha, rule=rule)


def advance(arguments: argparse.Namespace) -> None:
    _act(arguments, "advance", arguments.model)


def rollback(arguments: argparse.Namespace) -> None:
    _act(arguments, "rollback", arguments.model)


def pause(arguments: argparse.Namespace) -> None:
    _act(arguments, "pause", arguments.model)


def resume(arguments: argparse.Namespace) -> None:
    _act(arguments, "resume", arguments.model)


def shadow(arguments: argparse.Namespace) -> None:
    from schemas.errors import SettingsError

    if bool(arguments.versions) == arguments.none:
        raise SettingsError("name versions, or --none", hint="headrace release shadow fraud 4 5 --why '...'")
    _act(arguments, "shadow", arguments.model, shadows=tuple(arguments.versions))


def _act(arguments: argparse.Namespace, action: Any, model: str | None, **told: Any) -> None:
    from feature_repo.use_cases import find_model
    from schemas.settings import read_settings
    from services.releasing import act_by_hand
    from services.retrain_hold import wait_served
    from services.runtime.endpoints import endpoints

    settings: Settings = read_settings()
    at: Endpoints = endpoints(settings)
    name = find_model(settings, model).name
    release = act_by_hand(settings, at, action, name, arguments.why, dry_run=arguments.dry_run, **told)
    version = told.get("version", release.champion)
    if arguments.dry_run:
        facts = {"model": name, "version": version, "would_release": msgspec.to_builtins(release), "released": None}
        return show(arguments, facts, f"would be: {line(release)}")
    served_s = wait_served(settings, at, name)
    facts = {"model": name, "version": version, "released": msgspec.to_builtins(release), "served_after_s": round(served_s, 2)}
    show(arguments, facts, f"{line(release)}\nserved on every partition {served_s:.1f} s after{_state(release)}")


def _state(release: Release) -> str:
    return "; automatic releases are paused" if release.paused else ""


def _named(text: str) -> tuple[str, str]:
    from schemas.errors import SettingsError

    model, _, version = text.partition("@")
    if not model or not version:
        raise SettingsError(f"{text!r} names no version", hint="write fraud@3; `headrace models list` says which there are")
    return model, version


def _steps(text: str) -> tuple[int, ...]:
    """Percent as shares of 10,000."""
    from services.release_machine import Refusal, whole_steps

    try:
        shares = tuple(round(float(each) * 100) for each in text.split(","))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no shares; write 1,5,25,50,100") from error
    if isinstance(refused := whole_steps(shares), Refusal):
        raise argparse.ArgumentTypeError(f"{refused.fact}, {refused.hint}")
    return shares


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability; write 0.05")
    return value
