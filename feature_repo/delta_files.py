"""Delta tables, and files beside them, read and written in this process, without a JVM.

This module and ``archive_table`` are the ones that know the ``deltalake`` library.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from schemas.errors import JobError

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import CommitProperties, DeltaTable
    from pyarrow.dataset import Dataset

__all__ = ["Part", "append_once", "begin_replacing", "commit_note", "open_dataset", "read_file", "replace_by_parts", "table_files",
           "table_version", "write_file", "write_part", "write_table"]

ROW_GROUP_ROWS = 1 << 16
"""16 MB of thirty numbers."""


@dataclass(frozen=True)
class Part:
    """A Parquet file of so many bytes and rows in a table's folder, with the lowest and highest event time in it. It belongs to the
    table once a version names it; until then nobody reads it, and VACUUM takes it for rubbish."""

    file: str
    size: int
    rows: int
    first_ms: int
    last_ms: int


def open_dataset(table: DeltaTable, path: str) -> Dataset:
    """The files of ``table``, which is at ``path``, as Arrow reads them itself. Through delta-rs' own file system, which is called back
    in Python, 7 of 18 processes that ended after a read were aborted on their way out (exit code 134)."""
    from pyarrow import fs

    files, folder = fs.FileSystem.from_uri(path)
    return table.to_pyarrow_dataset(filesystem=fs.SubTreeFileSystem(folder, files))


def table_files(path: str) -> tuple[list[str], int]:
    """The files of the newest version of the Delta table at ``path``, and that version; others in its folder were removed by it."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(path)
        return sorted(table.file_uris()), table.version()
    except DeltaError as error:
        raise JobError(f"the table {path} cannot be read: {error}", hint="remove its folder and build it again") from error


def table_version(path: str) -> int:
    """The newest version of the Delta table at ``path``. Raises JobError where there is none."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        return int(DeltaTable(path).version())
    except DeltaError as error:
        raise JobError(f"the table {path} cannot be read: {error}") from error


def commit_note(path: str, name: str) -> str | None:
    """What the newest commit with a note of that name says; None where the log of the table at ``path`` holds none."""
    from deltalake import DeltaTable

    return next((str(commit[name]) for commit in DeltaTable(path).history() if name in commit), None)


def write_table(path: str, table: pa.Table, *, append: bool = False, note: Mapping[str, str] | None = None) -> None:
    """Make ``table``, after what is there if ``append``, the newest version of the Delta table at ``path``; ``note`` stands in its log."""
    from deltalake import write_deltalake
    from deltalake.exceptions import DeltaError

    try:
        if append:
            write_deltalake(path, table, mode="append")
        else:
            write_deltalake(path, table, mode="overwrite", schema_mode="overwrite", commit_properties=_at_once(note))
    except DeltaError as error:
        raise JobError(f"the table {path} cannot be written: {error}",
                       hint="is somebody else writing it, or is there a table of another kind?") from error


def append_once(path: str, table: pa.Table, name: str) -> bool:
    """Append ``table`` to the Delta table at ``path`` unless that was done under this ``name`` before; whether it was done now.

    The name is a transaction of the table's own log, so of two writers at once one gets an error instead of a second copy.
    """
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        try:
            if DeltaTable(path).transaction_version(name) is not None:
                return False
        except TableNotFoundError:
            pass
        write_deltalake(path, table, mode="append", schema_mode="merge", commit_properties=CommitProperties(app_transactions=[
            Transaction(name, 1)]))
    except DeltaError as error:
        raise JobError(f"the table {path} cannot be written: {error}", hint="is there a table of another kind?") from error
    return True


def write_part(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Part:
    """One file in the folder of the table at ``path``, which is there (``begin_replacing``), with the rows of ``batches``, of which
    there is at least one; they have an ``event_time``."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow import fs

    texts = [field.name for field in schema if pa.types.is_string(field.type)]  # dictionaries of numbers take as long as all else
    files, folder = fs.FileSystem.from_uri(path)
    file = f"part-{uuid4().hex}.snappy.parquet"
    rows, first_ms, last_ms = 0, [], []
    with pq.ParquetWriter(f"{folder}/{file}", schema, filesystem=files, use_dictionary=texts) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)
            rows += batch.num_rows
            first_ms.append(pc.min(batch["event_time"]).as_py())
            last_ms.append(pc.max(batch["event_time"]).as_py())
    return Part(file, files.get_file_info(f"{folder}/{file}").size, rows, min(first_ms), max(last_ms))


def begin_replacing(path: str, schema: pa.Schema, properties: Mapping[str, str]) -> DeltaTable:
    """The table at ``path`` as it is now, for ``replace_by_parts``; where there is none, one without rows that has ``properties``.

    It is made before its parts are: files in a folder without a table would be taken for one, and VACUUM does not go there.
    """
    from deltalake import DeltaTable, Schema
    from deltalake.exceptions import DeltaError
    from deltalake.transaction import create_table_with_add_actions

    try:
        if not DeltaTable.is_deltatable(path):
            create_table_with_add_actions(path, Schema.from_arrow(schema), [], mode="error", configuration=properties,
                                          commit_properties=_at_once())
        return DeltaTable(path)
    except DeltaError as error:
        raise JobError(f"the table {path} cannot be made: {error}", hint="is somebody else building it?") from error


def replace_by_parts(table: DeltaTable, schema: pa.Schema, parts: Sequence[Part], note: Mapping[str, str] | None = None) -> None:
    """Make the rows of ``parts`` the next version of ``table``, all of them or none; ``note`` stands in its log.

    Raises JobError where it has another version by now.
    """
    from deltalake import Schema
    from deltalake.exceptions import DeltaError
    from deltalake.transaction import AddAction

    now_ms = int(time.time() * 1000)
    actions: list[Any] = [AddAction(part.file, part.size, {}, now_ms, True, json.dumps({
        "numRecords": part.rows, "minValues": {"event_time": part.first_ms}, "maxValues": {"event_time": part.last_ms},
        "nullCount": {"event_time": 0}})) for part in parts]
    try:
        table.create_write_transaction(actions, "overwrite", Schema.from_arrow(schema), commit_properties=_at_once(note))
    except DeltaError as error:
        raise JobError(f"the table {table.table_uri} cannot be replaced: {error}", hint="is somebody else building it?") from error


def _at_once(note: Mapping[str, str] | None = None) -> CommitProperties:
    """As the next version or not at all. Of commits that it tries again delta-rs lets some pass that both add all rows: over an empty
    table, over none, and over files that OPTIMIZE has replaced meanwhile."""
    from deltalake import CommitProperties

    return CommitProperties(custom_metadata=dict(note or {}), max_commit_retries=0)


def read_file(path: str) -> str | None:
    """The text in the file ``path``, a path or URL that tables may lie under; None where there is none."""
    from pyarrow import fs

    files, path = fs.FileSystem.from_uri(path)
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return None
    with files.open_input_file(path) as file:
        return bytes(file.read()).decode()


def write_file(path: str, text: str) -> None:
    """Put ``text`` into the file ``path``, a path or URL that tables may lie under, in one step: half of it is never there."""
    from pyarrow import fs

    files, path = fs.FileSystem.from_uri(path)
    folder, _, name = path.rpartition("/")
    files.create_dir(folder)
    draft = f"{folder}/.{name}.{uuid4().hex}"
    with files.open_output_stream(draft) as file:
        file.write(text.encode())
    files.move(draft, path)
