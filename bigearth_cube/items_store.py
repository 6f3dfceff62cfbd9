"""Items tables on storage: a cube's items as its releases state them, whole or by columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from bigearth_cube.errors import CubeIntegrityError, NotFoundError
from bigearth_cube.item_index import one_array
from bigearth_cube.storage import Storage

_COLUMNS_AT_ONCE: Final = 2


def read_items(storage: Storage, keys: Sequence[str]) -> pa.Table:
    """Read tables and put them end to end.

    Parameters
    ----------
    storage
        The cube's prefix.
    keys
        Keys of the tables below it, in the order of their rows.

    Raises
    ------
    CubeIntegrityError
        If a table is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    return pa.concat_tables([table.read(None) for table in _tables(storage, keys)])


def read_columns(storage: Storage, keys: Sequence[str], without: Collection[str]) -> pa.Table:
    """Read tables without some columns or fields, each column in one chunk.

    Parameters
    ----------
    storage, keys
        As in ``read_items``.
    without
        Names of columns or of fields of ``assets``, e.g. ``"links"``, ``"href"``.

    Raises
    ------
    CubeIntegrityError
        If a table is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    tables = _tables(storage, keys)
    schema = tables[0].file.schema
    leaves: dict[str, list[str]] = {}
    for path in (schema.column(i).path for i in range(len(schema))):
        if not {path, *path.split(".")} & {*without}:
            leaves.setdefault(path.split(".")[0], []).append(path)

    def read(paths: list[str]) -> pa.Array:
        return one_array(pa.concat_tables([table.read(paths) for table in tables]).column(0))

    # A column or two at a time: whole tables would lie in memory twice.
    with ThreadPoolExecutor(_COLUMNS_AT_ONCE) as pool:
        columns = dict(zip(leaves, pool.map(read, leaves.values()), strict=True))
    return pa.table(columns, metadata=tables[0].file.schema_arrow.metadata)


def _tables(storage: Storage, keys: Sequence[str]) -> list[_Table]:
    tables = [_Table(storage, key) for key in keys]
    for key, table in zip(keys, tables, strict=True):
        if not table.file.schema_arrow.equals(tables[0].file.schema_arrow):
            raise CubeIntegrityError(key, f"has other columns than {keys[0]}")
    return tables


class _Table:
    """One parquet file, in memory as it is stored; any fault is told with its key."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._key = key
        with self._faults():
            self._data = pa.py_buffer(storage.read(key))
        self.file = self._open()

    def read(self, columns: list[str] | None) -> pa.Table:
        file = self._open()  # of its own: a file is not safe between threads
        with self._faults():
            # Without threads: one that is left when the interpreter ends would abort the process.
            return file.read(columns, use_threads=False)

    def _open(self) -> pq.ParquetFile:
        with self._faults():
            return pq.ParquetFile(pa.BufferReader(self._data))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except NotFoundError:
            reason = "object is missing; it was written with the release"
        except (pa.ArrowException, pa.ArrowIOError) as error:
            reason = f"not a parquet file ({error})"
        else:
            return
        raise CubeIntegrityError(self._key, reason) from None
