"""``make bench``: the figures that the README promises, as ratios against baselines measured in the same run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from schemas.settings import GATHER_MS, Settings, read_settings
from tests.bench.report import Figure, print_table, write_json

SECTIONS = ("features", "scoring", "memory", "latency", "tiles", "offline", "history", "backfill", "drift", "monitors", "api")
API_SECONDS = 15.0
REPORT = Path("build/bench/report.json")


def main() -> int:
    """0 whether targets were reached or not: a figure is a fact, and machines differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", type=_sections, default=SECTIONS, metavar="SECTION,...", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--events", type=int, default=2_000_000, help="backlog of features, scoring and memory (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the training set, and of the backfill (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of latency measurement (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    chosen = parser.parse_args()
    figures: list[Figure] = []
    for found in _measure(chosen):
        figures += found
        write_json(figures, REPORT, chosen.events)
    if chosen.json:
        print(json.dumps([{**asdict(figure), "reached": figure.reached} for figure in figures], indent=1))
    else:
        print_table(figures)
        print(f"written to {REPORT}")
    return 0


def _measure(chosen: argparse.Namespace) -> Iterator[list[Figure]]:
    if {"features", "scoring", "memory"} & set(chosen.only):
        from tests.bench import streaming

        with _home("streaming") as home:
            settings = read_settings(home=home, kafka=None, redis=None, time="replay")
            found = streaming.measure(settings, chosen.events, bool({"scoring", "memory"} & set(chosen.only)), _tell)
        for section in ("features", "scoring", "memory"):
            if section in chosen.only:
                yield getattr(found, section)
    if "latency" in chosen.only:
        from tests.bench import latency

        with _home("latency") as home:
            yield latency.measure(_paced(home), chosen.seconds, _tell)
    if "tiles" in chosen.only:
        from tests.bench import tiles

        with _home("tiles") as home:
            yield tiles.measure(read_settings(home=home, kafka=None, redis=None), _tell)
    if "offline" in chosen.only:
        from tests.bench import offline

        with _home("offline") as home:
            yield offline.measure(read_settings(home=home), chosen.rows, _tell)
    if "history" in chosen.only:
        from tests.bench import history

        with _home("history") as home:
            yield history.measure(read_settings(home=home), chosen.rows, _tell)
    if "backfill" in chosen.only:
        from tests.bench import backfill

        with _home("backfill") as home:
            yield backfill.measure(_paced(home), chosen.rows, chosen.seconds, _tell)
    if "drift" in chosen.only:
        from tests.bench import drift, drift_attacks

        yield drift.measure(_tell) + drift_attacks.measure(_tell)
    if "api" in chosen.only:
        from tests.bench import api

        with _home("api") as home:
            settings = read_settings(home=home, kafka=None, redis=None, time="replay")
            yield api.measure(settings, min(chosen.seconds, API_SECONDS), _tell)
    if "monitors" in chosen.only:
        from tests.bench import monitors

        yield monitors.measure(_tell)


@contextmanager
def _home(name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"headrace-bench-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _paced(home: Path) -> Settings:
    """Simulated time at the pace of a clock: its processes gather as live ones do."""
    return read_settings(home=home, kafka=None, redis=None, time="replay", gather_ms=GATHER_MS["live"])


def _sections(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return chosen


BEGAN = time.monotonic()


def _tell(line: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.0f} s  {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
