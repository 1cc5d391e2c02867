"""Is the feed in order? What looks like drift when it is not, named before it is taken for drift. Pure.

Each sign is measured against a margin that is wide: they block retrains, so they are for what is broken. Volume, lateness and freshness
have no right value but what was usual, the middle of the last windows: one that stays different is at fault for a while, then the new
normal. The others stay at fault for as long as they last.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feature_repo.bins import MINIMUM_N, MISSING, UNSEEN, are_two_values
from feature_repo.reference import Reference
from streams.detectors.contract import Verdict

__all__ = ["REMEMBERED", "copies_share", "feed_verdicts", "labels_verdict"]

REMEMBERED = 7
KNOWN = 3
"""Windows that have to be known before one is unusual."""
MARGIN = 0.1
VOLUME = 3.0
CROWDED, BEFORE = 0.6, 0.15
LABELS = 0.5
USUAL = ("late", "freshness")
WORDS = {"degraded": "degraded", "late": "late", "ahead": "clock-skew", "stale": "freshness", "unreadable": "unreadable"}


def feed_verdicts(counts: Mapping[str, int], copies: float, features: Any, reference: Reference | None,
                  usual: dict[str, list[float]]) -> list[Verdict]:
    """One verdict a sign. ``usual`` is moved on: it holds the last windows' figures.

    Parameters
    ----------
    counts, copies
        Of the window: see ``streams.monitors.counts``; the share of predictions whose event had been there before.
    features
        int64[F, 22] of the versions' predictions that were counted in the reference's bins, None where none were.
    """
    n = counts.get("n", 0)
    found = [_volume(n, usual)]
    for name, word in WORDS.items():
        share = counts.get(name, 0) / max(n + counts.get("unreadable", 0), 1)
        found.append(_rise(word, share, n + counts.get("unreadable", 0), usual))
    found.append(_rise("duplicates", copies, n, usual))
    if features is not None and reference is not None and features[0].sum() >= MINIMUM_N:
        found += _columns(features, reference)
    return found


def labels_verdict(n: int, labelled: int, reference: Reference) -> Verdict:
    """Whether so few of ``n`` predictions had a label at their age that it is the labels that are missing."""
    expected, share = reference.labelled, labelled / max(n, 1)
    short = expected / max(share, 1e-9) if expected else 0.0
    return Verdict("labels", "ALARM" if n >= MINIMUM_N and short >= 1 / LABELS else "OK" if n >= MINIMUM_N else "INSUFFICIENT_DATA",
                   short, 1 / LABELS, share - expected, n, None, None, reference.name, None, None)


def copies_share(samples: Sequence[tuple[Sequence[int], Sequence[int]]], size: int) -> float:
    """Of the ``size`` smallest hashes of all ``samples``, the share of occurrences beyond the first."""
    seen: dict[int, int] = {}
    for hashes, times in samples:
        for digest, number in zip(hashes, times, strict=True):
            seen[digest] = seen.get(digest, 0) + number
    kept = [seen[digest] for digest in sorted(seen)[:size]]
    return 1 - len(kept) / sum(kept) if kept else 0.0


def _volume(n: int, usual: dict[str, list[float]]) -> Verdict:
    past = usual.setdefault("volume", [])
    middle = statistics.median(past) if past else 0.0
    judged = len(past) >= KNOWN and middle >= MINIMUM_N
    apart = max(n / middle, middle / max(n, 1)) if judged else 0.0
    past[:] = [*past, float(n)][-REMEMBERED:]
    return _verdict("volume", judged, apart, VOLUME, n / middle - 1 if judged else 0.0, n, "its last windows")


def _rise(word: str, share: float, n: int, usual: dict[str, list[float]]) -> Verdict:
    past = usual.setdefault(word, []) if word in USUAL else []
    middle = statistics.median(past) if len(past) >= KNOWN else 0.0
    judged = n >= MINIMUM_N and (word != "freshness" or len(past) >= KNOWN)
    if n >= MINIMUM_N:
        past[:] = [*past, share][-REMEMBERED:]
    against = "its last windows" if word in USUAL else "none at all"
    return _verdict(word, judged, max(share - middle, 0.0), MARGIN, share - middle, n, against)


def _columns(features: Any, reference: Reference) -> list[Verdict]:
    """Columns that went missing, and columns that lie at one end of all that was seen in training: another unit, another scale.

    Not those whose windows were still filling then: they lie there because they have filled.
    """
    old = np.sum(np.array(reference.counts, float), 0)
    old, new = (x / np.maximum(x.sum(1, keepdims=True), 1) for x in (old, features.astype(float)))
    n = int(features[0].sum())
    missing = new[:, MISSING] - old[:, MISSING]
    last = np.array([max(len(edges) - 2, 0) for edges in reference.edges])
    rows = np.arange(len(last))
    lowest, highest = new[:, 0], new[rows, last] + new[:, UNSEEN]
    several = (last > 0) & np.array([name not in reference.filling and not are_two_values(edges)
                                     for name, edges in zip(reference.features, reference.edges, strict=True)])
    crowded = np.where(several & (old[:, 0] <= BEFORE), lowest, 0)
    crowded = np.maximum(crowded, np.where(several & (old[rows, last] <= BEFORE), highest, 0))
    return [_verdict(word, True, max(float(shares.max()), 0.0), limit, float(shares.max()), n, reference.name,
                     [(reference.features[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")[:3]])
            for word, shares, limit in (("null-share", missing, MARGIN), ("scale", crowded, CROWDED))]


def _verdict(word: str, judged: bool, statistic: float, threshold: float, effect: float, n: int, against: str,
             contributors: Sequence[tuple[str, float]] = ()) -> Verdict:
    status: Any = "INSUFFICIENT_DATA" if not judged else "ALARM" if statistic >= threshold else "OK"
    return Verdict(word, status, statistic, threshold, effect, n, None, None, against, None, None, tuple(contributors))


