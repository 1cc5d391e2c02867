"""A prediction that met its outcome. One record for each revision of the label; the id makes a replay say the same again."""

from __future__ import annotations

import msgspec

from schemas.contracts import Contract
from schemas.records import Id, Revision, TimeMs

__all__ = ["EVALUATION", "EVALUATIONS", "Evaluation", "evaluation_id"]

EVALUATIONS = "evaluations"


class Evaluation(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """``label`` is what revision ``revision`` says; ``previous`` what the last one before it said (null: it is the first), so that counts
    can take the old label back. Arrival times are those of the scored event and of the outcome; ``at_ms``, the later of the two, is
    when the pair was complete. ``subject`` is the entity that alerts are counted by.
    """

    evaluation_id: Id
    prediction_id: Id
    event_id: Id
    event_time: TimeMs
    subject: Id
    model: str
    model_version: str | None
    score: float | None
    threshold: float | None
    alert: bool | None
    degraded: bool
    label: bool
    previous: bool | None
    revision: Revision
    predicted_ms: TimeMs
    outcome_ms: TimeMs
    at_ms: TimeMs

    @property
    def delay_ms(self) -> int:
        """From the event to what became known of it."""
        return self.outcome_ms - self.event_time


def evaluation_id(prediction_id: str, revision: int) -> str:
    return f"{prediction_id}:{revision}"


EVALUATION = Contract("evaluation", 1, Evaluation, "headrace", "subject", "backward", frozenset({"subject"}),
                      "A prediction joined with one revision of its outcome.")
