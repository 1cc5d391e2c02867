"""A game day: what can go wrong is planted in a running system, one thing after another, and what the monitors made of it is scored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from feature_repo.fraud import FRAUD
from feature_repo.views import DAY_MS
from schemas.errors import SettingsError
from schemas.monitoring import Detection, RetrainRequest
from schemas.settings import Settings
from services.loop_record import LoopRecord, read_loop
from services.planting import KINDS, Plant, parse_plant
from services.rehearsal import Rehearsal, Stage
from services.runtime.embedded import Runtime

__all__ = ["ENOUGH_DAYS", "PROGRAMME", "Played", "last_day", "play", "score", "timetable"]

PROGRAMME = ("skew@55", "duplicates@57", "outage@59", "nulls@70", "label-delay@81", "concept@106", "covariate@130", "prior@138", "unit@146")
"""Far enough apart that each is over, with its echo and its labels, before the next begins; what stays in windows for a month is last."""
LABELLED_MS = FRAUD.drift.age_ms if FRAUD.drift is not None else 0
LABELLED = ("concept", "performance")
ENOUGH_DAYS = 21
"""After the last plant began: a change of concept is found when its labels are of age, and a retrain has to learn from some more."""


@dataclass(frozen=True)
class Played:
    """One plant. ``detected``: signal -> days from its start to the end of the window that said so."""

    kind: str
    day: int
    days: int
    detected: dict[str, float]
    unexpected: list[str]
    retrains: int
    passed: bool
    why: str


def timetable(only: Collection[str], start_ms: int) -> list[Plant]:
    """The whole programme, or what of it is in ``only``. Raises SettingsError for what is not."""
    if unknown := sorted(set(only) - KINDS.keys()):
        raise SettingsError(f"nothing is called {unknown[0]!r}", hint=f"there are {', '.join(KINDS)}")
    plants = [parse_plant(text, start_ms) for text in PROGRAMME]
    return [plant for plant in plants if not only or plant.kind in only]


def last_day(plants: Sequence[Plant], start_ms: int) -> int:
    """How many days have to be simulated."""
    return max((min(plant.end_ms, plant.start_ms + ENOUGH_DAYS * DAY_MS) - start_ms) // DAY_MS + _late(plant) for plant in plants)


def play(stage: Stage, plants: Sequence[Plant], settings: Settings, runtime: Runtime, tell: Callable[[str], None],
         step: Callable[[int, int], None]) -> dict[str, Any]:
    """Simulate ``stage`` with ``plants`` on ``runtime`` and score what was said."""
    from jobs.spark import session

    played = Rehearsal(stage, settings, plants, tell, step)
    with played.on(runtime):
        played.until_training()
        with session(settings, "headrace-gameday") as spark:
            played.train(spark)
            played.play()
        record = read_loop(runtime.kafka, FRAUD.name)
    scored, strays = score(record, plants, stage.start_ms)
    return {"played": [asdict(each) for each in scored], "passed": sum(each.passed for each in scored), "of": len(scored),
            "false_alarms": strays, "retrains": len(record.requests), "promoted": len(record.ended("promoted")),
            "wasted": len(record.ended("rejected")), "seconds": {name: round(took, 1) for name, took in played.seconds.items()}}


def score(record: LoopRecord, plants: Sequence[Plant], start_ms: int) -> tuple[list[Played], list[str]]:
    """What was said of each plant, and the alarms that are of none of them."""
    cause = {each.detection_id: _cause(each, plants) for each in record.detections}
    strays = [_told(each, start_ms) for each in record.detections if cause[each.detection_id] is None]
    return [_played(plant, record, cause, start_ms) for plant in plants], strays


def _played(plant: Plant, record: LoopRecord, cause: dict[str, Plant | None], start_ms: int) -> Played:
    kind = KINDS[plant.kind]
    own = [each for each in record.detections if cause[each.detection_id] == plant]
    detected: dict[str, float] = {}
    for each in own:
        detected.setdefault(each.signal, (each.until_ms - plant.start_ms) / DAY_MS)
    unexpected = sorted(detected.keys() - kind.expected - kind.allowed)
    retrains = sum(_of(request, plant, cause) for request in record.requests)
    why = ("not found" if not detected.keys() & kind.expected else f"unexpected: {', '.join(unexpected)}" if unexpected
           else "no retrain followed" if kind.retrain == "must" and not retrains
           else "a retrain followed" if kind.retrain == "no" and retrains else "")
    days = min(plant.end_ms - plant.start_ms, ENOUGH_DAYS * DAY_MS) // DAY_MS
    return Played(plant.kind, (plant.start_ms - start_ms) // DAY_MS, days, detected, unexpected, retrains, not why, why)


def _of(request: RetrainRequest, plant: Plant, cause: dict[str, Plant | None]) -> bool:
    return any(cause.get(name) == plant for name in request.detections)


def _cause(detection: Detection, plants: Sequence[Plant]) -> Plant | None:
    """The plant that an alarm is of: one that was on when what it speaks of happened; one that should have been found by it first."""
    lag_ms = LABELLED_MS if detection.family in LABELLED or detection.signal == "labels" else 0
    there = [plant for plant in plants
             if plant.start_ms < detection.until_ms <= plant.end_ms + lag_ms + (KINDS[plant.kind].echo_days + 1) * DAY_MS]
    return max(there, key=lambda plant: (detection.signal in KINDS[plant.kind].expected, detection.signal in KINDS[plant.kind].allowed,
                                         plant.start_ms), default=None)


def _late(plant: Plant) -> int:
    """Days after its end until everything that may be said of it is said."""
    return 1 if KINDS[plant.kind].expected <= FEED_AT_ONCE else LABELLED_MS // DAY_MS + 2


FEED_AT_ONCE = frozenset({"volume", "clock-skew", "duplicates", "null-share", "scale"})


def _told(detection: Detection, start_ms: int) -> str:
    return f"{detection.signal} on day {(detection.from_ms - start_ms) // DAY_MS}"
