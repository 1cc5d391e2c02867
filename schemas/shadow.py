"""What another version says of an event: its score of the very vector that a prediction was made from. The two are a pair."""

from __future__ import annotations

import msgspec

from schemas.contracts import Contract
from schemas.records import Id, TimeMs

__all__ = ["SHADOW", "ShadowScore", "shadow_id"]


class ShadowScore(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """``score`` is that of ``shadow_version``, whose threshold makes it an ``alert``; what has ``champion`` in its name is the
    prediction's: who made it, with what score, under the release of that ``epoch``. ``subject`` is the entity that alerts are counted
    by, ``predicted_ms`` when the event arrived. A ``degraded`` prediction's vector holds defaults, of the champion's choice.
    """

    shadow_id: str
    prediction_id: Id
    event_id: Id
    event_time: TimeMs
    subject: Id
    model: Id
    shadow_version: Id
    score: float
    threshold: float
    alert: bool
    champion: Id
    epoch: int
    champion_score: float
    champion_threshold: float
    champion_alert: bool
    degraded: bool
    predicted_ms: TimeMs


def shadow_id(prediction_id: str, version: str) -> str:
    """One pair for each prediction and shadow, however often it is written."""
    return f"{prediction_id}:{version}"


SHADOW = Contract("shadow-score", 1, ShadowScore, "headrace", "subject", "backward", frozenset({"subject"}),
                  "What a version on the shadow list says of a prediction's own vector, beside what the champion said.")
