"""Pairs and what became known of their events, whichever is read first; a label counts at the age at which all labels count. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from schemas.evaluations import Evaluation
from schemas.shadow import ShadowScore

__all__ = ["PairBook", "Told"]

MOST_EARLY = 200_000
"""Evaluations that wait for a pair, at most: a shadow that is slower than labels are is waited for this long."""


@dataclass(slots=True)
class Told:
    """A pair with the label of the highest ``revision`` that was known when the prediction had come of age; -1: none was."""

    pair: ShadowScore
    partition: int
    revision: int = -1
    label: bool = False


class PairBook:
    """Of the pairs of one shadow that are ``wanted``, each once. Evaluations of other predictions that it has passed are forgotten.

    ``age_ms``: after which a label counts; what is told later changes nothing, so that all pairs are judged at the same age.
    """

    def __init__(self, wanted: Callable[[ShadowScore], bool], age_ms: int) -> None:
        self._wanted, self._age_ms = wanted, age_ms
        self._told: dict[str, Told] = {}
        self._early: dict[str, list[Evaluation]] = {}
        self._passed_ms: dict[int, int] = {}

    def take_pair(self, partition: int, pair: ShadowScore) -> None:
        self._passed_ms[partition] = max(pair.predicted_ms, self._passed_ms.get(partition, 0))
        waiting = self._early.pop(pair.prediction_id, ())
        if not pair.degraded and self._wanted(pair) and pair.prediction_id not in self._told:
            self._told[pair.prediction_id] = Told(pair, partition)
            for evaluation in waiting:
                self._tell(evaluation)

    def take_evaluation(self, partition: int, evaluation: Evaluation) -> None:
        """``partition`` is that of the prediction, as it is on ``evaluations``."""
        if evaluation.prediction_id in self._told:
            self._tell(evaluation)
        elif evaluation.predicted_ms >= self._passed_ms.get(partition, 0):  # its pair may still come
            self._early.setdefault(evaluation.prediction_id, []).append(evaluation)
            if len(self._early) > MOST_EARLY:
                del self._early[next(iter(self._early))]

    def pairs(self) -> list[Told]:
        return list(self._told.values())

    def matured(self, until_ms: Mapping[int, int]) -> Iterator[Told]:
        """Those that are of age, with a label. ``until_ms``: partition -> time before which all that was complete is published."""
        return (told for told in self._told.values() if told.revision >= 0
                and told.pair.predicted_ms + self._age_ms < until_ms.get(told.partition, 0))

    def of_age_ms(self, until_ms: Mapping[int, int]) -> int:
        """All pairs of what arrived before it are of age, in every partition that has any."""
        return min((until_ms.get(partition, 0) for partition in self._passed_ms), default=0) - self._age_ms

    def _tell(self, evaluation: Evaluation) -> None:
        told = self._told[evaluation.prediction_id]
        if evaluation.at_ms - told.pair.predicted_ms <= self._age_ms and evaluation.revision > told.revision:
            told.revision, told.label = evaluation.revision, evaluation.label
