"""``headrace live``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from services.commands import add_command, show
from services.words import iso, time_ms

if TYPE_CHECKING:
    from schemas.releases import Release
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "live", run, help="say which version of a model is, or was, in production",
                         example="headrace live --at 2018-08-14T12:00:00")
    parser.add_argument("--model", help="default: the first")
    parser.add_argument("--at", type=time_ms, metavar="TIME", help="by stream time, UTC (ISO 8601, or ms since 1970); default: the newest")
    parser.add_argument("--history", action="store_true", help="every release that counted, oldest first")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 where nothing was live."""
    from feature_repo.use_cases import find_model
    from schemas.settings import read_settings
    from services.releasing import read_chain
    from services.runtime.endpoints import kafka_endpoint

    settings = read_settings()
    model = find_model(settings, arguments.model).name
    chain = read_chain(kafka_endpoint(settings))
    live = chain.current(model) if arguments.at is None else chain.live_at(model, arguments.at)
    facts = {"model": model, "live": None if live is None else msgspec.to_builtins(live)}
    by = "" if arguments.at is None else f" by {iso(arguments.at)}"
    lines = [line(live) if live is not None else f"nothing was released of {model}{by}"]
    if arguments.history:
        facts["history"] = [msgspec.to_builtins(release) for release in chain.history(model)]
        lines = [line(release) for release in chain.history(model)] or lines
    show(arguments, facts, "\n".join(lines))
    return 0 if live is not None else 1


def line(release: Release) -> str:
    canary, rest = release.canary, ""
    if canary is not None:
        rest = f", version {canary.version} in canary at {canary.share / 100:g} % (step {canary.step + 1} of {len(canary.steps)})"
    if release.shadows:
        rest += f", in shadow {', '.join(release.shadows)}"
    return (f"{release.model} version {release.champion}, epoch {release.epoch}{rest}, since {iso(release.at_ms)}: {release.why} "
            f"({'' if release.action == 'champion' else release.action + ' '}by {release.by}, release {release.release_id})")
