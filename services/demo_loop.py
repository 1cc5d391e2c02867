"""What the loop did in a demo: what was planted, what was found, which retrains were asked for and refused, what was released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from feature_repo.fraud import FRAUD
from services.loop_record import Evaluated, LoopRecord, read_evaluated, read_loop
from services.planting import KINDS, Plant
from services.rehearsal import TRAIN_DAY, Stage

__all__ = ["loop_facts"]

FEED = "feed"


def loop_facts(kafka: str, stage: Stage, plants: Sequence[Plant], at_training: float) -> dict[str, Any]:
    """Of a run whose last plant is a concept that changes; ``at_training`` is the first model's average precision on its test days."""
    record, evaluated = read_loop(kafka, FRAUD.name), read_evaluated(kafka, FRAUD.name)
    planted = next((plant for plant in plants if KINDS[plant.kind].retrain == "must"), None)
    planted_ms = planted.start_ms if planted is not None else stage.at_ms(stage.days)
    return {"drift": _drift(record, evaluated, stage, planted), "feed_faults": _faults(record, plants),
            "retrain": {"requested": len(record.requests), "refused_with_reasons": record.refused(),
                        "wasted": len(record.ended("rejected"))},
            "release": {"epochs": [{"epoch": each.epoch, "version": each.champion, "day": _day(stage, each.at_ms), "why": each.why}
                                   for each in record.releases]},
            "average_precision": {"at_training": at_training, **_precision(record, evaluated, stage, planted_ms)}}


def _drift(record: LoopRecord, evaluated: Evaluated, stage: Stage, planted: Plant | None) -> dict[str, Any]:
    """``delay_events``: labelled predictions that were made since it began, by the time that the first alarm came of it."""
    alarms = [each for each in record.detections if each.family != FEED]
    if planted is None:
        return {"planted_at": None, "detected_at": None, "delay_events": None, "false_alarms": len(alarms)}
    found = [each for each in alarms if each.until_ms > planted.start_ms]
    first = found[0] if found else None
    age_ms = FRAUD.drift.age_ms if FRAUD.drift is not None else 0
    seen = None if first is None else len(evaluated.between(planted.start_ms, first.until_ms - age_ms * (first.family in LABELLED)).label)
    return {"planted_at": f"day {_day(stage, planted.start_ms)}",
            "detected_at": None if first is None else f"day {_day(stage, first.until_ms)}",
            "signals": list(dict.fromkeys(each.signal for each in found)), "delay_events": seen, "false_alarms": len(alarms) - len(found)}


LABELLED = ("concept", "performance")


def _faults(record: LoopRecord, plants: Sequence[Plant]) -> dict[str, str]:
    """Fault -> what the monitors said of its days."""
    told = {}
    for plant in plants:
        if KINDS[plant.kind].retrain == "no":
            said = [each.signal for each in record.detections if plant.start_ms < each.until_ms <= plant.end_ms]
            told[plant.kind] = ", ".join(dict.fromkeys(said)) or "nothing"
    return told


def _precision(record: LoopRecord, evaluated: Evaluated, stage: Stage, planted_ms: int) -> dict[str, float | None]:
    """Of what was served: from the first model on until the plant, until the next release, and from then on."""
    from jobs.metrics import average_precision

    released = [each.at_ms for each in record.releases if each.at_ms > planted_ms]
    end_ms = stage.at_ms(stage.days)
    healed_ms = released[0] if released else end_ms
    spans = {"before": (stage.at_ms(TRAIN_DAY), planted_ms), "during": (planted_ms, healed_ms), "after": (healed_ms, end_ms)}
    found = {name: evaluated.between(*span) for name, span in spans.items()}
    return {name: round(average_precision(of.label, of.score), 4) if of.label.any() else None for name, of in found.items()}


def _day(stage: Stage, at_ms: int) -> float:
    return round((at_ms - stage.start_ms) / 86_400_000, 1)
