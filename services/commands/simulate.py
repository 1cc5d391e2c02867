"""``headrace simulate``: a seeded card world, published in lockstep or written to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import SettingsError
from services.commands import add_command, show
from services.words import whole

if TYPE_CHECKING:
    from services.commands import Subparsers
    from services.world import World

__all__ = ["register"]

FIRST_DAY = "2025-01-06"


def register(subparsers: Subparsers) -> None:
    from services.replaying import add_lockstep_options
    from services.words import time_ms

    parser = add_command(subparsers, "simulate", run, example="headrace simulate --days 60 --seed 7",
                         help="publish a simulated world of cards, terminals and fraud, to a system that is up with HEADRACE_TIME=replay")
    parser.add_argument("--days", type=whole(1), default=60, metavar="N", help="days to simulate (default: 60)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="the same seed gives the same world (default: 0)")
    parser.add_argument("--cards", type=whole(1), default=2500, metavar="N", help="cards, two transactions a day each (default: 2500)")
    parser.add_argument("--terminals", type=whole(1), default=1000, metavar="N", help="terminals (default: 1000)")
    parser.add_argument("--start", type=time_ms, default=FIRST_DAY, metavar="DAY", help=f"the first day, UTC (default: {FIRST_DAY})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write Parquet, ground truth included, and publish nothing")
    parser.add_argument("--plant", nargs="+", default=(), metavar="KIND@DAY",
                        help="what goes wrong from that day on, for +DAYS: covariate, prior, concept, label-delay, unit, nulls, "
                        "duplicates, outage, skew; e.g. outage@40+1")
    add_lockstep_options(parser)


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.fraud import USE_CASE
    from schemas.settings import read_settings
    from services.inputs import event_rows
    from services.planting import parse_plant, planted
    from services.replaying import in_lockstep, summary_text
    from services.world import World

    if min(arguments.days, arguments.cards, arguments.terminals) < 1 or arguments.seed < 0:
        raise SettingsError("--days, --cards and --terminals are at least 1, --seed at least 0")
    settings = read_settings()
    world = World(arguments.seed, arguments.cards, arguments.terminals, arguments.start)
    plants = [parse_plant(text, arguments.start) for text in arguments.plant]
    if arguments.out is not None:
        if plants:
            raise SettingsError("--plant --out: what is planted is a matter of how events are published", hint="leave out one of them")
        facts = write(world, arguments.days, arguments.out)
        show(arguments, facts, f"wrote {facts['transactions']:,} transactions, {facts['fraud']:,} of them fraud, to {facts['file']}")
        return
    rows = planted((event_rows(batch) for batch in world.days(arguments.days)), plants, arguments.seed)
    facts = in_lockstep(settings, USE_CASE, rows, source=f"/headrace/simulate/{arguments.seed}", total=2 * arguments.cards * arguments.days,
                        step_ms=arguments.step, drain=arguments.drain, loop=arguments.loop)
    show(arguments, facts, summary_text(facts))


def write(world: World, days: int, path: Path) -> dict[str, Any]:
    """Write the world to a Parquet file in contract form, with ``fraud`` and ``pattern`` beside it."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    transactions = fraud = 0
    try:
        with pq.ParquetWriter(path, world.day(0).schema) as writer:
            for batch in world.days(days):
                writer.write_batch(batch)
                transactions += batch.num_rows
                fraud += pc.sum(batch["fraud"]).as_py() or 0
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}", hint="name a file in a folder that exists") from error
    return {"transactions": transactions, "fraud": fraud, "file": str(path)}
