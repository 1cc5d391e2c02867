"""``headrace apply``"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from schemas.niceness import stand_back
from services.commands import add_command, show
from services.commands.backfill import BEHIND_SCORING
from services.commands.plan import CHANGES
from services.commands.plan import text as plan_text
from services.words import iso, not_negative

if TYPE_CHECKING:
    from services.applying import Applied
    from services.commands import Subparsers

DAY_MS = 86_400_000


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "apply", run, example="headrace apply --dry-run",
                         help="build changed versions of views beside the live ones, compare them, and switch")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rollback", action="store_true", help="go back to what was live before the last switch")
    what.add_argument("--collect", action="store_true", help="remove the keys of versions whose grace is over")
    parser.add_argument("--grace", type=not_negative, default=7.0, metavar="DAYS",
                        help="how long, by the stream's time, the versions before stay fed (default: 7)")
    parser.add_argument("--anyway", action="store_true", help="switch in spite of missing records, differences or models that do not fit")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")


def run(arguments: argparse.Namespace) -> int:
    from feature_repo.versions import exclusive
    from schemas.settings import read_settings
    from services.applying import apply, roll_back
    from services.collecting import collect
    from services.planning import make_plan
    from services.runtime.endpoints import endpoints, redis_endpoint

    settings, grace_ms = read_settings(), round(arguments.grace * DAY_MS)
    if arguments.rollback:
        with exclusive(settings):
            facts = roll_back(settings, redis_endpoint(settings), grace_ms=grace_ms, dry_run=arguments.dry_run)
        verb = "would be" if arguments.dry_run else "are"
        show(arguments, facts, f"{', '.join(facts['live'])} {verb} live; {', '.join(facts['retired']) or 'nothing'} kept "
                               f"until {iso(facts['retired_until_ms'])}")
        return 0
    if arguments.collect:
        with exclusive(settings):
            facts = collect(settings, redis_endpoint(settings), dry_run=arguments.dry_run, tell=_tell)
        show(arguments, facts, collected_text(facts))
        return 0
    if arguments.dry_run:
        plan = make_plan(settings, redis_endpoint(settings))
        show(arguments, plan.facts(), plan_text(plan))
        return CHANGES if plan.anything else 0
    stand_back(BEHIND_SCORING)
    with exclusive(settings):
        done = apply(settings, endpoints(settings), grace_ms=grace_ms, anyway=arguments.anyway, tell=_tell)
    show(arguments, done.facts(), text(done))
    return 0 if done.switched or not done.refused else CHANGES


def collected_text(facts: dict[str, Any]) -> str:
    if facts["dry_run"]:
        return "\n".join(f"{name}: about {size['keys']:,} keys, {size['memory_bytes']:,} bytes" for name, size in facts["sizes"].items()) \
            or "no version's grace is over"
    return "\n".join(f"{one['version']}: removed {one['keys']:,} keys, {one['value_bytes']:,} bytes" for one in facts["removed"]) \
        or "nothing to remove"


def text(done: Applied) -> str:
    lines = [f"{name} is recorded as it is" for name in done.adopted]
    lines += [f"{name} is no longer built, `headrace apply --collect` removes what there is of it" for name in done.given_up]
    for built in done.built:
        fill = built.backfill
        lines.append(f"{built.version}: {fill.added:,} records added to {fill.entities_added_to:,} entities in {fill.seconds:.1f} s")
        lines += [f"  window of {window / DAY_MS:g} d: {fraction:.0%} warm" for window, fraction in built.warm_fraction.items()]
    for one in done.compared:
        lines.append(f"{one.old} and {one.new}: {one.different:,} of {one.values:,} values differ ({len(one.features)} features that mean "
                     f"the same, {one.events:,} events; {one.refused:,} could not be compared)")
        lines += [f"  {event}: {feature} {old!r} -> {new!r}" for event, feature, old, new in one.examples]
    lines += [f"refused: {reason}" for reason in done.refused]
    lines += [f"promoted {model} {bundle}" for model, bundle in done.promoted.items()]
    if done.switched:
        lines.append(f"switched, epoch {done.epoch}; the versions before are kept until {iso(done.retired_until_ms or 0)}, "
                     "`headrace apply --rollback` goes back to them")
    elif not done.built and not done.refused:
        lines.append(f"nothing to switch; epoch {done.epoch}")
    return "\n".join(lines)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
