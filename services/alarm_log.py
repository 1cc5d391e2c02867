"""Alarm logs and lists of true changes, read from Parquet, CSV or NDJSON, and scored per detector."""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError
from services.files import read_chunks
from services.words import time_ms
from streams.detectors.intervals import event_rate_bound
from streams.episodes import Change, score_alarms

__all__ = ["read_alarms", "read_changes", "score"]

DAY_MS = 86_400_000
PERIOD_DAYS = 90


def read_alarms(path: Path) -> dict[str, list[int]]:
    """UTC ms of the alarms of each ``detector`` (one nameless one where the file has no such column), from the column ``at``."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in _rows(path, ["at", "detector"]):
        found[_text(path, row.get("detector")) or "alarms"].append(_time(path, row, "at"))
    return dict(found)


def read_changes(path: Path) -> list[Change]:
    """The true changes: columns ``start`` and, where one ended, ``end``."""
    return [Change(_time(path, row, "start"), _time(path, row, "end") if row.get("end") else None)
            for row in _rows(path, ["start", "end"])]


def score(alarms: dict[str, list[int]], changes: list[Change], began: int | None = None, ended: int | None = None,
          horizon: int | None = None) -> dict[str, Any]:
    """A score per detector, with the upper 95 % bound of its false alarms per 90 days. Without limits, from the first to the last time."""
    times = [ms for found in alarms.values() for ms in found]
    times += [ms for change in changes for ms in (change.start, change.end) if ms is not None]
    if not times and (began is None or ended is None):
        raise SettingsError("there is no alarm and no change", hint="say --from and --until: a silent stretch bounds the rate, too")
    began, ended = min(times) if began is None else began, max(times) if ended is None else ended
    if ended < began:
        raise SettingsError("--until is before --from, or before the first time told", hint="what was watched ends after it begins")
    scores = {}
    for name, found in sorted(alarms.items()) or [("alarms", [])]:
        one = score_alarms([ms for ms in found if began <= ms <= ended], changes, began, ended, horizon)
        bound = event_rate_bound(one.false_alarms, one.clean / DAY_MS) * PERIOD_DAYS if one.clean else None
        scores[name] = {**asdict(one), "false_alarms_per_90_days_bound": bound}
    return {"from_ms": began, "until_ms": ended, "scores": scores}


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    rows = []
    for chunk in read_chunks(path, columns):
        if chunk.verbatim:
            raise SettingsError(f"row {min(chunk.verbatim)} of {path.name} cannot be parsed", hint="give Parquet, CSV or NDJSON")
        values = {name: found.to_pylist() if hasattr(found, "to_pylist") else found for name, found in chunk.columns.items()}
        rows += [{name: found[i] for name, found in values.items()} for i in range(chunk.rows)]
    return rows


def _time(path: Path, row: dict[str, Any], column: str) -> int:
    told = row.get(column)
    try:
        return time_ms(told.isoformat() if isinstance(told, datetime | date) else _text(path, told))
    except argparse.ArgumentTypeError as error:
        raise SettingsError(f"{column} of a row of {path.name} is {told!r}, which is no time",
                            hint="write 2018-08-14T12:00:00 or ms since 1970") from error


def _text(path: Path, told: Any) -> str:
    """CSV brings bytes, and nothing where other formats have None."""
    try:
        return told.decode() if isinstance(told, bytes) else "" if told is None else str(told)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path.name} holds {told!r}", hint="write it in UTF-8") from error
