"""Tables of older events as values in the form of a contract, by the column mappings that files are replayed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.errors import SettingsError
from services.events import Encoder
from services.files import Chunk
from services.inputs import to_rows
from services.mappings import ColumnMapping, mapping_named
from services.timeline import Arrivals

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.history import History

__all__ = ["MappedValues", "history"]


def history(path: str, mapping: str, source: str) -> History:
    """The table at ``path`` as history of ``source``. Raises SettingsError for a mapping that is none."""
    from jobs.history import History

    found = mapping_named(mapping)
    if found.prepare is not None:
        raise SettingsError(f"mapping {found.name} needs a file in its order, which a table has not",
                            hint="`headrace replay` reads files; or write the table with the fields of the contract")
    optional = frozenset(found.columns[name] for name in found.optional & set(found.columns))
    return History(path, tuple(dict.fromkeys(found.columns.values())), optional, MappedValues(found, source))


@dataclass(frozen=True)
class MappedValues:
    """A function from rows of a table to JSON values of ``source``; it travels to where Spark runs.

    A row that the contract cannot hold gives JSON of what could be read, which the contract then refuses by its own reason. A
    row gives none where it does not become a record of ``source``.
    """

    mapping: ColumnMapping
    source: str

    def __call__(self, batch: pa.RecordBatch) -> list[bytes]:
        rows = to_rows(Chunk(dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows), self.mapping)
        rows = rows.filter(rows[f"sent.{self.source}"])
        arrivals = Arrivals(rows, np.zeros(rows.num_rows, np.int64))
        return [record.value for record in Encoder(self.source, "/headrace/history").records([arrivals])]
