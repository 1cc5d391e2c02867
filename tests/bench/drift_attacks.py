"""The guarantees under attack: what breaks them, and what keeps them when it does. Shares of clean streams that alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streams.detectors.losses import LossBatch, LossDetector, LossReference
from streams.detectors.shapes import ShapeBatch, ShapeDetector, ShapeReference
from tests.bench.report import Figure

__all__ = ["measure"]

SEEDS, N, RATE, REFERENCE, ARL = 100, 20_000, 0.05, 20_000, 2e5
BURST = 10
PROMISED = N / ARL


def measure(tell: Callable[[str], None]) -> list[Figure]:
    """Each attack is a clean stream to a person; ``target`` is what is promised under it, or none where nothing is."""
    tell(f"attacks on {SEEDS} clean streams each")
    figures = [
        _alarmed("independent losses", _independent),
        _alarmed("the rate as high as the reference's error allows, all the time", _at_the_bound),
        _alarmed("the rate walking up and down within that error", _walking),
        _alarmed("a reference of 2,000 losses, with its bound", _independent, n=2_000),
        _alarmed("the same, its estimate taken for the truth", _independent, False, error=None, n=2_000),
        _alarmed(f"errors in bursts of {BURST}", _bursts, False),
        _alarmed(f"the same, {BURST} losses counted as one", _bursts, cluster=BURST),
        _alarmed("a persistent state: half the cards err twice as often, and take turns", _regimes, False),
        _alarmed("the same, 8 losses counted as one", _regimes, cluster=8),
        _alarmed("early labels: errors confirmed first, cohorts not at equal age", _early_labels, False),
        _alarmed("the same at equal age", _equal_age),
        _alarmed("losses that tie: graded in steps of 1/4 with the same mean", _graded, binary=False),
    ]
    return [*figures, *_histograms()]


def _alarmed(what: str, draw: Callable[[Any, LossReference], Any], promised: bool = True, *, error: float | None = 0.01,
             cluster: float = 1, binary: bool = True, n: int = REFERENCE) -> Figure:
    alarmed = 0
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        total = float(draw(random, None).sum()) if draw is _bursts else float(random.binomial(n, RATE))
        reference = LossReference("sample", (total,), (n,), error, binary, cluster)
        losses = draw(random, reference)
        detector = LossDetector(reference, ARL)
        alarmed += detector.update(detector.start(), LossBatch(losses, np.arange(len(losses)))).alarms > 0
    return Figure("drift", f"attack: {what}", alarmed / SEEDS, "of clean streams alarm",
                  PROMISED + 0.01 if promised else None, at_most=True)


def _independent(random: Any, reference: LossReference) -> Any:
    return (random.random(N) < RATE) * 1.0


def _at_the_bound(random: Any, reference: LossReference) -> Any:
    return (random.random(N) < reference.level_bound) * 1.0


def _walking(random: Any, reference: LossReference) -> Any:
    reach = reference.level_bound - reference.rate
    return (random.random(N) < reference.rate + reach * np.sin(np.arange(N) / 2_000)) * 1.0


def _bursts(random: Any, reference: LossReference | None) -> Any:
    return np.repeat((random.random(N // BURST) < RATE) * 1.0, BURST)


def _regimes(random: Any, reference: LossReference) -> Any:
    high = np.repeat(random.random(N // 500) < 0.5, 500)
    return (random.random(N) < np.where(high, 4 / 3, 2 / 3) * RATE) * 1.0


def _early_labels(random: Any, reference: LossReference) -> Any:
    """Errors are confirmed after 5 days on average, the rest after 20; what counts is what has come in a cohort's first days."""
    errors = random.random(3 * N) < RATE
    delay = random.exponential(np.where(errors, 5.0, 20.0))
    return errors[delay < 7.0][:N] * 1.0


def _equal_age(random: Any, reference: LossReference) -> Any:
    """The same delays against a reference read at the same age."""
    young = 1 - np.exp(-7 / 5), 1 - np.exp(-7 / 20)
    share = RATE * young[0] / (RATE * young[0] + (1 - RATE) * young[1])
    early = _early_labels(random, reference)
    return early * (random.random(len(early)) < RATE / share)


def _graded(random: Any, reference: LossReference) -> Any:
    return random.binomial(4, RATE, N) / 4


def _histograms() -> list[Figure]:
    """10 features, 200 windows of uneven size: independent, then every event four times (a card's purchases are alike)."""
    return [_uneven("sizes from 500 to 20,000", 1, 1), _uneven("every event four times", 4, 1, False),
            _uneven("the same, 4 events counted as one", 4, 4)]


def _uneven(what: str, copies: int, cluster: int, promised: bool = True) -> Figure:
    names, alarmed, seeds, windows, arl = tuple(f"f{i}" for i in range(10)), 0, SEEDS // 4, 200, 2_000
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        shares = random.dirichlet(np.full(22, 20.0), 10)
        seen = copies * random.multinomial(20_000 // copies, shares)
        detector = ShapeDetector(ShapeReference("sample", names, seen[None], cluster=cluster), arl)
        state = detector.start()
        for window in range(windows):
            n = int(np.exp(random.uniform(np.log(500), np.log(20_000))))
            state = detector.update(state, ShapeBatch(window, copies * random.multinomial(n // copies + 1, shares)))
        alarmed += state.alarms > 0
    return Figure("drift", f"attack: histograms, {what}", alarmed / seeds, "of clean streams alarm",
                  windows / arl + 0.01 if promised else None, at_most=True)
