"""All that a walk looks at, and the nodes of single things: what each says of itself, without its causes and effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from feature_repo.archive_table import ArchiveTable
from feature_repo.delta_files import read_file
from feature_repo.manifest import MANIFEST_FILE, Manifest, decode, read_plain, sha256
from feature_repo.models import ModelSpec
from jobs.gates import evidence_hash
from jobs.lineage import run_id
from jobs.linked import Seen
from jobs.retraining import Verdict, verdict_path
from schemas.errors import BundleError, JobError
from schemas.evaluations import Evaluation
from schemas.monitoring import Detection, RetrainRequest
from schemas.releases import Release
from schemas.settings import Settings
from services.explanations import number
from services.shadow_list import TAKEN_BACK, evidence_path
from services.why.chronicle import Chronicle
from services.why.node import Node
from services.words import iso

__all__ = ["Sources", "detection_node", "evaluation_node", "prediction_node", "release_node", "request_node"]


@dataclass
class Sources:
    """``archive`` is None where nothing was archived; ``most`` bounds how many of many are told."""

    settings: Settings
    told: Chronicle
    archive: ArchiveTable | None
    specs: dict[str, ModelSpec]
    most: int
    seen: set[tuple[str, str]] = field(default_factory=set)

    def once(self, node: Node) -> bool:
        """Whether ``node`` is in the tree for the first time; where it is not, it is told by its name only."""
        key = (node.kind, node.id)
        if key in self.seen:
            node.says, node.facts, node.more = "told elsewhere in this tree", {}, ""
            return False
        self.seen.add(key)
        return True

    def version_node(self, model: str, version: str) -> Node:
        """What its bundle's manifest says."""
        node, folder = Node("version", f"{model}@{version}", ""), self.settings.models / model / version
        try:
            raw = read_plain(folder, MANIFEST_FILE)
            manifest = decode(raw, Manifest, folder / MANIFEST_FILE)
        except BundleError as error:
            node.says = error.fact
            return node
        node.says = (f"trained on {'..'.join(manifest.train)}, judged on {'..'.join(manifest.test)}, "
                     f"run {manifest.data.get('mlflow_run_id', 'not told')}")
        node.facts = {"bundle": str(folder), "manifest_sha256": sha256(raw), "train": "..".join(manifest.train),
                      "test": "..".join(manifest.test), "git_commit": manifest.git_commit, "data": manifest.data}
        return node

    def training_set_node(self, version: Node) -> Node | None:
        """The set that it learnt from, as its manifest says, and whether that is still what lies there."""
        data = version.facts.get("data", {})
        if "table" not in data:
            return None
        path = f"{self.settings.tables}/training_sets/{data['table']}"
        held = read_file(f"{path}/_manifest.json")
        now = msgspec.json.decode(held).get("content_hash") if held is not None else None
        state = "no longer there" if held is None else "as it was" if now == data.get("content_hash") else "built again since"
        facts = {"path": path, "state": state, **{name: data.get(name) for name in (
            "mode", "period", "rows", "positives", "bronze_version", "as_of_ms", "service_hash", "content_hash", "version")}}
        return Node("training-set", data["table"], f"{data.get('rows', '?'):,} rows, archive version {data.get('bronze_version')}, content "
                    f"{data.get('content_hash')}, {state}" if "rows" in data else state, facts)

    def run_node(self, request: RetrainRequest) -> Node:
        """Who carried it out, how often it was tried, and how it ended."""
        said = [each for each in self.told.runs if each.retrain_id == request.retrain_id]
        decided = [each for each in self.told.decisions.values() if each.by == "governor" and each.retrain_id == request.retrain_id]
        end = next((each for each in reversed(decided) if each.what in ("promoted", "rejected", "failed")), None)
        reason = next((each.reason for each in reversed(said) if end is not None and each.what == end.what), "")
        leases = sorted({each.lease for each in decided if each.what == "started"})
        runners = list(dict.fromkeys(each.runner for each in said))
        says = f"by {', '.join(runners) or 'nobody yet'}, " + (f"{end.what}: {reason or end.reason}" if end is not None else "not ended")
        return Node("run", request.retrain_id, says, {
            "runners": runners, "leases": leases, "result": end.what if end is not None else None, "reason": reason,
            "ended_ms": end.at_ms if end is not None else None, "lineage_run_id": run_id("retrain", request.retrain_id)})

    def evidence_node(self, model: str, retrain_id: str, release: Release | None) -> Node | None:
        """The verdict's file, and whether it still hashes to what it says and to what the release was bound to."""
        if release is not None and release.evidence is not None and release.release_id.startswith(TAKEN_BACK):
            return self._trial_node(release, release.evidence)
        path = verdict_path(self.settings, model, retrain_id)
        held = read_file(path)
        if held is None:
            return None if release is None or release.evidence is None else Node(
                "evidence", retrain_id, f"{path} is not there; released on {release.evidence[:12]}", {"path": path, "matches": False})
        try:
            verdict = msgspec.json.decode(held, type=Verdict)
        except msgspec.MsgspecError as error:
            return Node("evidence", retrain_id, f"{path} cannot be read: {error}", {"path": path, "matches": False})
        found = evidence_hash(verdict.evidence)
        bound = [verdict.evidence_hash, *([release.evidence] if release is not None else [])]
        matches = all(each == found for each in bound)
        outcomes = ", ".join(f"{each.gate} {each.outcome}" for each in verdict.evidence)
        return Node("evidence", retrain_id, f"{outcomes}; hash {found[:12]} {'matches' if matches else 'DOES NOT MATCH'}", {
            "path": path, "hash": found, "stated": verdict.evidence_hash, "released_on": release.evidence if release is not None else None,
            "matches": matches, "passed": verdict.passed, "version": verdict.version,
            "gates": {each.gate: f"{each.outcome}: {each.why}" for each in verdict.evidence}})

    def _trial_node(self, release: Release, evidence: str) -> Node:
        """What a reverse shadow found, by which it took a release back."""
        path, name = evidence_path(self.settings, release.model, evidence), release.release_id
        held = read_file(path)
        if held is None:
            return Node("evidence", name, f"{path} is not there; released on {evidence[:12]}", {"path": path, "matches": False})
        found = sha256(held.encode())
        return Node("evidence", name, f"{release.why}; hash {found[:12]} {'matches' if found == evidence else 'DOES NOT MATCH'}",
                    {"path": path, "hash": found, "released_on": evidence, "matches": found == evidence})

    def known(self) -> ArchiveTable:
        if self.archive is None:
            raise JobError(f"there is no archive in {self.settings.tables}", hint="headrace archive")
        return self.archive


