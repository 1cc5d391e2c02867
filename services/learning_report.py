"""What ``headrace drift learn`` says: a learner run in three ways, always beside the no-change forecast; did the loop help?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec

from feature_repo.models import DriftPolicy
from feature_repo.views import DAY_MS
from services.labelled_rows import LabelledRows
from services.online_learning import Governed, Plan, frozen, governed, updating
from streams.learners import Learner
from streams.skill import majority, no_change, skill

__all__ = ["compare", "table", "with_last_label"]


def with_last_label(stream: LabelledRows, delay: int) -> LabelledRows:
    """The same rows, with what the no-change forecast knows as one more feature."""
    known = no_change(stream.labels, delay).tolist()
    return LabelledRows([{**row, "last label": float(last)} for row, last in zip(stream.rows, known, strict=True)], stream.labels)


def compare(stream: LabelledRows, plan: Plan, policy: DriftPolicy, kind: str, tell: Callable[[str, int], None]) -> dict[str, Any]:
    """Everything as plain values; ``tell`` hears which way it is and the row. Raises SettingsError where the rows are too few."""
    plan.check(len(stream.rows))
    labels = stream.labels[plan.start:]
    unchanged = no_change(stream.labels, plan.delay)
    loop = governed(stream, plan, policy, lambda: Learner(kind), lambda row: tell("governed", row))
    predicted = {
        "no-change": unchanged[plan.start:],
        "last label, at once": no_change(stream.labels)[plan.start:],
        "majority": majority(stream.labels, plan.delay)[plan.start:],
        "frozen": frozen(stream, plan, lambda: Learner(kind)),
        "governed": loop.predicted,
        "updating": updating(stream, plan, lambda: Learner(kind), lambda row: tell("updating", row)),
    }
    if plan.delay == 1:
        del predicted["last label, at once"]
    return {
        "learner": kind, "rows": len(stream.rows), "scored_from_row": plan.start, "scored_rows": len(labels), "delay": plan.delay,
        "no_change_of_all_rows": float((no_change(stream.labels)[1:] == stream.labels[1:]).mean()),
        "budget": {"alarms": policy.false_alarms, "days": policy.days},
        "scores": {name: asdict(skill(labels, each, unchanged[plan.start:])) for name, each in predicted.items()},
        "loop": _loop(loop),
    }


def _loop(found: Governed) -> dict[str, Any]:
    """``refused``: how often, by reason, whoever said it; numbers that differ from day to day are left out of a reason."""
    refused = Counter(f"{one.by}: {re.sub(r'[0-9][0-9.,]*', '#', one.reason)}" for one in found.said if one.what in ("waits", "declined"))
    return {
        "alarms": sum(one.what == "alarm" for one in found.said), "requests": sum(one.what == "requested" for one in found.said),
        "refused": dict(refused.most_common()), "released": sum(one.released for one in found.retrains),
        "retrains": [msgspec.to_builtins(each) for each in found.retrains],
        "said": [asdict(one) for one in found.said if one.what != "waits"],
    }


def table(found: dict[str, Any]) -> str:
    loop, budget = found["loop"], found["budget"]
    lines = [f"{found['learner']}, labels {found['delay']} steps late, {found['scored_rows']:,} rows from row "
             f"{found['scored_from_row']:,} on; no-change on all rows {found['no_change_of_all_rows']:.3f}",
             f"{'':<22}{'accuracy':>9}{'kappa':>8}{'kappa-temporal':>16}"]
    lines += [f"{name:<22}{one['accuracy']:>9.3f}{_real(one['kappa']):>8}{_real(one['kappa_temporal']):>16}"
              for name, one in found["scores"].items()]
    lines.append(f"governed: {loop['alarms']} alarms (budget: {budget['alarms']:g} false ones in {budget['days']:g} days), "
                 f"{loop['requests']} requests, {loop['released']} released")
    if loop["alarms"]:
        days = ", ".join(f"{one['at_ms'] / DAY_MS:g}" for one in loop["said"] if one["what"] == "alarm")
        lines.append(f"  alarms that began on day {days}")
    lines += [f"  day {one['at_ms'] / DAY_MS:g} {one['episode'].partition(':')[0]}: {'released' if one['released'] else 'refused'} by "
              f"{one['evidence'][-1]['gate']}, {one['evidence'][-1]['why']}; next {one['rows']:,} rows: old {one['old']:.3f}, new "
              f"{one['new']:.3f}" for one in loop["retrains"]]
    lines += [f"  {number} windows without a retrain, {reason}" for reason, number in loop["refused"].items()]
    return "\n".join(lines)


def _real(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
