"""From predictions and the versions that shadow them to pairs: each version scores the very vector that was logged. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from feature_repo.bundle import Model
from feature_repo.models import ModelSpec
from schemas.records import Id, TimeMs
from schemas.shadow import ShadowScore, shadow_id

__all__ = ["paired", "prediction_decoder", "scored_pairs"]


def prediction_decoder(spec: ModelSpec) -> msgspec.json.Decoder[Any]:
    """Reads of a prediction of ``spec`` what a pair needs, with ``subject`` for the model's subject, and passes over the rest."""
    fields: list[Any] = [
        ("prediction_id", Id), ("event_id", Id), ("event_time", TimeMs), ("subject", Id), ("model", str), ("model_version", str | None),
        ("service_hash", str), ("score", float | None), ("threshold", float | None), ("alert", bool | None), ("degraded", bool),
        ("features", list[float | None]), ("arrival_ms", TimeMs), ("epoch", int | None, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Paired", fields, rename={"subject": spec.subject}, frozen=True, gc=False))


def paired(prediction: Any, spec: ModelSpec) -> bool:
    """Whether a decoded ``prediction`` can have pairs at all: it is of ``spec``, has a score, and a release made it."""
    return prediction.model == spec.name and None not in (prediction.score, prediction.model_version, prediction.epoch)


def scored_pairs(predictions: Sequence[Any], wanted: Sequence[Sequence[str]], models: Mapping[str, Model]) -> list[list[ShadowScore]]:
    """For each prediction its pairs with the versions that are ``wanted`` of it, in that order.

    A version that is not among ``models``, or was trained on other features than the prediction's, has none.
    """
    rows: dict[str, list[int]] = {}
    for row, (prediction, versions) in enumerate(zip(predictions, wanted, strict=True)):
        for version in versions:
            if version in models and models[version].manifest.service_hash == prediction.service_hash:
                rows.setdefault(version, []).append(row)
    scores: dict[tuple[int, str], float] = {}
    for version, own in rows.items():
        matrix = np.array([predictions[row].features for row in own], dtype=np.float64)  # null becomes NaN
        scores |= {(row, version): score for row, score in zip(own, models[version].score(matrix).tolist(), strict=True)}
    return [[_pair(prediction, version, scores[row, version], models[version].threshold)
             for version in versions if (row, version) in scores]
            for row, (prediction, versions) in enumerate(zip(predictions, wanted, strict=True))]


def _pair(made: Any, version: str, score: float, threshold: float) -> ShadowScore:
    return ShadowScore(shadow_id(made.prediction_id, version), made.prediction_id, made.event_id, made.event_time, made.subject, made.model,
                       version, score, threshold, score >= threshold, made.model_version, made.epoch, made.score, made.threshold,
                       made.alert, made.degraded, made.arrival_ms)