def prediction_node(one: Seen | Any) -> Node:
    verdict = {None: "no decision", True: "ALERT", False: "no alert"}[one.alert]
    return Node("prediction", one.prediction_id,
                f"{one.model} version {one.model_version or 'none'}, {verdict}, score {number(one.score)}, {iso(one.arrival_ms)}",
                {"event_id": one.event_id, "model": one.model, "model_version": one.model_version, "score": one.score, "alert": one.alert,
                 "arrival_ms": one.arrival_ms})


def evaluation_node(one: Evaluation) -> Node:
    kind = "right" if one.alert == one.label else "no decision" if one.alert is None else "a false alert" if one.alert else "missed"
    return Node("evaluation", one.evaluation_id, f"label {str(one.label).lower()}, {kind}, known {iso(one.outcome_ms)}",
                {"prediction_id": one.prediction_id, "label": one.label, "revision": one.revision, "alert": one.alert, "score": one.score,
                 "predicted_ms": one.predicted_ms, "outcome_ms": one.outcome_ms})


def detection_node(one: Detection) -> Node:
    since = "" if one.suspected_start_ms is None else f", suspected since {iso(one.suspected_start_ms)}"
    by = "".join(f", {each.name} {each.share:.0%}" for each in one.contributors[:3])
    return Node("detection", one.detection_id, f"{one.family} {one.signal} of {one.model} version {one.model_version or 'none'} in "
                f"{iso(one.from_ms)}..{iso(one.until_ms)}, {one.statistic:.4g} of {one.threshold:.4g}{since}{by}",
                {**msgspec.to_builtins(one), "contributors": {each.name: each.share for each in one.contributors}})


def request_node(one: RetrainRequest) -> Node:
    return Node("request", one.retrain_id, f"retrain of {one.model} against version {one.champion}, {iso(one.at_ms)}: {one.why}",
                {"model": one.model, "champion": one.champion, "episode": one.episode, "reference": one.reference, "at_ms": one.at_ms,
                 "detections": one.detections, "pins": one.pins, "service_hash": one.service_hash})


def release_node(one: Release) -> Node:
    return Node("release", f"{one.model}@{one.epoch}", f"version {one.champion} live since {iso(one.at_ms)}, by {one.by}: {one.why}",
                msgspec.to_builtins(one))
