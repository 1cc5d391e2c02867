"""The rows a model is trained on: a training set on disk or in memory, read by period, in one order whatever wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.bundle import as_input
from feature_repo.delta_files import commit_note, table_files
from feature_repo.models import ModelSpec
from feature_repo.views import DAY_MS
from schemas.errors import FindingError, JobError, SettingsError

__all__ = ["CONTENT_HASH", "UNLABELLED_AT_MOST", "Period", "Rows", "TrainingSet", "check_gap", "check_known", "count_labels",
           "open_training_set", "parse_period", "read_rows"]

CONTENT_HASH = "content_hash"
"""Of a training set: in its manifest, and in the log of its table."""
EPOCH = date(1970, 1, 1)
UNLABELLED_AT_MOST = 0.01
"""Above this share, labels are not mature: what is missing is not missing at random."""


@dataclass(frozen=True)
class Period:
    """Whole UTC days, both inclusive."""

    first: date
    last: date

    @property
    def start_ms(self) -> int:
        return (self.first - EPOCH).days * DAY_MS

    @property
    def end_ms(self) -> int:
        """The first millisecond after the period."""
        return ((self.last - EPOCH).days + 1) * DAY_MS

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"


def parse_period(text: str) -> Period:
    """The period that ``2018-07-25..2018-07-31`` names. Raises SettingsError where it names none.

    >>> parse_period("2018-07-25..2018-07-31").days
    7
    """
    first, _, last = text.partition("..")
    try:
        period = Period(date.fromisoformat(first), date.fromisoformat(last))
    except ValueError as error:
        raise SettingsError(f"{text!r} is not a period", hint="write two days, both included: 2018-07-25..2018-07-31") from error
    if period.last < period.first:
        raise SettingsError(f"the period {text} ends before it begins", hint=f"did you mean {last}..{first}?")
    return period


@dataclass(frozen=True)
class TrainingSet:
    """An Arrow dataset, the files it reads (none: it is in memory) and what is to be remembered of where it came from."""

    dataset: Any
    files: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Labelled or not, sorted by (event time, event id). ``x`` float32[n, F]; ``label`` float64[n], NaN: not known."""

    event_time: np.ndarray[Any, Any]
    card: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    x: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def day(self) -> np.ndarray[Any, Any]:
        """Days since 1970."""
        return self.event_time // DAY_MS

    def where(self, mask: np.ndarray[Any, Any]) -> Rows:
        return Rows(self.event_time[mask], self.card[mask], self.label[mask], self.x[mask])


