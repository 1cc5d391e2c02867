"""What monitors say to each other and to the rest: counts of windows, detections, decisions, requests; and what runners and people say.

Times are stream time in ms. Ids are derived from what is said, so what is said again after a crash has the id that it had.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.approvals import APPROVAL, APPROVALS
from schemas.contracts import Contract
from schemas.records import Id, TimeMs

__all__ = ["ASKS", "CONTROL", "DECISIONS", "DETECTIONS", "ECHOING", "REQUESTS", "RUNS", "WINDOWS", "Contributor", "Detection", "Evaluated",
           "Predicted", "RetrainAsk", "RetrainDecision", "RetrainRequest", "RunRecord", "SignalSeen", "WindowPart", "derived_id"]

WINDOWS, DETECTIONS, DECISIONS, REQUESTS = "monitor-windows", "drift-detections", "retraining-decisions", "retraining-requests"
RUNS, ASKS = "retraining-runs", "retrain-asks"
ECHOING = frozenset({"volume", "null-share", "scale"})
"""Faults of a feed after which features are wrong for as long as their windows hold them: events were lost, or were not what they should
be."""

Version = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$")]
"""What a person may write where it becomes the name of a file."""


def derived_id(*parts: object) -> str:
    """16 hex digits that name ``parts``.

    >>> derived_id("fraud", "7", "losses", "", 0)
    'a7389eafd05fa1a1'
    """
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class Predicted(msgspec.Struct):
    """Predictions of one version: ``features`` int[F][bins] and ``score`` int[bins] in the reference's bins, null where it has none.

    ``last_ms`` is when it last predicted as the champion; 0 where it did so in a canary only.
    """

    n: int = 0
    last_ms: int = 0
    features: list[list[int]] | None = None
    score: list[int] | None = None


class Evaluated(msgspec.Struct):
    """Evaluations of one version that came in time (the policy's age).

    ``losses``: stream -> hour of the predictions -> numbers of right ones before each wrong one, and after the last; ``retracted``: the
    same -> [right, wrong] taken back by a revision. By window of the predictions: ``table`` [tn, fp, fn, tp], ``scores``
    [label][bin of the reference's scores].
    """

    losses: dict[str, dict[int, list[int]]] = {}
    retracted: dict[str, dict[int, list[int]]] = {}
    table: dict[int, list[int]] = {}
    scores: dict[int, list[list[int]]] = {}


class WindowPart(msgspec.Struct):
    """What one partition of a topic holds of a model's window.

    The window begins at ``window_ms``; there is nothing between its end and ``until_ms``. ``position`` is the offset after its last
    record, ``source_position`` that after the source's last scored one (-1: none so far). ``sample``: the smallest hashes of
    prediction ids, ``seen`` how often each was there. Counts of partitions add up.
    """

    part_id: Id
    model: str
    topic: str
    partition: int
    window_ms: TimeMs
    until_ms: TimeMs
    position: int
    source_position: int = -1
    counts: dict[str, int] = {}
    sample: list[int] = []
    seen: list[int] = []
    versions: dict[str, Predicted] = {}
    evaluated: dict[str, Evaluated] = {}


class SignalSeen(msgspec.Struct, frozen=True):
    """One signal at the close of a window; ``status`` as detectors say it."""

    signal: str
    family: str
    slice: str
    status: str
    statistic: float
    threshold: float
    effect: float
    n: int


class Contributor(msgspec.Struct, frozen=True):
    name: str
    share: float


class Detection(msgspec.Struct, frozen=True):
    """An alarm that begins. It alarms where ``statistic`` reaches ``threshold``; ``effect`` is in the signal's own unit, over ``n`` events.

    The window that closed is [``from_ms``, ``until_ms``); ``false_alarms_per_90_days`` what this signal may say on a stream that has not
    changed (null: nothing is promised); ``contributors`` by their share of the evidence, largest first; ``episode``
    is the one that is open: all signals of one cause share it.
    """

    detection_id: Id
    model: str
    model_version: str
    signal: str
    family: str
    slice: str
    from_ms: TimeMs
    until_ms: TimeMs
    statistic: float
    threshold: float
    effect: float
    n: int
    reference: str
    suspected_start_ms: int | None
    contributors: list[Contributor]
    false_alarms_per_90_days: float | None
    episode: str | None


class RetrainDecision(msgspec.Struct, frozen=True):
    """What was decided and why, "no" too. ``by`` policy: ``what`` is the level; ``by`` governor: what happened (``streams.governor``).

    ``source`` and ``offset`` name the input that was decided on, so a runner finds the ``lease`` that its claim got.
    """

    decision_id: Id
    model: str
    model_version: str
    at_ms: TimeMs
    by: Literal["policy", "governor"]
    what: str
    request: bool
    reason: str
    episode: str | None
    evidence: list[str]
    retrain_id: str
    lease: int
    source: str
    offset: int
    signals: list[SignalSeen]
    performance: dict[str, float | None]


class RetrainRequest(msgspec.Struct, frozen=True):
    """A granted retrain. ``pins``: topic/partition -> the offset before which its monitor had read; ``detections`` are the evidence."""

    retrain_id: Id
    model: str
    champion: str
    reference: str
    service_hash: str
    episode: str
    why: str
    at_ms: TimeMs
    pins: dict[str, int]
    detections: list[str]


class RunRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a runner says: it claims what is pending, lives, has a candidate before its gates, has a result. ``lease`` is the claim's."""

    model: str
    runner: Id
    what: Literal["claim", "beat", "evaluating", "promoted", "rejected", "inconclusive", "failed"]
    retrain_id: str = ""
    lease: int = 0
    reason: str = ""


class RetrainAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person asks for a retrain of what stands as ``champion``; the same ``ask_id`` is the same retrain."""

    ask_id: Id
    model: str
    champion: Version
    why: str


def _contract(name: str, record: type[msgspec.Struct], doc: str) -> Contract:
    return Contract(name, 1, record, "headrace", "model", "backward", frozenset(), doc)


CONTROL: dict[str, Contract] = {
    WINDOWS: _contract("monitor-window", WindowPart, "What one partition holds of a model's window: counts that add up."),
    DETECTIONS: _contract("drift-detection", Detection, "An alarm that begins, with its evidence."),
    DECISIONS: _contract("retraining-decision", RetrainDecision, "What policy and governor decided, with the reason."),
    REQUESTS: _contract("retraining-request", RetrainRequest, "A retrain that was granted, with its evidence."),
    RUNS: _contract("retraining-run", RunRecord, "What the runner of a retrain says of it."),
    ASKS: _contract("retrain-ask", RetrainAsk, "A person asks for a retrain."),
    APPROVALS: APPROVAL,
}
"""Topics of one partition: what is said there has one order."""
