"""What was measured, beside what was promised: a table to read and a file to compare."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Figure", "print_table", "write_json"]


@dataclass(frozen=True)
class Figure:
    """One measurement. ``target`` is a bound on ``value``; ``ratio`` says how many times better than ``baseline``, if there is one."""

    section: str
    what: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False
    baseline: str = ""
    ratio: float | None = None
    ratio_target: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """None where nothing was promised."""
        kept = []
        if self.target is not None:
            kept.append(self.value <= self.target if self.at_most else self.value >= self.target)
        if self.ratio_target is not None and self.ratio is not None:
            kept.append(self.ratio >= self.ratio_target)
        return all(kept) if kept else None


def print_table(figures: Sequence[Figure]) -> None:
    table = Table("section", "figure", "measured", "target", "against", "ratio", "reached", title="bench")
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}x" + (f" (>= {figure.ratio_target:g}x)" if figure.ratio_target else "")
        target = "" if figure.target is None else f"{'<=' if figure.at_most else '>='} {figure.target:,g}"
        reached = {None: "", True: "yes", False: "[red]no"}[figure.reached]
        table.add_row(figure.section, figure.what, f"{_short(figure.value)} {figure.unit}", target, figure.baseline, ratio, reached)
    Console(width=160 if not os.isatty(1) else None).print(table)


def write_json(figures: Sequence[Figure], path: Path, events: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_average": [round(x, 2) for x in os.getloadavg()],
               "million_additions_ms": million_additions_ms()}
    report = {"events": events, "machine": machine, "figures": [{**asdict(figure), "reached": figure.reached} for figure in figures]}
    path.write_text(json.dumps(report, indent=1) + "\n")


def million_additions_ms() -> tuple[float, float]:
    """Shortest and longest of ten times: how fast a core of this machine is now, and how far others are in the way."""
    took = []
    for _ in range(10):
        began, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        took.append(1000 * (time.perf_counter() - began))
    return round(min(took), 1), round(max(took), 1)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
