"""How the command line reads and writes times, durations, numbers and entities."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["duration", "duration_ms", "iso", "not_negative", "pair", "positive", "stated", "time_ms", "whole"]

LAST_MS = 4_102_444_800_000  # the last event_time that contracts take
UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """``1h`` as milliseconds; units are ms, s, m, h and d."""
    found = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 30m, 1h or 1d")
    return int(found[1]) * UNITS_MS[found[2]]


def duration(ms: int) -> str:
    """The shortest exact writing.

    >>> [duration(ms) for ms in (0, 600_000, 86_400_000, 1500)]
    ['0ms', '10m', '1d', '1500ms']
    """
    return next((f"{ms // unit}{name}" for name, unit in reversed(UNITS_MS.items()) if ms and ms % unit == 0), "0ms")


def time_ms(text: str) -> int:
    """UTC ms of an ISO 8601 time (UTC where it names no zone) or of ms written as digits."""
    try:
        if text.isdigit():
            ms = int(text)
        else:
            told = datetime.fromisoformat(text)
            ms = round((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() * 1000)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2018-08-14T12:00:00 or ms since 1970") from error
    if not 0 <= ms <= LAST_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is before 1970 or after 2099")
    return ms


def iso(ms: int | None) -> str:
    """The time in ISO 8601, UTC; nothing for None."""
    if ms is not None and not 0 <= ms <= LAST_MS:
        return f"{ms} ms"  # a broker takes any time
    return "" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``least`` on."""
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return value

    return read


def positive(text: str) -> float:
    """A finite number above 0."""
    if not (value := not_negative(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def stated(text: str) -> str:
    """A text that says something."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it says nothing")
    return text


def pair(text: str) -> tuple[str, str]:
    """``card=596`` as ("card", "596")."""
    key, separator, entity = text.partition("=")
    if not key or not separator or not entity:
        raise argparse.ArgumentTypeError(f"{text!r} names no entity; write card=596")
    return key, entity
