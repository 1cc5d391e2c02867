"""``headrace plan``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers
    from services.planning import Plan

__all__ = ["CHANGES", "register"]

CHANGES = 8
"""Exit code of ``plan`` where there is something to apply, and of ``apply`` where it was not switched."""


def register(subparsers: Subparsers) -> None:
    add_command(subparsers, "plan", run, example="headrace plan --json",
                help="show what of the declared features is not live yet (exit code 8 where something is not)")


def run(arguments: argparse.Namespace) -> int:
    from schemas.settings import read_settings
    from services.planning import make_plan
    from services.runtime.endpoints import redis_endpoint

    settings = read_settings()
    plan = make_plan(settings, redis_endpoint(settings))
    show(arguments, plan.facts(), text(plan))
    return CHANGES if plan.anything or any(build.too_large for build in plan.builds) else 0


def text(plan: Plan) -> str:
    lines = [f"{name}: was never applied; `headrace apply` records it as it is" for name in plan.adopt]
    for service in plan.services:
        lines.append(f"{service.service}@{service.old} -> {service.service}@{service.new}")
        lines += [f"  + {name} (request-time)" for name in service.request_added]
        lines += [f"  - {name} (request-time)" for name in service.request_removed]
        for view in service.views:
            lines.append(f"  {view.old or 'no version'} -> {view.new or 'no version'}")
            lines += [f"    + {name}" for name in view.added] + [f"    - {name}" for name in view.removed]
            lines += [f"    ~ {said}" for said in (*view.changed, *view.settings)]
    for build in plan.builds:
        size = "size not known" if build.keys is None else f"about {build.keys:,} keys and {build.memory_bytes:,} bytes"
        lines.append(f"to build: {build.version}, {size}" + (f", beside {build.beside}" if build.beside else ""))
        if build.too_large:
            lines.append(f"  refused: {build.raw_records:,.0f} raw records of one entity at its peak")
    lines += [f"model {model.model} {model.champion} does not fit; " + (f"{model.ready} does and is promoted with the switch" if model.ready
              else "train one first: headrace train --declared") for model in plan.models]
    lines += [f"no longer to be built: {name}" for name in plan.give_up]
    lines += [f"to be removed: {name}, its grace is over" for name in plan.collect]
    return "\n".join(lines) or f"nothing to do; epoch {plan.epoch}"
