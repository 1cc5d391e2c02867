"""What the loop has done for a model, and whether each retrain helped: old and new version on the same served vectors."""

from __future__ import annotations

from typing import Any

import msgspec

from feature_repo.bundle import bundle_folder, load_bundle
from feature_repo.delta_files import read_file
from feature_repo.models import ModelSpec
from feature_repo.views import DAY_MS
from schemas.errors import BundleError
from schemas.monitoring import RetrainRequest
from schemas.settings import Settings
from services.loop_record import LoopRecord, read_loop
from services.served_rows import ServedRows, read_served
from services.words import iso

__all__ = ["compare_served", "read_history", "table"]


def read_history(settings: Settings, kafka: str, spec: ModelSpec, days: int) -> dict[str, Any]:
    """Alarms, refusals, retrains and releases, oldest first. Of each retrain that had a candidate, released or not, champion and candidate
    are compared on what was served in the ``days`` before and after it, as far as labels are known and Kafka still holds it. Up to a label
    delay neither was trained on any of it.
    """
    record = read_loop(kafka, spec.name)
    spans = [(each.at_ms - days * DAY_MS, each.at_ms + days * DAY_MS) for each in record.requests]
    served = read_served(kafka, spec, spans) if spans else None
    return {
        "model": spec.name, "days": days,
        "alarms": [{"at_ms": each.until_ms, "family": each.family, "signal": each.signal, "version": each.model_version,
                    "effect": each.effect, "n": each.n, "suspected_start_ms": each.suspected_start_ms, "episode": each.episode,
                    "contributors": [[one.name, one.share] for one in each.contributors[:3]]} for each in record.detections],
        "refused": record.refused(),
        "retrains": [_retrain(settings, spec, record, each, served, days) for each in record.requests],
        "releases": [msgspec.to_builtins(each) for each in record.releases],
    }


def _retrain(settings: Settings, spec: ModelSpec, record: LoopRecord, request: RetrainRequest, served: ServedRows | None,
             days: int) -> dict[str, Any]:
    from jobs.retraining import Verdict, verdict_path

    written = read_file(verdict_path(settings, spec.name, request.retrain_id))
    verdict = msgspec.json.decode(written, type=Verdict) if written is not None else None
    ended = next((what for what in ("promoted", "rejected", "inconclusive", "failed") if request.retrain_id in record.ended(what)), None)
    facts = {"retrain_id": request.retrain_id, "at_ms": request.at_ms, "why": request.why, "champion": request.champion,
             "candidate": verdict.version if verdict is not None else None, "ended": ended,
             "train": verdict.train if verdict is not None else None, "test": verdict.test if verdict is not None else None,
             "gates": [msgspec.to_builtins(each) for each in verdict.evidence] if verdict is not None else []}
    if verdict is None or verdict.version is None or served is None:
        return {**facts, "before": None, "after": None}
    folders = (verdict.version, request.champion)
    try:
        new, old = (load_bundle(bundle_folder(settings.models, spec.name, version), spec.service, settings.key_folder)
                    for version in folders)
    except BundleError as error:
        return {**facts, "before": None, "after": None, "not_compared": str(error)}
    at = request.at_ms
    return {**facts, "before": compare_served(served.between(at - days * DAY_MS, at), new, old),
            "after": compare_served(served.between(at, at + days * DAY_MS), new, old)}


def compare_served(rows: ServedRows, new: Any, old: Any) -> dict[str, Any] | None:
    """None where the rows hold no label of both classes."""
    from jobs.bootstrap import paired_bootstrap
    from jobs.metrics import roc_auc

    if not 0 < rows.label.sum() < len(rows.label):
        return None
    first, second = new.score(rows.x), old.score(rows.x)
    found = paired_bootstrap(rows.label, rows.subject, first, second)
    return {"rows": len(rows.label), "positives": int(rows.label.sum()),
            "candidate": {"average_precision": found.first, "auc": roc_auc(rows.label, first)},
            "champion": {"average_precision": found.second, "auc": roc_auc(rows.label, second)},
            "low": found.low, "high": found.high,
            "says": "better" if found.low > 0 else "worse" if found.high < 0 else "not shown to differ"}


def table(found: dict[str, Any]) -> str:
    faults = sum(each["family"] == "feed" for each in found["alarms"])
    lines = [f"{found['model']}: {len(found['alarms']) - faults} alarms, {faults} feed faults, "
             f"{len(found['retrains'])} retrains, {len(found['releases'])} releases"]
    lines += [f"  {iso(each['at_ms'])[:10]} alarm of {each['family']}: {each['signal']}"
              + (f" of version {each['version']}" if each["version"] else "") + f", effect {each['effect']:.3g}"
              + (f"; {', '.join(name for name, _ in each['contributors'])}" if each["contributors"] else "") for each in found["alarms"]]
    for each in found["retrains"]:
        last = each["gates"][-1] if each["gates"] else None
        lines.append(f"  {iso(each['at_ms'])[:10]} retrain, {each['why']}: {each['ended'] or 'under way'}, version {each['candidate']} "
                     f"against {each['champion']}" + (f"; {last['gate']}: {last['why']}" if last else ""))
        lines += [f"    {found['days']} days {when}: {_words(each[when])}" for when in ("before", "after") if each[when] is not None]
    lines += [f"  {number} windows without a retrain: {reason}" for reason, number in found["refused"].items()]
    lines += [f"  epoch {each['epoch']}: version {each['champion']} at {iso(each['at_ms'])}, {each['why']}" for each in found["releases"]]
    return "\n".join(lines)


def _words(span: dict[str, Any]) -> str:
    new, old = span["candidate"], span["champion"]
    return (f"average precision {new['average_precision']:.3f} against {old['average_precision']:.3f} [{span['low']:+.3f}, "
            f"{span['high']:+.3f}], AUC {new['auc']:.3f} against {old['auc']:.3f}, {span['rows']:,} rows: {span['says']}")