def open_training_set(source: Any, spec: ModelSpec) -> TrainingSet:
    """A training set from a pandas frame, an Arrow table, or the path of a Parquet file, a Parquet folder or a Delta table.

    Columns: event_id, event_time (int64 ms), the model's subject, label (boolean or integer, null: not known), every feature of the model.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds

    try:
        if isinstance(source, pd.DataFrame):
            opened = TrainingSet(ds.dataset(pa.Table.from_pandas(source, preserve_index=False)))
        elif isinstance(source, pa.Table):
            opened = TrainingSet(ds.dataset(source))
        elif (Path(source) / "_delta_log").is_dir():
            files, version = table_files(str(source))
            opened = TrainingSet(ds.dataset(files), files, {"table": Path(source).name, "version": version, **built_from(source)})
            if (committed := commit_note(str(source), CONTENT_HASH)) is not None and committed != opened.origin.get(CONTENT_HASH):
                raise JobError(f"the manifest beside the training set {source} is not of this build", hint="build it again")
        else:
            dataset = ds.dataset(str(source))
            opened = TrainingSet(dataset, list(dataset.files), {"table": Path(source).name})
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"training set {source} cannot be read: {error}", hint="it is Parquet or a Delta table") from error
    wanted = ("event_id", "event_time", spec.subject, "label", *spec.service.feature_names)
    if missing := [name for name in wanted if name not in opened.dataset.schema.names]:
        raise JobError(f"the training set has no column {missing[0]!r} ({len(missing)} missing)",
                       hint="build it again with today's feature definitions")
    if opened.origin.get("service_hash", spec.service.definition_hash) != spec.service.definition_hash:
        raise JobError(f"the training set holds features {spec.service.name}@{opened.origin['service_hash']}, "
                       f"declared are {spec.service.name}@{spec.service.definition_hash}", hint="build it again")
    unlabelled, all_rows = opened.origin.get("unlabelled", 0), opened.origin.get("transactions", 0)
    if unlabelled > UNLABELLED_AT_MOST * all_rows:
        raise FindingError(f"{unlabelled:,} of {all_rows:,} transactions had no label when the training set was built",
                       hint="labels are not mature: take earlier days, or archive the outcomes first")
    return opened


def built_from(folder: Any) -> dict[str, Any]:
    """What the builder of a training set wrote beside it: archive version, definitions, counts, digest."""
    manifest = Path(folder) / "_manifest.json"
    known: dict[str, Any] = json.loads(manifest.read_text()) if manifest.exists() else {}
    return known


def count_labels(training_set: TrainingSet, start_ms: int, end_ms: int) -> tuple[int, int]:
    """How many rows of a time have a label, and how many a true one."""
    import pyarrow.dataset as ds

    label, time = ds.field("label"), between(start_ms, end_ms)
    rows = training_set.dataset.count_rows(filter=time & label.is_valid())
    return int(rows), int(training_set.dataset.count_rows(filter=time & (label.cast("int64") == 1)))


def read_rows(training_set: TrainingSet, spec: ModelSpec, start_ms: int, end_ms: int) -> Rows:
    """The rows with start_ms <= event time < end_ms. Raises JobError where an event is there twice."""
    features = spec.service.feature_names
    table = training_set.dataset.to_table(columns=["event_id", "event_time", spec.subject, "label", *features],
                                          filter=between(start_ms, end_ms))
    table = table.sort_by([("event_time", "ascending"), ("event_id", "ascending")])
    time, event = table["event_time"].to_numpy(), table["event_id"].to_numpy()
    if len(time) and (twice := (time[1:] == time[:-1]) & (event[1:] == event[:-1])).any():
        raise JobError(f"the training set has {int(twice.sum()):,} events twice", hint="build it again into an empty folder")
    x = np.empty((len(time), len(features)), dtype=np.float32)
    for index, name in enumerate(features):
        x[:, index] = as_input(table[name].cast("float64").to_numpy())
    return Rows(time, table[spec.subject].to_numpy().astype(str), table["label"].cast("float64").to_numpy(), x)


def between(start_ms: int, end_ms: int) -> Any:
    import pyarrow.dataset as ds

    return (ds.field("event_time") >= start_ms) & (ds.field("event_time") < end_ms)


def check_gap(train: Period, test: Period, label_delay_ms: int) -> None:
    """Raise JobError unless every label of ``train`` was known when ``test`` began; the error names days that would do."""
    earliest = EPOCH + timedelta(days=-(-(train.end_ms + label_delay_ms) // DAY_MS))
    if test.first < earliest:
        would_do = Period(earliest, earliest + (test.last - test.first))
        raise JobError(f"test begins {test.first}, but labels of the last training day {train.last} are known only from {earliest}",
                       hint=f"--train {train} --test {would_do} keeps the label delay of {label_delay_ms / DAY_MS:g} days")


def check_known(train: Period, test: Period, label_delay_ms: int, known_ms: int) -> None:
    """Raise JobError unless ``test`` lies after ``train`` and every label of both was known at ``known_ms``."""
    if test.first <= train.last:
        raise JobError(f"test {test} begins before train {train} ends", hint="a model is tested on later days")
    if test.end_ms + label_delay_ms > known_ms:
        late = (test.end_ms + label_delay_ms - known_ms) / DAY_MS
        raise JobError(f"labels of {test.last} are known only {late:.1f} days after the time of the retrain", hint="take earlier days")
