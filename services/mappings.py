"""Which column of a file means what: the built-in mappings, and those that a TOML file declares."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import churn, fraud
from feature_repo.models import Emission, UseCase
from schemas.churn import CANCELLATIONS, PURCHASES
from schemas.errors import SettingsError
from schemas.topics import SOURCES
from services.columns import Kind, flag, integer, minor_units, text, time_ms
from services.files import column_names

__all__ = ["MAPPINGS", "ColumnMapping", "Prepare", "find_mapping", "kind_of", "mapping_named", "required", "row_fields"]

Prepare = Callable[[dict[str, Any]], dict[str, Any]]
"""From columns as they were read, by field, to the fields of the contracts; may add ``sent.<topic>``, a mask of rows."""


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of a file each field of a use case's rows is read from; a file may lack those named in ``optional``.

    A field ``x_minor`` may be named ``x``: its column is then in currency units with decimals. ``prepare`` makes what turns the
    columns of a whole file, chunk by chunk, into fields, where that takes more than naming them.
    """

    name: str
    use_case: UseCase
    columns: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    prepare: Callable[[], Prepare] | None = None

    def missing(self, present: Iterable[str]) -> list[str]:
        """The columns that a file with ``present`` ones lacks."""
        lacking = set(self.columns.values()) - set(present)
        return [column for target, column in self.columns.items() if column in lacking and target not in self.optional]


def required(emission: Emission) -> tuple[str, ...]:
    """The fields without which a row is no record of the emission's contract."""
    return tuple(field.name for field in msgspec.structs.fields(SOURCES[emission.topic].record) if field.required)


def row_fields(case: UseCase) -> dict[str, type]:
    """The fields of a use case's rows and their types: str, int or bool."""
    kinds = {msgspec.inspect.StrType: str, msgspec.inspect.IntType: int, msgspec.inspect.BoolType: bool}
    fields: dict[str, type] = {}
    for emission in case.emissions:
        declared = msgspec.inspect.type_info(SOURCES[emission.topic].record)
        assert isinstance(declared, msgspec.inspect.StructType)
        fields |= {field.name: kinds[type(field.type)] for field in declared.fields if field.required}
    return fields


def kind_of(target: str, fields: Mapping[str, type]) -> tuple[str, Kind]:
    """The field that a mapping's ``target`` is read into, and how. A target that is no field is text."""
    if target not in fields and f"{target}_minor" in fields:
        return f"{target}_minor", minor_units
    return target, time_ms if target == "event_time" else {str: text, int: integer, bool: flag}[fields.get(target, str)]


def by_contract(name: str, case: UseCase) -> ColumnMapping:
    """Columns are called as the contracts' fields."""
    return ColumnMapping(name, case, {field: field for field in row_fields(case)},
                         frozenset(emission.when for emission in case.emissions if emission.when))


class InvoiceLines:
    """Lines of invoices, in the form of the UCI Online Retail data: a number that begins with C is a credit note's.

    A line's id is its invoice and its number there, counted in the order of the file: two equal lines are two lines.
    """

    def __init__(self) -> None:
        self._lines: dict[str | None, int] = {}

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        invoices = values["invoice"].to_pylist()
        ids = []
        for invoice in invoices:
            self._lines[invoice] = line = self._lines.get(invoice, 0) + 1
            ids.append(None if invoice is None else f"{invoice}-{line}")
        back = np.array([invoice is not None and invoice.startswith("C") for invoice in invoices], bool)
        quantity = values["quantity"]
        return {**values, "event_id": pa.array(ids, pa.string()),
                "quantity": pc.if_else(pa.array(back), pc.negate(quantity), quantity),  # given back is written as less than nothing
                f"sent.{PURCHASES}": ~back, f"sent.{CANCELLATIONS}": back}


MAPPINGS = {
    mapping.name: mapping for mapping in (
        by_contract("contract", fraud.USE_CASE),
        ColumnMapping("fraud", fraud.USE_CASE, {
            "event_id": "TRANSACTION_ID", "event_time": "TX_DATETIME", "card_id": "CUSTOMER_ID", "terminal_id": "TERMINAL_ID",
            "amount": "TX_AMOUNT", "fraud": "TX_FRAUD"}),
        ColumnMapping("churn", churn.USE_CASE, {
            "invoice": "InvoiceNo", "product": "StockCode", "event_time": "InvoiceDate", "customer_id": "CustomerID",
            "quantity": "Quantity", "unit_price": "UnitPrice"}, prepare=InvoiceLines),
    )
}


def find_mapping(path: Path, named: str | None) -> ColumnMapping:
    """The mapping ``named`` (a built-in one or a TOML file), else the built-in one that fits the file.

    Raises SettingsError, naming the columns, when the file lacks some.
    """
    present = column_names(path)
    if named is not None:
        mapping = mapping_named(named)
        if missing := mapping.missing(present):
            raise SettingsError(f"{path.name} has no column {', '.join(missing)}, which mapping {mapping.name} reads",
                                hint=f"it has {', '.join(present)}; --mapping FILE.toml names others")
        return mapping
    for mapping in MAPPINGS.values():
        if not mapping.missing(present):
            return mapping
    lacks = "; ".join(f"mapping {name} misses {', '.join(mapping.missing(present))}" for name, mapping in MAPPINGS.items())
    raise SettingsError(f"{path.name} fits no built-in mapping: {lacks}",
                        hint=f"it has {', '.join(present)}; write --mapping FILE.toml with a [columns] table")


def mapping_named(named: str) -> ColumnMapping:
    """The built-in mapping ``named``, or that of a TOML file. Raises SettingsError when there is neither."""
    return MAPPINGS.get(named) or _load(Path(named))


def _load(path: Path) -> ColumnMapping:
    """A mapping of card payments."""
    case = fraud.USE_CASE
    fields = row_fields(case)
    optional = frozenset(emission.when for emission in case.emissions if emission.when)
    try:
        columns = tomllib.loads(path.read_text())["columns"]
        named = [kind_of(target, fields)[0] for target in columns]
    except (OSError, KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"mapping {path} cannot be read: {error}",
                            hint=f"one of {', '.join(MAPPINGS)}, or a TOML file with a [columns] table") from error
    if set(named) - set(fields) or set(fields) - set(named) - optional or len(set(named)) != len(named):
        raise SettingsError(f"mapping {path} has {', '.join(columns)}",
                            hint=f"it needs {', '.join(name for name in fields if name not in optional)} (without _minor: in currency "
                                 f"units) and may have {', '.join(optional)}")
    return ColumnMapping(path.stem, case, columns)
