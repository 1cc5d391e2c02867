"""One governed retrain: data checks, training set, candidate, gates. What it finds is evidence; it releases nothing.

    train ───────────┤ test ├──── label delay ──── time of the retrain

Everything is derived from the archive as it stood at that time, so a run that died is simply run again; a candidate that was already
registered for the same retrain is taken up instead of being trained a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feature_repo.bundle import Model, load_bundle
from feature_repo.delta_files import read_file, write_file
from feature_repo.models import ModelSpec
from feature_repo.views import DAY_MS
from jobs import gates
from jobs.bootstrap import Interval, paired_bootstrap
from jobs.calibration import calibration
from jobs.checks import check_training_set
from jobs.cost import cost, recorded
from jobs.evidence import Verdict, keep
from jobs.gates import Evidence, GateRules
from jobs.groups import Judged, slices
from jobs.lineage import lineage
from jobs.parity import parity
from jobs.recent import recent
from jobs.registry import find_registered, register
from jobs.train import TrainResult, labelled, train
from jobs.training_rows import EPOCH, Period, Rows, open_training_set, read_rows
from jobs.training_set import Engine, TrainingSet, build_training_set, fits_in_process
from schemas.errors import BundleError, CheckError, JobError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Asked", "Plan", "Verdict", "periods", "retrain", "verdict_path"]


@dataclass(frozen=True)
class Plan:
    """How much a model learns from and is judged on, in days."""

    train_days: int = 14
    test_days: int = 5
    gates: GateRules = field(default_factory=GateRules)


@dataclass(frozen=True)
class Asked:
    """A retrain that was granted. ``at_ms`` is the stream time up to which labels are taken as known; ``since_ms``, of a drift, where it
    is suspected to have begun (None: nothing has to be cured); ``champion`` the bundle that is to be beaten."""

    retrain_id: str
    at_ms: int
    since_ms: int | None
    champion: Path


def periods(spec: ModelSpec, at_ms: int, plan: Plan, since_ms: int | None = None) -> tuple[Period, Period]:
    """The newest whole days whose labels are known at ``at_ms``: the last of them to be judged on, those before to learn from.

    Of the days since a drift (``since_ms``) at most half are to be judged on: a candidate must have seen some.
    """
    last = (at_ms - spec.label_delay_ms) // DAY_MS
    test_days = plan.test_days if since_ms is None else min(plan.test_days, max(1, (last - since_ms // DAY_MS) // 2))
    end = EPOCH + timedelta(days=last)
    test = Period(end - timedelta(days=test_days), end - timedelta(days=1))
    return Period(test.first - timedelta(days=plan.train_days), test.first - timedelta(days=1)), test


def retrain(settings: Settings, spec: ModelSpec, asked: Asked, plan: Plan, spark: SparkSession, tell: Callable[[str], None]) -> Verdict:
    """Carry out ``asked`` on the archive as it is. The verdict is also written to ``verdict_path``; asked again, it is read from there.

    Whatever is no fault of the candidate or its data is raised, and no verdict is left: an archive that cannot be read, a registry that
    is down, a champion that cannot be loaded.
    """
    path = verdict_path(settings, spec.name, asked.retrain_id)
    if (known := read_file(path)) is not None:
        return keep(settings, msgspec.json.decode(known, type=Verdict))
    run, seen = _Run(settings, spec, asked, plan, spark), []
    with lineage(settings, "retrain", asked.retrain_id) as told:
        told.reads_file(asked.champion, asked.champion.name)
        for evidence in gates.walk(run.gates()):
            tell(f"gate {evidence.gate}: {evidence.outcome}, {evidence.why}")
            seen.append(evidence)
        passed = len(seen) == len(list(run.gates())) and all(each.outcome == "PASS" for each in seen)
        verdict = Verdict(asked.retrain_id, spec.name, asked.at_ms, run.version, passed, str(run.train_period), str(run.test_period), seen,
                          gates.evidence_hash(seen))
        if (known := read_file(path)) is not None:  # another runner was given this retrain meanwhile, and came first
            return keep(settings, msgspec.json.decode(known, type=Verdict))
        write_file(path, msgspec.json.format(msgspec.json.encode(verdict), indent=1).decode())
        told.writes_file(path)
    return keep(settings, verdict)


def verdict_path(settings: Settings, model: str, retrain_id: str) -> str:
    return f"{settings.tables}/retrains/{model}/{retrain_id}.json"


class _Run:
    """The gates of one retrain, and what they hand on to each other. Data and parity come first: what is not trusted is not learnt from."""

    def __init__(self, settings: Settings, spec: ModelSpec, asked: Asked, plan: Plan, spark: SparkSession) -> None:
        self._settings, self._spec, self._asked, self._plan, self._spark = settings, spec, asked, plan, spark
        self.train_period, self.test_period = periods(spec, asked.at_ms, plan, asked.since_ms)
        self._built: TrainingSet | None = None
        self._judged: Rows | None = None
        self._scores: Any = None
        self._models: tuple[Model, Model] | None = None
        self._folders: tuple[Path, Path] | None = None
        self.version: str | None = None

    def gates(self) -> Iterator[tuple[str, Callable[[], Evidence]]]:
        yield "data", self._data
        yield "parity", self._parity
        yield "artifact", self._artifact
        yield "quality", self._quality
        if self._asked.since_ms is not None:
            yield "cure", self._cure
        yield "slices", self._slices
        yield "calibration", self._calibration
        yield "cost", self._cost
        yield "approval", lambda: gates.approval(self._spec.risk_class)

    def _data(self) -> Evidence:
        spec, rules, span = self._spec, self._plan.gates, (self.train_period.start_ms, self.test_period.end_ms)
        engine: Engine = "process" if fits_in_process(self._settings, spec, *span, self._asked.at_ms) else "spark"
        self._built = build_training_set(self._settings, spec, *span, "known", self._spark, self._asked.at_ms, engine=engine)
        manifest, broken = self._built.manifest, {}
        try:  # that it differs from the set before is what a retrain is for
            check_training_set(self._built.path, spec, self._settings, accept=("drift",))
        except CheckError as error:
            broken = {str(error): 1}
        rows = self._rows(self.test_period.start_ms)
        positives = len(np.unique(rows.card[rows.label > 0]))
        unlabelled = manifest.get("unlabelled", 0) / max(manifest.get("transactions", 0), 1)
        return gates.data(len(rows), unlabelled, positives, rules, broken)

    def _parity(self) -> Evidence:
        found = parity(self._settings, self._spec.service, self._spark)
        return gates.parity(found.predictions - found.other_definition, found.unexplained)

    def _artifact(self) -> Evidence:
        folder = find_registered(self._settings, self._spec.name, self._asked.retrain_id)
        if folder is None:
            folder = register(self._settings, self._train(), promote_first=False).folder
        service, keys = self._spec.service, self._settings.key_folder
        try:
            model = load_bundle(folder, service, keys)
        except BundleError as error:
            return Evidence("artifact", "FAIL", str(error))
        self.version = model.version
        self._judged = labelled(self._rows(self.test_period.start_ms), "test", self.test_period)
        self._models, self._folders = (model, load_bundle(self._asked.champion, service, keys)), (folder, self._asked.champion)
        candidate, champion = self._models
        self._scores = candidate.score(self._judged.x), champion.score(self._judged.x)
        return gates.artifact(model.version, model.manifest.files)

    def _train(self) -> TrainResult:
        assert self._built is not None
        data = {**self._built.manifest, "retrain_id": self._asked.retrain_id, "known_ms": self._asked.at_ms}
        since = recent(self._settings, self._spec, self.test_period.end_ms, self._asked.at_ms) if self._spec.drift is not None else None
        return train(self._built.path, self._spec, self.train_period, self.test_period, self._settings, data=data, spark=self._spark,
                     known_ms=self._asked.at_ms, recent=since)

    def _quality(self) -> Evidence:
        assert self._judged is not None
        return gates.non_inferiority(self._compare(np.ones(len(self._judged), dtype=bool)), self._plan.gates)

    def _cure(self) -> Evidence:
        assert self._judged is not None
        assert self._asked.since_ms is not None
        recent = self._judged.event_time >= self._asked.since_ms
        if not 0 < self._judged.label[recent].sum() < recent.sum():
            return Evidence("cure", "INCONCLUSIVE", "no row of both classes since the drift has a label yet", {"rows": int(recent.sum())})
        return gates.cure(self._compare(recent), self._plan.gates)

    def _slices(self) -> Evidence:
        return slices(self._spec, self._both(), self._plan.gates)

    def _calibration(self) -> Evidence:
        return calibration(self._both(), self._plan.gates)

    def _cost(self) -> Evidence:
        assert self._models is not None
        assert self._folders is not None
        return cost(*self._models, self._folders, recorded(self._settings, self._spec), self._plan.gates)

    def _both(self) -> Judged:
        assert self._judged is not None
        assert self._models is not None
        member = np.unique(self._judged.card, return_inverse=True)[1]
        first, second = (model.threshold for model in self._models)
        return Judged(self._judged.label, member, self._judged.x, self._scores, (first, second))

    def _compare(self, rows: Any) -> Interval:
        assert self._judged is not None
        judged, (candidate, champion) = self._judged.where(rows), self._scores
        return paired_bootstrap(judged.label, judged.card, candidate[rows], champion[rows], seed=self._spec.seed)

    def _rows(self, start_ms: int) -> Rows:
        if self._built is None:
            raise JobError("there is no training set yet")
        return read_rows(open_training_set(self._built.path, self._spec), self._spec, start_ms, self.test_period.end_ms)
