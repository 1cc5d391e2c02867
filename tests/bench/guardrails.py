"""How guardrails of canaries do: false rollbacks where nothing changed, how soon planted harm is taken back; for docs/releases.md.

    python -m tests.bench.guardrails [--runs 400]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter

from tests.guard_world import World, run

WORLDS = (
    ("no change", World(), 1.0), ("no change, longer bursts", World(burst=0.9), 0.5),
    ("no change, 4,000 cards", World(cards=4_000, per_day=3_000), 0.5), ("errors x 5", World(errors=5), 0.15),
    ("errors x 20", World(errors=20), 0.15), ("alerts x 2.5", World(alerts=2.5), 0.15), ("alerts x 5", World(alerts=5), 0.15),
    ("alerts / 10", World(alerts=0.1), 0.15), ("wrong decisions x 2", World(losses=2), 0.15),
    ("wrong decisions x 4", World(losses=4), 0.15), ("twice as slow", World(slow=2), 0.15),
    ("better: wrong / 2, alerts / 1.3", World(losses=0.5, alerts=1 / 1.3), 0.15))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guardrails", description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="simulated canaries of the first world (default: %(default)s)")
    runs = parser.parse_args().runs
    print("| world | canaries | taken back | released | stopped and asked | median day | largest share | usual test fires |")
    print("|---|---|---|---|---|---|---|---|")
    for name, world, part in WORLDS:
        ended = [run(world, seed) for seed in range(max(1, round(runs * part)))]
        actions = Counter(one.action for one in ended)
        back = [one for one in ended if one.action == "rollback"]
        day = f"{statistics.median(one.day for one in back):.1f}" if back else ""
        share = f"{max(one.share for one in back) / 100:g} %" if back else ""
        print(f"| {name} | {len(ended)} | {len(back) / len(ended):.1%} | {actions['advance'] / len(ended):.0%} | "
              f"{actions['pause'] / len(ended):.0%} | {day} | {share} | {sum(one.naive for one in ended) / len(ended):.0%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
