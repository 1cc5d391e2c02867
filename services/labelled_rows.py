"""A file of labelled rows in order of time: numbers to learn from, and a label of two classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import SettingsError
from services import columns
from services.files import column_names, read_chunks

__all__ = ["LabelledRows", "read_labelled"]


@dataclass(frozen=True)
class LabelledRows:
    """``rows``: one mapping of names to numbers each; ``labels``: bool[n]."""

    rows: list[dict[str, float]]
    labels: Any


def read_labelled(path: Path, label: str) -> LabelledRows:
    """Every column but ``label`` is a feature. Raises SettingsError for what is no number, or no label of 0 and 1."""
    names = column_names(path)
    if label not in names:
        raise SettingsError(f"{path.name} has no column {label!r}",
                            hint=f"take one of {', '.join(names)}: --label {names[-1]}" if names else "it is empty")
    rows: list[dict[str, float]] = []
    labels: list[Any] = []
    for chunk in read_chunks(path, names):
        if chunk.verbatim:
            raise SettingsError(f"row {len(rows) + min(chunk.verbatim)} of {path.name} cannot be parsed", hint="mend it or leave it out")
        labels.append(_whole(path, label, columns.flag, chunk.columns, len(rows)))
        features = {name: _whole(path, name, _number, chunk.columns, len(rows)).tolist() for name in names if name != label}
        rows += [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
    return LabelledRows(rows, np.concatenate(labels) if labels else np.empty(0, bool))


def _number(column: pa.Array) -> pa.Array:
    return pc.cast(column, pa.float64())


def _whole(path: Path, name: str, kind: columns.Kind, read: Mapping[str, Any], before: int) -> Any:
    """A column of a chunk with a finite value in every row."""
    found = columns.read(kind, read[name])
    bad = np.asarray(found.is_null() if kind is columns.flag else pc.invert(pc.fill_null(pc.is_finite(found), False)))
    if bad.any():
        row = int(np.argmax(bad))
        told = read[name][row]
        raise SettingsError(f"{name} of row {before + row} of {path.name} is {told.as_py() if isinstance(told, pa.Scalar) else told!r}",
                            hint="a feature is a finite number, a label 0 or 1 in every row")
    return found.to_numpy(zero_copy_only=False)
