"""Things that go wrong, planted in a card world at a known time: what monitors are there to find, and what they must not take for it.

``covariate@40+6`` is a shift of amounts from day 40 on for six days. Each is drawn from (seed, kind, day) alone. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from feature_repo.fraud import LABEL_DELAY_MS
from feature_repo.reference import ERROR, MISSED
from feature_repo.views import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import SettingsError
from schemas.fraud import OUTCOMES

__all__ = ["KINDS", "Kind", "Plant", "parse_plant", "planted"]

Columns = dict[str, pa.Array]
Draw = np.random.Generator
LASTING = 10_000
TRIED, TRIES = 0.005, 4
"""Which part of payments is followed by how many tries of a thief."""
OUTAGE_MS, AHEAD_MS = 20 * HOUR_MS, 3 * MINUTE_MS


@dataclass(frozen=True)
class Kind:
    """Of ``expected`` signals one has to alarm, those ``allowed`` may beside it. A ``retrain`` must follow, may where it is earned by
    measured loss, or must not.

    Windows of features still hold what went wrong for ``echo_days`` after it is over: what was lost of a day is missing in the counts of
    that week, and in what is known of it a week later.
    """

    doc: str
    days: int
    expected: frozenset[str]
    change: Callable[[Columns, Plant, Draw], Columns]
    allowed: frozenset[str] = frozenset()
    retrain: Literal["must", "may", "no"] = "no"
    echo_days: int = 0


@dataclass(frozen=True)
class Plant:
    """``kind`` from midnight of ``start_ms`` to that of ``end_ms``, UTC."""

    kind: str
    start_ms: int
    end_ms: int


def parse_plant(text: str, first_ms: int) -> Plant:
    """``KIND@DAY`` or ``KIND@DAY+DAYS``, counted from ``first_ms``. Raises SettingsError."""
    kind, _, when = text.partition("@")
    day, _, days = when.partition("+")
    if kind not in KINDS or not day.isdigit() or not (days or "1").isdigit() or days == "0":
        raise SettingsError(f"cannot plant {text!r}", hint=f"KIND@DAY or KIND@DAY+DAYS; kinds are {', '.join(KINDS)}")
    start_ms = first_ms + int(day) * DAY_MS
    return Plant(kind, start_ms, start_ms + int(days or KINDS[kind].days) * DAY_MS)


def planted(batches: Iterable[pa.RecordBatch], plants: Sequence[Plant], seed: int) -> Iterator[pa.RecordBatch]:
    """Event rows (``services.inputs``), a day in each batch, with what is planted in them."""
    held_ms = 0
    for rows in batches:
        day_ms = int(rows["event_time"][0].as_py()) // DAY_MS * DAY_MS if rows.num_rows else 0
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        for plant in plants:
            if plant.start_ms <= day_ms < plant.end_ms:
                draw = np.random.default_rng([seed, list(KINDS).index(plant.kind), day_ms // DAY_MS])
                columns = KINDS[plant.kind].change(columns, plant, draw)
                if not len(columns["event_time"]):
                    break
        told = columns.get(f"arrives.{OUTCOMES}")
        held_ms = max(held_ms, int(np.asarray(told)[-1])) if told is not None and len(told) else held_ms
        if told is None and held_ms:  # what was held back comes before what was not
            columns[f"arrives.{OUTCOMES}"] = pa.array(np.maximum(_known_ms(columns), held_ms))
        yield pa.RecordBatch.from_pydict(columns)


def _covariate(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    return columns | {"amount_minor": pa.array(np.rint(np.asarray(columns["amount_minor"]) * 1.5).astype(np.int64))}


def _prior(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """More of a fraud that is known: large amounts."""
    taken = draw.random(len(columns["event_id"])) < 0.03
    amount = np.where(taken, draw.integers(25_000, 90_000, len(taken)), np.asarray(columns["amount_minor"]))
    return columns | {"amount_minor": pa.array(amount), "fraud": pa.array(np.asarray(columns["fraud"]) | taken)}


def _concept(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """A fraud that is new: stolen cards are tried out, some small payments in a few minutes, each at another terminal."""
    rows, time = pa.RecordBatch.from_pydict(columns), np.asarray(columns["event_time"])
    near_midnight = time % DAY_MS >= DAY_MS - (TRIES + 1) * MINUTE_MS
    places = np.repeat(np.flatnonzero((draw.random(len(time)) < TRIED) & ~near_midnight), TRIES)
    number = np.arange(len(places)) % TRIES + 1
    after = dict(zip(rows.schema.names, rows.take(pa.array(places)).columns, strict=True))
    after["event_id"] = pa.array([f"{event}-try{n}" for event, n in zip(after["event_id"].to_pylist(), number.tolist(), strict=True)],
                                 pa.string())
    after["event_time"] = pa.array(time[places] + number * MINUTE_MS)
    after["terminal_id"] = columns["terminal_id"].take(pa.array(draw.integers(0, len(time), len(places))))
    after["amount_minor"] = pa.array(draw.integers(100, 400, len(places)))
    after["fraud"] = pa.array(np.ones(len(places), bool))
    both = {name: pa.concat_arrays([column, after[name]]) for name, column in columns.items()}
    order = pa.array(np.argsort(np.asarray(both["event_time"]), kind="stable"))
    return {name: column.take(order) for name, column in both.items()}


def _label_delay(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """Investigators are behind: what would be known while this lasts is known at its end."""
    return columns | {f"arrives.{OUTCOMES}": pa.array(np.maximum(_known_ms(columns), plant.end_ms + LABEL_DELAY_MS))}


def _unit(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """Amounts come in another currency."""
    return columns | {"amount_minor": pa.array(np.asarray(columns["amount_minor"]) * 100)}


def _nulls(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """A producer no longer knows terminals: each is a new one, of which nothing is known."""
    return columns | {"terminal_id": pa.array([f"unknown-{event}" for event in columns["event_id"].to_pylist()])}


def _duplicates(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """Every event comes three times."""
    places = np.repeat(np.arange(len(columns["event_id"])), 3)
    rows = pa.RecordBatch.from_pydict(columns).take(pa.array(places))
    first = np.arange(len(places)) % 3 == 0
    sent = np.asarray(rows[f"sent.{OUTCOMES}"]) & first
    return dict(zip(rows.schema.names, rows.columns, strict=True)) | {f"sent.{OUTCOMES}": pa.array(sent)}


def _outage(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """Of each day the last hours alone arrive; the rest is lost."""
    kept = pa.array(np.asarray(columns["event_time"]) % DAY_MS >= OUTAGE_MS)
    return {name: column.filter(kept) for name, column in columns.items()}


def _skew(columns: Columns, plant: Plant, draw: Draw) -> Columns:
    """The clocks of some producers are ahead."""
    time = np.asarray(columns["event_time"])
    ahead = np.where(draw.random(len(time)) < 0.4, AHEAD_MS, 0)
    return columns | {"event_time": pa.array(time + ahead), "arrives": pa.array(time)}


def _known_ms(columns: Columns) -> Any:
    return np.asarray(columns.get("arrives", columns["event_time"])) + LABEL_DELAY_MS


LOSSES = frozenset({ERROR, MISSED, f"{ERROR}/night"})
FED = frozenset({"null-share", "scale", "features", "score"})
"""What alarms where features are starved of what they are made from."""
KINDS = {
    "covariate": Kind("amounts rise by half", 6, frozenset({"features"}), _covariate, LOSSES | {"score"}, "may", 30),
    "prior": Kind("more fraud of a kind that is known", 6, frozenset({"score", "features"}), _prior, LOSSES, "may", 30),
    "concept": Kind("fraud of a new kind, from then on", LASTING, LOSSES, _concept, frozenset({"features", "score"}), "must"),
    "label-delay": Kind("labels are held back", 6, frozenset({"labels"}), _label_delay, FED | LOSSES, echo_days=9),
    "unit": Kind("amounts in another currency", 1, frozenset({"scale"}), _unit, frozenset({"features", "score"}), echo_days=30),
    "nulls": Kind("terminals are unknown", 2, frozenset({"null-share"}), _nulls, FED | LOSSES, echo_days=9),
    "duplicates": Kind("every event comes three times", 1, frozenset({"duplicates"}), _duplicates, frozenset({"volume"})),
    "outage": Kind("most of a day's events are lost", 1, frozenset({"volume"}), _outage, FED, echo_days=9),
    "skew": Kind("clocks of producers are ahead", 1, frozenset({"clock-skew"}), _skew),
}
