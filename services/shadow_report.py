"""Two versions on the same events: how often they decide alike, and which was right once it is known. For ``headrace models compare``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from feature_repo.join_marks import evaluated_ms
from feature_repo.models import ModelSpec, Outcomes
from feature_repo.wire import Wire
from schemas.errors import ContractError, FindingError
from schemas.evaluations import EVALUATION, EVALUATIONS
from schemas.settings import Settings
from schemas.shadow import SHADOW, ShadowScore
from schemas.topics import shadow_topic
from services.ledger import read_topic
from services.pair_book import PairBook, Told
from services.paired import Bounds, Decided, confidence, first_of_subjects, losses
from services.runtime.endpoints import Endpoints
from services.shadow_list import maturity_ms
from services.words import iso

__all__ = ["compare_pairs", "decided", "lines", "read_pairs"]

SOURCE = "Waudby-Smith and Ramdas 2023, fixed bets; one value a subject"


def read_pairs(settings: Settings, at: Endpoints, spec: ModelSpec, first: str, second: str) -> tuple[list[Told], list[Told]]:
    """All pairs of the two versions that Kafka holds, whichever of them was live, and those whose labels have come of age.

    It keeps them in memory: about 1 kB a pair. Raises LogError or StoreError.
    """
    book = PairBook(lambda pair: {pair.champion, pair.shadow_version} == {first, second} and pair.model == spec.name, maturity_ms(spec))
    for message in read_topic(at.kafka, shadow_topic(spec.service.predictions)):
        with suppress(ContractError):
            book.take_pair(message.partition(), SHADOW.decode(message.value()))
    if not isinstance(spec.labels, Outcomes):
        return book.pairs(), []
    for message in read_topic(at.kafka, EVALUATIONS):
        with suppress(ContractError):
            book.take_evaluation(message.partition(), EVALUATION.decode(message.value()))
    wire = Wire(at.redis, 5000)
    try:
        return book.pairs(), list(book.matured(evaluated_ms(wire, spec, settings.partitions)))
    finally:
        wire.close()


def decided(told: Told, first: str) -> Decided:
    """The pair as a disagreement of ``first`` with the other version."""
    pair = told.pair
    swapped = pair.shadow_version == first
    alerts = (pair.alert, pair.champion_alert) if swapped else (pair.champion_alert, pair.alert)
    return Decided(pair.prediction_id, pair.subject, pair.predicted_ms, *alerts, told.label)


def compare_pairs(pairs: Sequence[Told], matured: Sequence[Told], first: str, second: str) -> dict[str, Any]:
    """Plain values, for JSON. A difference is second - first. Raises FindingError where there are no pairs."""
    if not pairs:
        raise FindingError(f"no event was scored by both {first} and {second}",
                           hint="put one in shadow of the other; pairs come from then on, predictions.shadow has them")
    found = [decided(told, first) for told in pairs]
    labelled = [decided(told, first) for told in matured]
    threshold = _threshold(pairs[0].pair, first)
    gaps = np.array([abs(told.pair.score - told.pair.champion_score) for told in pairs])
    rates = [sum(each.first for each in found) / len(found), sum(each.second for each in found) / len(found)]
    lost = np.array([losses(each, threshold) for each in labelled]).reshape(-1, 2)
    mean_loss: list[Any] = lost.mean(0).tolist() if len(lost) else [None, None]
    disagreed = first_of_subjects(each for each in labelled if each.first != each.second)
    values = [second - first for first, second in (losses(each, threshold) for each in disagreed)]
    precise = [_precision([each for each in labelled if (each.second if of else each.first)]) for of in (0, 1)]
    return {
        "first": first, "second": second, "pairs": len(found), "subjects": len({each.subject for each in found}),
        "from_ms": min(each.at_ms for each in found), "to_ms": max(each.at_ms for each in found), "matured": len(labelled),
        "positives": sum(each.label for each in labelled),
        "alert_rate": {"first": rates[0], "second": rates[1], "difference": rates[1] - rates[0]},
        "agreement": {"same_decision": sum(each.first == each.second for each in found) / len(found),
                      "mean_score_gap": float(gaps.mean()), "largest_score_gap": float(gaps.max())},
        "loss": {"first": mean_loss[0], "second": mean_loss[1], "difference": mean_loss[1] - mean_loss[0] if len(lost) else None,
                 "threshold": threshold, "disagreeing_subjects": len(values), "second_wrong": sum(value > 0 for value in values),
                 "of_first_disagreements": _plain(confidence(values))},
        "precision": {"first": _plain(precise[0]), "second": _plain(precise[1]), "difference": {
            "mean": precise[1].mean - precise[0].mean if precise[0].n and precise[1].n else None,
            "low": precise[1].low - precise[0].high, "high": precise[1].high - precise[0].low}},
        "bounds": f"hold at every moment at once, with probability 95 % each: {SOURCE}",
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """``facts`` of ``compare_pairs`` as text."""
    first, second, loss, precision = facts["first"], facts["second"], facts["loss"], facts["precision"]
    bounds, gap, rates = loss["of_first_disagreements"], precision["difference"], facts["alert_rate"]
    agreement = facts["agreement"]
    told = [f"{facts['pairs']:,} events scored by both, {iso(facts['from_ms'])} to {iso(facts['to_ms'])}; "
            f"{facts['matured']:,} of them labelled and of age, {facts['positives']:,} positive",
            f"{'':<32}{first:>12}{second:>12}{'difference':>12}",
            f"{'alert rate':<32}{rates['first']:>12.4%}{rates['second']:>12.4%}{rates['difference']:>+12.4%}"]
    if facts["matured"]:
        told.append(f"{'loss of a decision':<32}{loss['first']:>12.5f}{loss['second']:>12.5f}{loss['difference']:>+12.5f}")
    shown = [f"{part['mean']:.4f}" if part["n"] else "" for part in (precision["first"], precision["second"])]
    between = f"{gap['mean']:>+12.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap["mean"] is not None else ""
    told += [f"{'precision, first alert a subject':<32}{shown[0]:>12}{shown[1]:>12}{between}",
             f"same decision on {agreement['same_decision']:.3%}; scores differ by {agreement['mean_score_gap']:.4f} on average, "
             f"{agreement['largest_score_gap']:.4f} at most",
             f"{loss['disagreeing_subjects']} subjects on which they first disagreed: {second} was wrong on {loss['second_wrong']}; "
             f"{second} - {first} {bounds['mean']:+.4f} [{bounds['low']:+.4f}, {bounds['high']:+.4f}] of the larger cost each",
             f"bounds {facts['bounds']}"]
    return told


def _threshold(pair: ShadowScore, first: str) -> float:
    return pair.threshold if pair.shadow_version == first else pair.champion_threshold


def _precision(alerts: Sequence[Decided]) -> Bounds:
    """Of the first alert of each subject, in [0, 1]; each bound is missed with 1.25 %, so that two of them make a difference."""
    told = confidence([1.0 if each.label else -1.0 for each in first_of_subjects(alerts)], 0.025)
    return Bounds((told.mean + 1) / 2 if told.n else 0.0, (told.low + 1) / 2, (told.high + 1) / 2, told.n)


def _plain(bounds: Bounds) -> dict[str, float]:
    return {"mean": bounds.mean, "low": bounds.low, "high": bounds.high, "n": bounds.n}
