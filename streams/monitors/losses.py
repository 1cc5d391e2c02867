"""Losses as they travel: in order, by the hour of their predictions, as the numbers of right ones between wrong ones.

An order that was fixed before the losses were known is what an e-detector's promise rests on, so counts alone would not do. What a
revision takes back is taken from the front of its hour.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.monitoring import Evaluated

__all__ = ["HOUR_MS", "append", "expand", "retract"]

HOUR_MS = 3_600_000


def append(found: Evaluated, stream: str, hour_ms: int, wrong: bool) -> None:
    gaps = found.losses.setdefault(stream, {}).setdefault(hour_ms, [0])
    if wrong:
        gaps.append(0)
    else:
        gaps[-1] += 1


def retract(found: Evaluated, stream: str, hour_ms: int, wrong: bool) -> None:
    found.retracted.setdefault(stream, {}).setdefault(hour_ms, [0, 0])[wrong] += 1


def expand(gaps: list[list[int]], retracted: list[list[int]]) -> Any:
    """float64[n] of 0 and 1: the losses of one hour, of several parts in their order.

    >>> expand([[2, 0], [1]], [[1, 0]]).tolist()
    [0.0, 1.0, 0.0]
    """
    losses = np.concatenate([_losses(part) for part in gaps]) if gaps else np.empty(0)
    for wrong, number in enumerate(np.sum(retracted, 0).tolist() if retracted else ()):
        losses = np.delete(losses, np.flatnonzero(losses == wrong)[:number])
    return losses


def _losses(gaps: list[int]) -> Any:
    losses = np.zeros(sum(gaps) + len(gaps) - 1)
    losses[np.cumsum(np.array(gaps[:-1], np.int64) + 1) - 1] = 1.0
    return losses
