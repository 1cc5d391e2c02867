"""Detectors on streams whose changes are known: false alarms, delay, missed, beside "alarm every k losses" and "never".

A hundred streams of 10,000 losses that do not change, and a hundred that do in their middle, at once or over 2,000 losses. The reference
is another sample of 100,000. Every alarm starts its detector afresh.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from feature_repo.bins import bin_counts, quantile_edges
from streams.detectors import second_opinion
from streams.detectors.distances import compare
from streams.detectors.losses import LossBatch, LossDetector, LossReference
from streams.detectors.seasons import count_by_hour
from streams.detectors.shapes import ShapeBatch, ShapeDetector, ShapeReference
from streams.episodes import Change, Score, score_alarms
from tests.bench.report import Figure

__all__ = ["measure"]

SEEDS, N, CHANGE, RAMP = 100, 10_000, 5_000, 2_000
RATES = ((0.2, 0.3), (0.2, 0.4), (0.05, 0.10), (0.01, 0.03))
ARL = 1e5
EVERY = 1_000
REFERENCE = 100_000
STEP_MS = 14 * 24 * 3_600_000 // N
"""A stream lasts two weeks, the reference twenty: 600 losses for each hour of the week."""
FEATURES, BINS, WINDOW, WINDOWS, LISTED = 30, 22, 2_000, 60, 6

Alarms = Callable[[LossBatch], Sequence[int]]


@dataclass(frozen=True)
class Scenario:
    """``rate`` of a clean stream at each of the losses ``i``, and how much more of them are errors after the change."""

    name: str
    before: float
    after: float
    ramp: int = 0
    season: float = 0.0

    def rates(self, i: Any, changed: bool) -> Any:
        grown = np.clip((i - CHANGE) / max(self.ramp, 1), 0, 1) if self.ramp else (i >= CHANGE) * 1.0
        level = self.before + (self.after - self.before) * grown * changed
        return level * (1 + self.season * np.sin(2 * np.pi * i * STEP_MS / 86_400_000))


SCENARIOS = tuple(Scenario(f"{a:g} to {b:g}, {kind}", a, b, ramp, season) for a, b in RATES
                  for kind, ramp, season in (("at once", 0, 0.0), ("gradual", RAMP, 0.0), ("daily season", 0, 0.6))
                  if not season or (a, b) in ((0.2, 0.3), (0.01, 0.03)))


def measure(tell: Callable[[str], None]) -> list[Figure]:
    return [*_losses(tell), *_shapes(tell), *_speed()]


def _losses(tell: Callable[[str], None]) -> list[Figure]:
    figures = []
    for scenario in SCENARIOS:
        tell(f"{2 * SEEDS} streams, error {scenario.name}")
        scores: dict[str, list[tuple[Score, Score]]] = {}
        for seed in range(SEEDS):
            random = np.random.default_rng(seed)
            past = np.arange(-REFERENCE, 0)
            reference = LossBatch((random.random(len(past)) < scenario.rates(past, False)).astype(float), past * STEP_MS)
            streams = [LossBatch((random.random(N) < scenario.rates(np.arange(N), changed)).astype(float), np.arange(N) * STEP_MS)
                       for changed in (False, True)]
            for name, alarms in _detectors(reference, bool(scenario.season)).items():
                clean, changed = ([ms // STEP_MS for ms in alarms(stream)] for stream in streams)
                scores.setdefault(name, []).append((score_alarms(clean, [], 0, N), score_alarms(changed, [Change(CHANGE)], 0, N)))
        figures += [_figure(name, scenario.name, found) for name, found in scores.items()]
    return figures


def _detectors(reference: LossBatch, season: bool) -> dict[str, Alarms]:
    whole = LossReference("sample", (float(reference.losses.sum()),), (len(reference.losses),))
    found = {"e-detector": partial(_chunked, LossDetector(whole, ARL, latched=False))}
    if season:
        hours = LossReference("hours", *count_by_hour(reference.losses, reference.times_ms))
        found["e-detector, hours of the week"] = partial(_chunked, LossDetector(hours, ARL, latched=False))
    opinions = [second_opinion.adwin(), second_opinion.page_hinkley()]
    return {**found, **{opinion.name: partial(_opinion, opinion) for opinion in opinions},
            f"alarm every {EVERY:,}": lambda stream: stream.times_ms[EVERY - 1::EVERY].tolist(), "never": lambda stream: []}


def _chunked(detector: LossDetector, stream: LossBatch) -> list[int]:
    """Of two alarms in 50 losses the later counts."""
    found, state = [], detector.start()
    for at in range(0, len(stream.losses), 50):
        before = state.alarms
        state = detector.update(state, LossBatch(stream.losses[at:at + 50], stream.times_ms[at:at + 50]))
        if state.alarms > before and state.alarm_ms is not None:
            found.append(state.alarm_ms)
    return found


def _opinion(opinion: second_opinion.SecondOpinion, stream: LossBatch) -> Sequence[int]:
    return opinion.update(opinion.start(), stream).alarms_ms


def _figure(name: str, scenario: str, found: list[tuple[Score, Score]]) -> Figure:
    delays = [score.mean_delay for _, score in found if score.mean_delay is not None]
    false = sum(clean.false_alarms for clean, _ in found)
    alarmed = sum(clean.false_alarms > 0 for clean, _ in found) / len(found)
    right = sum(score.detected for _, score in found)
    wrong = sum(score.false_alarms for _, score in found)
    missed = 1 - right / len(found)
    f1 = 2 * right / (2 * right + wrong + len(found) - right)
    detail = {"missed_detection_rate": missed, "clean_streams_with_alarm": alarmed, "false_alarms_per_10k": false / len(found), "f1": f1}
    value, what, unit = (statistics.fmean(delays), "delay", "losses") if delays else (missed, "missed", "of 1")
    return Figure("drift", f"{scenario}: {name}: {what}", value, unit, detail=detail,
                  baseline=f"missed {missed:.2f}, clean alarmed {alarmed:.2f} ({false / len(found):.2f} in 10k), F1 {f1:.2f}")


def _shapes(tell: Callable[[str], None]) -> list[Figure]:
    """30 features; one of them tilts by a fifth. Per-feature alarms (Benjamini-Hochberg, PSI) beside the one e-value."""
    tell(f"{2 * SEEDS} streams of {WINDOWS} windows of {FEATURES} histograms")
    names = tuple(f"f{i}" for i in range(FEATURES))
    false, listed, delays = 0, 0, []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        shares = random.dirichlet(np.full(BINS, 20.0), FEATURES)
        seen = random.multinomial(20_000, shares)
        detector = ShapeDetector(ShapeReference("sample", names, seen[None]), 10 * WINDOWS)
        state = detector.start()
        for window in range(WINDOWS):
            counts = random.multinomial(WINDOW, shares)
            state = detector.update(state, ShapeBatch(window, counts))
            if window % LISTED == 0:
                listed += any(one.status == "ALARM" for one in compare(names, seen, counts))
        false += state.alarms > 0
        tilted = shares.copy()
        tilted[0] *= np.exp(np.linspace(-0.4, 0.4, BINS))
        tilted[0] /= tilted[0].sum()
        state = detector.start()
        for window in range(WINDOWS):
            state = detector.update(state, ShapeBatch(window, random.multinomial(WINDOW, tilted)))
            if state.alarms:
                delays.append(window)
                break
    return [
        Figure("drift", f"shapes, {FEATURES} features: clean streams of {WINDOWS} windows with an alarm", false / SEEDS, "of 1", 0.1,
               at_most=True, detail={"psi_list_alarms_per_window": listed * LISTED / SEEDS / WINDOWS}),
        Figure("drift", "shapes: one feature tilts by a fifth, delay", statistics.fmean(delays), f"windows of {WINDOW:,}",
               detail={"missed": 1 - len(delays) / SEEDS}),
    ]


def _speed() -> list[Figure]:
    random = np.random.default_rng(0)
    columns = random.normal(size=(FEATURES, 100_000))
    edges = [quantile_edges(column[:10_000]) for column in columns]
    began = time.perf_counter()
    for column, edge in zip(columns, edges, strict=True):
        bin_counts(column, edge)
    binned = columns.shape[1] / (time.perf_counter() - began)
    losses = LossBatch((random.random(1_000_000) < 0.01).astype(float), np.arange(1_000_000))
    detector = LossDetector(LossReference("r", (0.01 * REFERENCE,), (REFERENCE,)), 1e9)
    began = time.perf_counter()
    detector.update(detector.start(), losses)
    return [Figure("drift", f"{FEATURES} features into histograms", binned, "predictions/s", 100_000),
            Figure("drift", "losses through the e-detector", 1e6 / (time.perf_counter() - began), "losses/s")]
