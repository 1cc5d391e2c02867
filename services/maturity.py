"""How ripe labels are: what met in Redis, day by day of the event, how long labels took, and what waits on either side."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from feature_repo.join_marks import evaluated_ms
from feature_repo.models import ModelSpec, Outcomes
from feature_repo.pair_bytes import FIELD_BYTES, layout_key, pair_key, unpack_labels
from feature_repo.pairs import joined_models
from feature_repo.pending import Layout, read_layout
from feature_repo.use_cases import models
from feature_repo.views import DAY_MS
from feature_repo.wire import Wire, pack
from schemas.settings import Settings

__all__ = ["Cohort", "Maturity", "floor_ms", "read_maturity"]

BUCKETS = 20_000
"""Looked at, at most, spread evenly: with some dozens of predictions in each, shares are known to a thousandth."""
AT_ONCE = 500
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Cohort:
    """The predictions of events of the day that begins at ``day_ms``; ``maturity`` is the share that is ``labelled``.

    ``age_days`` is from the end of that day to the latest time that is joined (0: it is not over); None: nothing is yet.
    """

    day_ms: int
    age_days: float | None
    predictions: int
    labelled: int
    maturity: float


@dataclass(frozen=True)
class Maturity:
    """The pairs with outcomes of ``topic`` within the horizon. Numbers are estimates where ``looked_at`` is below 1, the share of hashes.

    ``delay_ms`` are quantiles of the time from an event to its first label, of all labels there, matched or not; ``bytes`` is what Redis
    says of the hashes. ``evaluated_ms`` is model -> the time up to which all that was complete is published. ``counts`` is what became
    of records: evaluations (publications), beyond (left to the tables), repeated, conflicting and overtaken labels.
    """

    topic: str
    looked_at: float
    predictions: int
    outcomes: int
    predictions_unmatched: int
    outcomes_unmatched: int
    bytes: int
    bytes_per_prediction: float | None
    budget_bytes: int
    horizon_ms: int
    floor_ms: int
    delay_ms: dict[str, int]
    evaluated_ms: dict[str, int | None]
    counts: dict[str, int]
    cohorts: list[Cohort] = field(default_factory=list)


def read_maturity(settings: Settings, url: str) -> list[Maturity]:
    """One for each topic that tells labels. Raises StoreError."""
    wire = Wire(url, 5000)
    try:
        return [_of_topic(wire, settings, told, specs) for told, specs in joined_models(models(settings)).items()]
    finally:
        wire.close()


def floor_ms(settings: Settings, url: str) -> int:
    """The event time before which something did not fit into Redis, of any topic; 0: all did."""
    wire = Wire(url, 5000)
    try:
        layouts = [read_layout(wire, told.topic) for told in joined_models(models(settings))]
        return max((layout.floor_ms for layout in layouts if layout is not None), default=0)
    finally:
        wire.close()


@dataclass
class Seen:
    """What was found in the hashes that were looked at."""

    size: int = 0
    outcomes: int = 0
    outcomes_unmatched: int = 0
    predictions: Counter[int] = field(default_factory=Counter)
    labelled: Counter[int] = field(default_factory=Counter)
    delays_ms: list[int] = field(default_factory=list)

    def add(self, day_ms: int, size: int, fields: dict[bytes, bytes]) -> None:
        labels = {name: unpack_labels(value) for name, value in fields.items() if len(name) == FIELD_BYTES}
        scored = [name[:FIELD_BYTES] for name in fields if len(name) > FIELD_BYTES]
        self.size += size
        self.outcomes += len(labels)
        self.outcomes_unmatched += len(labels.keys() - set(scored))
        self.delays_ms += [told[0].outcome_ms for told in labels.values()]
        if scored:
            self.predictions[day_ms] += len(scored)
            self.labelled[day_ms] += sum(name in labels for name in scored)


def _of_topic(wire: Wire, settings: Settings, told: Outcomes, specs: list[ModelSpec]) -> Maturity:
    reached = {spec.name: evaluated_ms(wire, spec, settings.partitions) for spec in specs}
    until = {name: min(of_model.values()) if len(of_model) == settings.partitions else None for name, of_model in reached.items()}
    now_ms = max((at_ms for of_model in reached.values() for at_ms in of_model.values()), default=None)
    counts = wire.call("HGETALL", layout_key(told.topic, "counts"))
    layout, seen, share = read_layout(wire, told.topic), Seen(), 1.0
    if layout is not None:
        share = _look(wire, told.topic, layout, seen)
    predictions, labelled = seen.predictions.total(), seen.labelled.total()

    def scaled(number: int) -> int:
        return round(number / share)

    def age_days(day_ms: int) -> float | None:
        return None if now_ms is None else round(max(0.0, (now_ms - day_ms) / DAY_MS - 1), 1)

    quantiles = np.quantile(seen.delays_ms, QUANTILES, method="inverted_cdf").tolist() if seen.delays_ms else []
    return Maturity(
        told.topic, round(share, 4), scaled(predictions), scaled(seen.outcomes), scaled(predictions - labelled),
        scaled(seen.outcomes_unmatched), scaled(seen.size), round(seen.size / predictions, 1) if predictions else None,
        settings.outcome_memory_mb << 20, settings.outcome_horizon_ms, layout.floor_ms if layout is not None else 0,
        {f"p{quantile:.0%}".rstrip("%"): int(ms) for quantile, ms in zip(QUANTILES, quantiles, strict=False)}, until,
        {name.decode(): int(number) for name, number in zip(counts[::2], counts[1::2], strict=True)},
        [Cohort(day_ms, age_days(day_ms), scaled(n), scaled(seen.labelled[day_ms]), seen.labelled[day_ms] / n)
         for day_ms, n in sorted(seen.predictions.items())])


def _look(wire: Wire, topic: str, layout: Layout, seen: Seen) -> float:
    """Look at the hashes of every slice, or at so many of each that they are few enough. Returns the share."""
    slices = sorted(map(int, wire.call("SMEMBERS", layout_key(topic, "slices"))))
    step = max(1, math.ceil(len(slices) * layout.buckets / BUCKETS))
    buckets = range(0, layout.buckets, step)
    keys = ((number, pair_key(topic, number, bucket)) for number in slices for bucket in buckets)
    while some := list(islice(keys, AT_ONCE)):
        replies = wire.exchange([pack((*command, key)) for _, key in some for command in (("MEMORY", "USAGE"), ("HGETALL",))])
        for (number, _), size, fields in zip(some, replies[::2], replies[1::2], strict=True):
            seen.add(number * layout.slice_ms // DAY_MS * DAY_MS, size or 0, dict(zip(fields[::2], fields[1::2], strict=True)))
    return len(buckets) / layout.buckets
