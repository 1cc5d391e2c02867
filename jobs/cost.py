"""What a candidate costs to serve: bytes of its bundle, and processor time on recorded requests, over the champion's. No clock decides.

Both models score the same requests, one by one as they came, in turns in one thread of this process, and the time is the processor's: what
else the machine does cancels out, and a candidate is as fast on a slow machine as on a fast one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from feature_repo.archive_table import ArchiveTable, open_archive
from feature_repo.bundle import Model
from feature_repo.models import ModelSpec
from feature_repo.views import DAY_MS, HOUR_MS
from jobs.gates import Evidence, GateRules
from jobs.recent import served
from schemas.settings import Settings

__all__ = ["bundle_bytes", "cost", "median_bounds", "recorded", "time_ratios"]

REQUESTS = 500
REPEATS = 25
REACHES = (HOUR_MS, DAY_MS, 7 * DAY_MS, None)
Array = np.ndarray[Any, Any]


def recorded(settings: Settings, spec: ModelSpec, most: int = REQUESTS) -> Array:
    """float64[n, F]: the vectors of the newest archived predictions that were made with the features of ``spec``; NaN is null."""
    archive = open_archive(settings)
    found: list[list[float | None]] = []
    for reach in REACHES:
        found = _since(archive, spec, 0 if reach is None else max(0, archive.newest_ms - reach), most)
        if len(found) >= most:
            break
    rows = [[np.nan if value is None else value for value in vector] for vector in found[:most]]
    return np.array(rows, np.float64).reshape(len(rows), len(spec.service.feature_names))


def _since(archive: ArchiveTable, spec: ModelSpec, from_ms: int, most: int) -> list[list[float | None]]:
    service = spec.service

    def decode(batch: Any) -> list[list[float | None]]:
        newest = np.argsort(-batch["arrival_ms"].to_numpy(), kind="stable")[:most]
        values = (batch["value"][int(row)].as_py() for row in newest)
        return [one.features for value in values if (one := served(value, service)) is not None]

    return [vector for part in archive.batches(service.predictions, from_ms, archive.newest_ms, decode) for vector in part]


def bundle_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def time_ratios(candidate: Callable[[Array], Any], champion: Callable[[Array], Any], rows: Array, repeats: int = REPEATS) -> list[float]:
    """For each repeat, the processor time of ``candidate`` over that of ``champion`` on all rows, one by one. They take turns."""
    requests = [row[None] for row in rows]

    def spent(score: Callable[[Array], Any]) -> int:
        began = time.thread_time_ns()
        for request in requests:
            score(request)
        return time.thread_time_ns() - began

    for score in (candidate, champion):
        spent(score)
    ratios = []
    for repeat in range(repeats):
        if repeat % 2:
            own, other = spent(candidate), spent(champion)
        else:
            other, own = spent(champion), spent(candidate)
        ratios.append(own / max(other, 1))
    return ratios


def cost(candidate: Model, champion: Model, folders: tuple[Path, Path], rows: Array, rules: GateRules) -> Evidence:
    """Size first: it needs no request. The interval of the median is that of its order statistics, for any distribution (Conover 1999)."""
    sizes = [bundle_bytes(folder) for folder in folders]
    larger = sizes[0] / sizes[1]
    facts: dict[str, Any] = {"bytes": sizes[0], "champion_bytes": sizes[1], "size_ratio": larger, "requests": len(rows)}
    words = f"{sizes[0]:,} bytes, {larger:.2f} times the champion's"
    if larger > rules.size_ratio:
        return Evidence("cost", "FAIL", f"{words}; {rules.size_ratio:g} times are allowed", facts)
    if not len(rows):
        return Evidence("cost", "INCONCLUSIVE", f"{words}; no request is recorded with these features", facts)
    ratios = time_ratios(candidate.score, champion.score, rows)
    low, high = median_bounds(ratios, rules.error)
    facts |= {"repeats": len(ratios), "time_ratio": float(np.median(ratios)), "time_low": low, "time_high": high}
    words += f"; {np.median(ratios):.2f} [{low:.2f}, {high:.2f}] times its processor time on {len(rows)} recorded requests"
    if low > rules.time_ratio:
        return Evidence("cost", "FAIL", f"{words}; {rules.time_ratio:g} times are allowed", facts)
    if high > rules.time_ratio:
        return Evidence("cost", "INCONCLUSIVE", f"{words}: may be more than the {rules.time_ratio:g} allowed", facts)
    return Evidence("cost", "PASS", words, facts)


def median_bounds(values: list[float], miss: float) -> tuple[float, float]:
    """Bounds of the median, each missed with probability ``miss``: the order statistics at n / 2 less and plus z * sqrt(n) / 2."""
    n, ranked = len(values), sorted(values)
    down = int(n / 2 - NormalDist().inv_cdf(1 - miss) * n**0.5 / 2)
    return ranked[max(down - 1, 0)], ranked[min(n - down, n - 1)]
