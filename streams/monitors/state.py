"""What a monitor remembers of a model: plain data, in one key with the offsets that it stands for and with what it has yet to say."""

from __future__ import annotations

import msgspec

from schemas.monitoring import RetrainDecision, WindowPart
from streams.detectors.losses import LossState
from streams.detectors.shapes import ShapeState
from streams.governor import Governor
from streams.policy import History

__all__ = ["Cohort", "MonitorState", "Pending", "Said", "VersionState"]


class Said(msgspec.Struct, frozen=True):
    """A record to publish on ``topic``: it is decided, and published again until that is acknowledged."""

    topic: str
    key: str
    at_ms: int
    value: str


class Pending(msgspec.Struct, frozen=True):
    """Losses of one hour from one part of a window (see ``streams.monitors.losses``), until they are old enough."""

    gaps: list[int]
    retracted: list[int]


class Cohort(msgspec.Struct):
    """The predictions of one window: how many, and what became known of them so far."""

    n: int = 0
    table: list[int] = msgspec.field(default_factory=lambda: [0, 0, 0, 0])
    scores: list[list[int]] = []


class VersionState(msgspec.Struct):
    used_ms: int = 0
    losses: dict[str, LossState] = {}
    shapes: dict[str, ShapeState] = {}
    pending: dict[str, dict[int, list[Pending]]] = {}
    cohorts: dict[int, Cohort] = {}


class MonitorState(msgspec.Struct):
    """``marks``: topic -> offset up to and with which its records are in. ``until``: place -> it has told all windows before.

    Windows before ``judged_ms`` are judged. ``tainted``: those in which the feed was at fault, or whose features still hold such a
    fault, for as long as their losses are to come; ``miscounted``: those in which events were lost, repeated or misdated. ``alarming``:
    version and signal -> the detection that began it. ``episode_matured``: labels that had matured when the open episode began.
    ``asked``: calendar or labels -> up to which period, or volume, it was asked for.
    """

    marks: dict[str, int] = {}
    until: dict[str, int] = {}
    parts: dict[int, list[WindowPart]] = {}
    began_ms: int | None = None
    judged_ms: int | None = None
    quiet: int = 0
    pins: dict[str, int] = {}
    matured: int = 0
    episode_matured: int = 0
    asked: dict[str, int] = {}
    champion: str | None = None
    versions: dict[str, VersionState] = {}
    usual: dict[str, list[float]] = {}
    tainted: list[int] = []
    miscounted: list[int] = []
    alarming: dict[str, str] = {}
    told: list[str] = []
    detected: dict[str, int] = {}
    windows: int = 0
    history: History = History()
    governor: Governor = Governor()
    decisions: list[RetrainDecision] = []
    outbox: list[Said] = []
