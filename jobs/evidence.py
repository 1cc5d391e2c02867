"""Where the evidence of a candidate's gates is kept: beside its bundle, in a Delta table, and with its run in MLflow.

A bundle is signed before it is judged, so the evidence lies beside it (``<models>/<model>/evidence/<version>.json``), bound by its hash:
the artifact gate has the hashes of the bundle's files in its facts, and a release names the hash of the evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from feature_repo.delta_files import append_once
from feature_repo.manifest import CARD_FILE
from jobs.gates import Evidence, evidence_hash
from jobs.registry import record_gates
from schemas.errors import BundleError
from schemas.settings import Settings

__all__ = ["Verdict", "evidence_path", "evidence_table", "gate_card", "keep", "read_evidence"]


class Verdict(msgspec.Struct, frozen=True):
    """``version`` of the candidate, null where none was trained; ``passed`` says whether it may be released without asking anybody.

    ``evidence_hash`` is over all of ``evidence``, in order: what an approval and a release are bound to.
    """

    retrain_id: str
    model: str
    at_ms: int
    version: str | None
    passed: bool
    train: str
    test: str
    evidence: list[Evidence]
    evidence_hash: str

    @property
    def needs_approval(self) -> bool:
        """Every gate is passed but that a person has to approve."""
        return bool(self.evidence) and self.evidence[-1].outcome == "NEEDS_APPROVAL"


def evidence_path(models: Path, model: str, version: str) -> Path:
    return models / model / "evidence" / f"{version}.json"


def evidence_table(settings: Settings) -> str:
    """The Delta table with a row for each gate of each retrain; ``facts`` as JSON."""
    return f"{settings.tables}/gate_evidence"


def read_evidence(models: Path, model: str, version: str) -> Verdict | None:
    """None where no gate has seen the version. Raises BundleError where it cannot be read, or its hash does not hold."""
    path = evidence_path(models, model, version)
    try:
        verdict = msgspec.json.decode(path.read_bytes(), type=Verdict)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise BundleError(f"{path} is no evidence: {error}", hint="retrain: it is written once") from error
    if (verdict.model, verdict.version) != (model, version) or evidence_hash(verdict.evidence) != verdict.evidence_hash:
        raise BundleError(f"{path} was changed: its hash does not hold", hint="retrain: evidence is never edited")
    return verdict


def keep(settings: Settings, verdict: Verdict) -> Verdict:
    """Record ``verdict`` where people look for it, once however often this is called, and return it.

    The verdict itself is written before (``jobs.retraining``), so what a run that died has not recorded the next one does.
    """
    append_once(evidence_table(settings), _rows(verdict), f"evidence:{verdict.model}:{verdict.retrain_id}")
    if verdict.version is None:
        return verdict
    path, text = evidence_path(settings.models, verdict.model, verdict.version), msgspec.json.format(msgspec.json.encode(verdict), indent=1)
    card = settings.models / verdict.model / verdict.version / CARD_FILE
    whole = (card.read_text() if card.exists() else "") + "\n" + gate_card(verdict)
    tags = {f"gate.{each.gate}": each.outcome for each in verdict.evidence}
    record_gates(settings, verdict.model, verdict.version, {**tags, "gates": _standing(verdict), "evidence_hash": verdict.evidence_hash},
                 {"gates/evidence.json": text.decode(), f"gates/{CARD_FILE}": whole})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(text)
    draft.replace(path)
    return verdict


def gate_card(verdict: Verdict) -> str:
    """What the gates saw, in Markdown: the last part of the model card."""
    lines = [f"| {each.gate} | {each.outcome} | {each.why} |" for each in verdict.evidence]
    groups = [each for evidence in verdict.evidence if evidence.gate == "slices" for each in evidence.facts["questions"]]
    told = [f"| {each['group']} | {each['of']} | {_figure(each, 'candidate')} | {_figure(each, 'champion')} | {each['verdict']} |"
            for each in groups]
    parts = ["## What the gates saw", f"Retrain {verdict.retrain_id}, judged on {verdict.test}: {_standing(verdict)}. "
             f"Evidence {verdict.evidence_hash}.", "", "| gate | outcome | why |", "|---|---|---|", *lines]
    if told:
        parts += ["", "| group | of | this model | champion | |", "|---|---|---|---|---|", *told]
    return "\n".join(parts) + "\n"


def _standing(verdict: Verdict) -> str:
    return "passed" if verdict.passed else "waits for approval" if verdict.needs_approval else verdict.evidence[-1].outcome.lower()


def _figure(facts: dict[str, Any], name: str) -> str:
    return f"{facts[name]:.4f}" if name in facts else ""


def _rows(verdict: Verdict) -> Any:
    import pyarrow as pa

    n = len(verdict.evidence)
    return pa.table({
        **{name: pa.array([getattr(verdict, name)] * n, kind) for name, kind in (
            ("retrain_id", pa.string()), ("model", pa.string()), ("version", pa.string()), ("at_ms", pa.int64()),
            ("evidence_hash", pa.string()))},
        "number": pa.array(range(n), pa.int32()),
        **{name: pa.array([getattr(each, name) for each in verdict.evidence], pa.string()) for name in ("gate", "outcome", "why")},
        "facts": pa.array([msgspec.json.encode(each.facts).decode() for each in verdict.evidence], pa.string())})
