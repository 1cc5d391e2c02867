"""What training and scoring agree on for a model, and what a use case is: its models with all that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from feature_repo.rules import Rule
from feature_repo.views import DAY_MS, HOUR_MS, FeatureService, FeatureView

__all__ = ["Absence", "Bands", "CanaryPolicy", "DriftPolicy", "Emission", "Fairness", "ModelSpec", "Outcomes", "ReasonCode", "Schedule",
           "Slice", "UseCase"]


@dataclass(frozen=True)
class Outcomes:
    """The label of a scored event is ``field`` of the record on ``topic`` that has its id and time; the highest revision counts."""

    topic: str
    field: str


@dataclass(frozen=True)
class Absence:
    """The label of a scored event is 1 where its subject has no record on ``topic`` in the label delay after it, else 0.

    Nobody sends it: it is read from the log once that time is over.
    """

    topic: str


@dataclass(frozen=True)
class Schedule:
    """A model is asked every ``every_ms`` for each entity that has a record in the set of ``view`` of the ``active_ms`` before."""

    view: FeatureView
    every_ms: int
    active_ms: int


@dataclass(frozen=True)
class Slice:
    """Events of which ``chosen`` says so, by their event time in ms; their losses are watched by themselves."""

    name: str
    chosen: Callable[[int], bool]


@dataclass(frozen=True)
class ReasonCode:
    """What is said where ``feature`` raised a score. A code is never given to another feature; words may be improved."""

    feature: str
    code: str
    words: str


@dataclass(frozen=True)
class Fairness:
    """How alike a group and all other events must be treated; None: that is told, and not judged.

    ``parity_ratio``: the share of its events that alert, over that of the others, lies between this and its inverse (0.8: the four-fifths
    rule of the Uniform Guidelines on Employee Selection Procedures, 1978). ``tpr_gap``: of events with a true label, the shares that alert
    differ by at most this (equal opportunity: Hardt, Price, Srebro 2016).
    """

    parity_ratio: float | None = 0.8
    tpr_gap: float | None = 0.1


@dataclass(frozen=True)
class Bands:
    """Groups of scored events by the value of one feature: below the first edge, from each edge to the next; null is a group of its own.

    In each a candidate must be as good as the champion; with ``fairness`` they must be treated alike, too.
    """

    feature: str
    edges: tuple[float, ...]
    fairness: Fairness | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Lowest band first, null last."""
        texts = [f"{edge:g}" for edge in self.edges]
        inner = [f"{self.feature} {low} to {high}" for low, high in pairwise(texts)]
        return (f"{self.feature} below {texts[0]}", *inner, f"{self.feature} from {texts[-1]}", f"{self.feature} unknown")


@dataclass(frozen=True)
class DriftPolicy:
    """How a model is watched, and when it may be retrained. Times are stream time.

    Parameters
    ----------
    window_ms
        What a verdict is given on; a whole number of hours that divides a week, so that windows are compared with the same one of the week.
    age_ms
        A loss counts when its prediction is this old, with what was known of it by then: so all are compared at equal maturity.
    false_alarms, days
        The budget: at most so many wasted retrains in so many days.
    cluster
        How many events count as one because they come together (``budget.verify`` finds it).
    echo_ms
        How long after events were lost or wrong what is predicted is no evidence of drift: windows of features still hold that, and what
        is known of it comes a label delay later.
    labelled_ms
        How much time since the suspected start of a drift must have come of age before a retrain is asked for: a candidate has to learn
        from some of it, and be judged on the rest.
    retrains_per_week, cooldown_ms, labels
        Of the governor: how many retrains a week, how long and for how many matured labels after each it waits.
    calendar_ms, label_volume
        A retrain is asked for once in each such period, and each time that so many labels more have matured, whatever the stream says.
    """

    age_ms: int
    window_ms: int = DAY_MS
    false_alarms: float = 1.0
    days: float = 90.0
    slices: tuple[Slice, ...] = ()
    cluster: float = 1.0
    echo_ms: int = 0
    labelled_ms: int = 0
    retrains_per_week: int = 2
    cooldown_ms: int = 2 * DAY_MS
    labels: int = 1_000
    calendar_ms: int | None = None
    label_volume: int | None = None

    @property
    def week_windows(self) -> int:
        """Windows of a week; 1 where they do not divide it: then none is like another."""
        whole = self.window_ms % HOUR_MS == 0 and 7 * DAY_MS % self.window_ms == 0
        return 7 * DAY_MS // self.window_ms if whole else 1


@dataclass(frozen=True)
class CanaryPolicy:
    """How a retrain's candidate is released: ``steps`` are shares of 10,000; each is held for ``hold_ms``, and without enough evidence at
    ``deadline_ms`` a person is asked (stream time). ``alpha``: at most so probably is one taken back that is no worse."""

    steps: tuple[int, ...] = (100, 500, 2500, 5000)
    hold_ms: int = DAY_MS
    deadline_ms: int = 7 * DAY_MS
    alpha: float = 0.05


@dataclass(frozen=True)
class ModelSpec:
    """What training and scoring agree on for one model.

    ``label`` is its name in words, ``labels`` how it comes about, ``label_delay_ms`` after which it is known. ``subject`` is the
    entity that alerts are counted by; where a true one ``blocks`` it, it is not judged again. ``defaults`` fill the vector, by feature
    name, when the online store cannot be read (all else is null); they are chosen so that a degraded score leans on the event itself.
    ``baselines`` are the single features that a model has to beat; ``rules`` what must hold of training rows beyond what follows from
    the views. Without ``drift`` it is not monitored. ``groups`` are looked at one by one before a candidate is released; with
    ``risk_class`` person it is released only when somebody has approved what the gates saw. ``reasons`` has a code for each feature. With
    a ``canary`` policy what passes its gates begins as one; without, it is the champion at once.
    """

    name: str
    service: FeatureService
    label: str
    labels: Outcomes | Absence
    label_delay_ms: int
    subject: str
    alerts_per_day: int
    trees: int
    depth: int
    learning_rate: float
    seed: int
    baselines: tuple[str, ...]
    blocks: bool = False
    schedule: Schedule | None = None
    defaults: tuple[tuple[str, float], ...] = ()
    rules: tuple[Rule, ...] = ()
    drift: DriftPolicy | None = None
    groups: tuple[Bands, ...] = ()
    reasons: tuple[ReasonCode, ...] = ()
    risk_class: Literal["automatic", "person"] = "automatic"
    canary: CanaryPolicy | None = None

    @property
    def subject_word(self) -> str:
        return self.subject.removesuffix("_id")


@dataclass(frozen=True)
class Emission:
    """A record that a row of recorded or simulated history becomes: it arrives on ``topic`` ``delay_ms`` after the row.

    With ``when`` only rows that say something of this field become one.
    """

    topic: str
    delay_ms: int = 0
    when: str = ""


@dataclass(frozen=True)
class UseCase:
    """One use case, under the name that its traffic has in ``schemas.use_cases``. Each model has a feature service of its own.

    ``emissions`` are in the order in which they are published: what scoring reads comes before what is scored.
    """

    name: str
    models: tuple[ModelSpec, ...]
    emissions: tuple[Emission, ...]

    @property
    def services(self) -> tuple[FeatureService, ...]:
        return tuple(spec.service for spec in self.models)

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """Each view once, in the order of the services."""
        return tuple({view.name: view for service in self.services for view in service.views}.values())
