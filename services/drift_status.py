"""What monitors know of each model: level, governor, last windows, what they wait for, false alarms against the budget."""

from __future__ import annotations

from typing import Any

import msgspec

from feature_repo.checkpoints import Checkpoints, monitor_key
from feature_repo.use_cases import models
from feature_repo.views import DAY_MS
from schemas.settings import Settings
from services.words import iso
from streams.detectors.intervals import event_rate_bound
from streams.monitors.state import MonitorState
from streams.monitors.watch import Watch, watched

__all__ = ["read_drift", "table"]


def read_drift(settings: Settings, redis_url: str) -> list[dict[str, Any]]:
    """One entry a monitored model. Raises StoreError where Redis does not answer."""
    checkpoints = Checkpoints(redis_url)
    try:
        found = []
        for watch in watched(models(settings), settings.models, settings.partitions):
            _, data = checkpoints.load(monitor_key(watch.model))
            found.append(_facts(watch, msgspec.json.decode(data, type=MonitorState) if data is not None else MonitorState()))
    finally:
        checkpoints.close()
    return found


def _facts(watch: Watch, state: MonitorState) -> dict[str, Any]:
    """``alarms`` are those that may lead to a retrain; their rate is an upper bound of that of false ones, for some may be true."""
    champion = state.champion or None
    reference = watch.reference(champion) if champion else None
    days = (state.judged_ms - state.began_ms) / DAY_MS if state.judged_ms is not None and state.began_ms is not None else 0.0
    alarms = sum(n for family, n in state.detected.items() if family != "feed")
    behind = min((state.until.get(place, 0) for place in watch.places), default=0)
    governor, last = state.governor, state.decisions[-1] if state.decisions else None
    return {
        "model": watch.model, "champion": champion, "reference": reference.name if reference is not None else None,
        "level": state.history.level, "reason": last.reason if last is not None else None,
        "episode_ms": state.history.episode_ms, "judged_until_ms": state.judged_ms, "windows": state.windows,
        "waits_for": [place for place in watch.places if state.until.get(place, 0) == behind],
        "alarming": sorted(key.partition("|")[2] for key in state.alarming), "feed_faults": state.detected.get("feed", 0),
        "alarms": alarms, "days": round(days, 2),
        "alarms_in_90_days": round(90 * alarms / days, 2) if days else None,
        "alarms_in_90_days_bound": round(90 * event_rate_bound(alarms, days), 2) if days else None,
        "budget_in_90_days": round(90 * watch.policy.false_alarms / watch.policy.days, 2),
        "governor": {"phase": governor.phase, "retrain_id": governor.retrain or None, "lease": governor.lease,
                     "rejected": governor.rejected, "ended": governor.ended, "retrains_this_week": len(governor.requests),
                     "matured_labels": state.matured},
        "last_windows": [{"until_ms": each.at_ms, "level": each.what, "reason": each.reason, "performance": each.performance,
                          "signals": {signal.signal: signal.status for signal in each.signals}} for each in state.decisions],
    }


def table(found: list[dict[str, Any]]) -> str:
    lines = []
    for each in found:
        until = iso(each["judged_until_ms"]) if each["judged_until_ms"] is not None else "nothing yet"
        governor = each["governor"]
        lines.append(f"{each['model']} version {each['champion'] or 'none'} against {each['reference'] or 'no reference'}: "
                     f"{each['level']}, judged until {until} ({each['windows']} windows), waits for {', '.join(each['waits_for'])}")
        lines.append(f"  governor {governor['phase']}{' ' + governor['retrain_id'] if governor['retrain_id'] else ''}, "
                     f"{governor['retrains_this_week']} retrains this week, {governor['matured_labels']:,} labels matured")
        bound = "" if each["alarms_in_90_days"] is None else (f", {each['alarms_in_90_days']:g} in 90 days (at most "
                                                              f"{each['alarms_in_90_days_bound']:g}, 95 %)")
        lines.append(f"  {each['alarms']} alarms in {each['days']:g} days{bound}; budget {each['budget_in_90_days']:g}; "
                     f"{each['feed_faults']} feed faults")
        lines += [f"  {iso(one['until_ms'])}  {one['level']:<8} {one['reason']}" for one in each["last_windows"][-5:]]
    return "\n".join(lines) or "no model that is on has a drift policy"
