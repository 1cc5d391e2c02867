"""A training set held to its rules before a model is: schema, nulls, ranges, rows told twice, drift against the set before.

It is read in batches: memory is that of one, of a bounded sample and of eight bytes a row. What breaks a rule goes to a Delta table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.delta_files import read_file, write_file, write_table
from feature_repo.identity import digest, number_identities, row_digests
from feature_repo.models import ModelSpec
from feature_repo.rules import DRIFT_AT_MOST, Profile, Rule, broken_rows, drift, profile, rules_of
from jobs.training_rows import open_training_set
from schemas.errors import CheckError
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KINDS", "Broken", "Checked", "check_training_set"]

KINDS = ("schema", "null", "range", "duplicate", "drift")
EXAMPLES = 5
SAMPLE_ROWS = 200_000
BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class Broken:
    """A rule that does not hold: of which ``kind``, in how many ``rows`` (drift: of all), with the first that break it."""

    kind: str
    rule: str
    rows: int
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """``drift`` is the index of each feature against ``before``, the content hash of the set before; empty without one.

    ``faults`` is the Delta table of all rows that break a rule; None where there is none.
    """

    rows: int
    broken: list[Broken]
    drift: dict[str, float]
    before: str | None
    faults: str | None


def check_training_set(source: Any, spec: ModelSpec, settings: Settings, accept: Sequence[str] = ()) -> Checked:
    """Hold a training set (see ``open_training_set``) to its rules, and remember how it is distributed for the next one.

    Raises CheckError where a rule is broken whose kind is not in ``accept``; then nothing is remembered.
    """
    opened = open_training_set(source, spec)
    rules = rules_of(spec)
    name = f"{spec.name}-{opened.origin.get('mode', 'given')}"
    faults, remembered = f"{settings.tables}/training_sets/{name}.faults", f"{settings.tables}/training_sets/{name}.profile.json"
    known = json.loads(read_file(remembered) or "{}")
    before = {column: Profile(tuple(each["edges"]), tuple(each["shares"])) for column, each in known.get("features", {}).items()
              if known["service_hash"] == spec.service.definition_hash}
    seen = _Seen(spec, rules, faults, opened.dataset.count_rows(), "degraded" in opened.dataset.schema.names)
    broken = _schema(opened.dataset.schema, spec)
    if not broken:
        for batch in opened.dataset.to_batches(columns=seen.columns, batch_size=BATCH_ROWS):
            seen.add(batch)
        broken = [*seen.broken(), *_drifted(moved := drift(before, seen.sample), seen.rows)]
    else:
        moved = {}
    checked = Checked(seen.rows, broken, moved, known.get("content_hash") if before else None, faults if seen.written else None)
    if stopping := [each for each in broken if each.kind not in accept]:
        worst = stopping[0]
        more = f" and {len(stopping) - 1} more rules" if len(stopping) > 1 else ""
        raise CheckError(f"the training set breaks {worst.kind} rule {worst.rule!r} in {worst.rows:,} of {seen.rows:,} rows{more}",
                         checked, hint=f"the rows: {checked.faults or worst.examples}; --accept {worst.kind} goes on all the same")
    write_file(remembered, json.dumps({"service_hash": spec.service.definition_hash, "content_hash": f"{digest(seen.digests):016x}",
                                       "features": {column: asdict(profile(values)) for column, values in seen.sample.items()}}))
    return checked


def _schema(schema: pa.Schema, spec: ModelSpec) -> list[Broken]:
    """Columns of a kind that is not theirs; that they are there ``open_training_set`` has seen to."""
    import pyarrow.types as types

    def countable(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_boolean(kind))

    kinds = {"event_id": types.is_string, "event_time": types.is_int64, "label": countable,
             **dict.fromkeys(spec.service.feature_names, types.is_floating)}
    there = {name: schema.field(name).type for name in kinds}
    return [Broken("schema", f"{name} is {there[name]}", 0) for name, fits in kinds.items() if not fits(there[name])]


def _drifted(moved: Mapping[str, float], rows: int) -> list[Broken]:
    return [Broken("drift", f"index of {name} is {index:.3f}, at most {DRIFT_AT_MOST:g}", rows)
            for name, index in sorted(moved.items(), key=lambda pair: -pair[1]) if index > DRIFT_AT_MOST]


class _Seen:
    """What was seen of the rows so far."""

    def __init__(self, spec: ModelSpec, rules: Sequence[Rule], faults: str, total: int, served: bool) -> None:
        self.columns = ["event_id", "event_time", "label", *(["degraded"] if served else []), *spec.service.feature_names]
        self.rows, self.written = 0, False
        self.digests = np.empty(total, np.uint64)
        self._identities = np.empty((total, 2), np.int64)
        self._rules, self._faults, self._features = rules, faults, spec.service.feature_names
        self._found: dict[tuple[str, str], tuple[int, list[dict[str, Any]]]] = {}
        self._sampled: list[Any] = []
        self._share = SAMPLE_ROWS / max(total, 1)

    @property
    def sample(self) -> dict[str, Any]:
        """float64 by feature: the same rows of the same set, whatever their order."""
        rows = np.concatenate([np.empty((0, len(self._features))), *self._sampled])
        return dict(zip(self._features, rows.T, strict=True))

    def add(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        n = batch.num_rows
        if not n:
            return
        whole = ~batch["degraded"].to_numpy(zero_copy_only=False) if "degraded" in self.columns else np.ones(n, bool)
        columns = {name: batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in ("label", *self._features)}
        for rule in self._rules:
            values = columns[rule.column]
            wrong = broken_rows(rule, values) & whole  # a degraded vector is the model's defaults
            if wrong.any():
                null = np.isnan(values)
                self._tell("null", rule, batch, np.flatnonzero(wrong & null), values)
                self._tell("range", rule, batch, np.flatnonzero(wrong & ~null), values)
        digests = row_digests(batch)
        mine = slice(self.rows, self.rows + n)
        self.digests[mine] = digests
        self._identities[mine, 0] = row_digests(batch.select(["event_id"])).view(np.int64)
        self._identities[mine, 1] = batch["event_time"].to_numpy(zero_copy_only=False)
        kept = digests / 2.0**64 < self._share
        self._sampled.append(np.column_stack([columns[name][kept] for name in self._features]))
        self.rows += n

    def broken(self) -> list[Broken]:
        codes = number_identities(self._identities[:, 0], self._identities[:, 1])
        times = np.bincount(codes) if len(codes) else np.zeros(0, np.int64)
        found = [Broken(kind, rule, rows, examples) for (kind, rule), (rows, examples) in self._found.items()]
        if (twice := np.flatnonzero(times[codes] > 1)).size:
            at = [{"event_time": int(self._identities[row, 1])} for row in twice[:EXAMPLES]]
            found.append(Broken("duplicate", "one row an event", int(twice.size), at))
        return sorted(found, key=lambda each: KINDS.index(each.kind))

    def _tell(self, kind: str, rule: Rule, batch: pa.RecordBatch, rows: Any, values: Any) -> None:
        import pyarrow as pa

        if not len(rows):
            return
        told, examples = self._found.get((kind, str(rule)), (0, []))
        of_rows = batch.select(["event_id", "event_time"]).take(pa.array(rows))
        named = [{**row, rule.column: None if np.isnan(value) else float(value)}
                 for row, value in zip(of_rows.slice(0, EXAMPLES).to_pylist(), values[rows[:EXAMPLES]], strict=True)]
        self._found[kind, str(rule)] = told + len(rows), [*examples, *named][:EXAMPLES]
        table = pa.table({"rule": pa.array([str(rule)] * len(rows)), "kind": pa.array([kind] * len(rows)),
                          "event_id": of_rows["event_id"], "event_time": of_rows["event_time"],
                          "value": pa.array(values[rows], from_pandas=True)})
        write_table(self._faults, table, append=self.written)
        self.written = True
