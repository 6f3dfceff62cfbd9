"""Write a cube: documents, shards, columns, and the root whose PUT publishes them.

Nothing here touches a published shard; a release adds rows and becomes visible all at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube import layout as layouts
from bigearth_cube.errors import NotFoundError
from bigearth_cube.layout import CubeLayout, Documents
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.release import Release, StoredObject
from bigearth_cube.shards import ArrayLayout, array_layout
from bigearth_cube.storage import Storage

ZARR = "cube.zarr"
"""Hierarchy of a cube, below its prefix."""
ROOT = "zarr.json"


@dataclass(frozen=True)
class CubeWriter:
    """Write one cube, object by object; pickles, so that workers write shards.

    Attributes
    ----------
    storage
        The cube's prefix.
    cube_id
        Name of the cube.
    layout
        How it is cut into objects.
    documents
        Its hierarchy at the length it will be published with.
    """

    storage: Storage
    cube_id: str
    layout: CubeLayout
    documents: Documents

    def put_documents(self, documents: Documents) -> list[StoredObject]:
        """Write group and array documents, and the names along their axes."""
        return [self._put(key, data) for key, data in self.encoded_documents(documents).items()]

    def encoded_documents(self, documents: Documents) -> dict[str, bytes]:
        """Encode what ``put_documents`` writes, by key."""
        encoded = {
            f"{ZARR}/{path}/{ROOT}": layouts.to_bytes(document)
            for path, document in documents.items()
        }
        for path, names in layouts.axis_values(documents).items():
            encoded |= self.encoded_column(path, 0, np.array(names, dtype=object))
        return encoded

    def put_shard(self, group: str, shard: int, data: bytes) -> StoredObject:
        """Put one shard, encoded; see ``shards.join_chunks``."""
        return self._put(f"{ZARR}/{self.pixel_layout(group).key(shard)}", data)

    def pixel_layout(self, group: str) -> ArrayLayout:
        """Return how the pixel array of a group is stored."""
        path = f"{group}/{GROUPS[group].array}"
        return array_layout(path, self.documents[path])

    def write_column(self, path: str, start: int, values: NDArray[Any]) -> list[StoredObject]:
        """Write a column from row ``start`` on; older rows keep their values."""
        encoded = self.encoded_column(path, start, values)
        return [self._put(key, data) for key, data in encoded.items()]

    def encoded_column(
        self,
        path: str,
        start: int,
        values: NDArray[Any],
        read: Callable[[str], bytes] | None = None,
    ) -> dict[str, bytes]:
        """Encode what ``write_column`` writes, by key.

        Parameters
        ----------
        path, start, values
            As there.
        read
            Returns an object that older rows share, or raises NotFoundError; reads the cube where
            it is None.
        """
        import zarr
        from zarr.buffer.cpu import Buffer

        document = self.documents[path]
        chunk_rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
        stop, n_rows = start + len(values), document["shape"][0]
        chunks = range(start // chunk_rows, -(-stop // chunk_rows))
        suffix = "/0" * (len(document["shape"]) - 1)
        keys = {chunk: f"{ZARR}/{path}/c/{chunk}{suffix}" for chunk in chunks}
        stored: dict[str, Any] = {
            f"{ZARR}/{path}/{ROOT}": Buffer.from_bytes(layouts.to_bytes(document))
        }
        for chunk, key in keys.items():
            first, last = chunk * chunk_rows, min((chunk + 1) * chunk_rows, n_rows)
            if first < start or stop < last:  # some of its rows stay as they are
                with suppress(NotFoundError):
                    stored[key] = Buffer.from_bytes((read or self.storage.read)(key))
        # zarr-python raises what its store does: it gets a dictionary, and storage gets the bytes.
        store = zarr.storage.MemoryStore(stored)
        # Empty chunks are written too, so that a missing one is always an error.
        array = zarr.open_array(store=store, path=f"{ZARR}/{path}", mode="r+").with_config(
            {"write_empty_chunks": True, "order": "C"}
        )
        array[start:stop] = values
        return {key: stored[key].to_bytes() for key in keys.values()}

    def publish(self, releases: Sequence[Release]) -> StoredObject:
        """Put the root document: from here on readers see the last of ``releases``."""
        documents = [asdict(release) for release in releases]
        attributes = layouts.root_attributes(self.cube_id, self.layout, documents)
        return self._put(f"{ZARR}/{ROOT}", layouts.root_document(attributes, self.documents))

    def record(self, key: str, objects: Sequence[StoredObject]) -> None:
        """Keep the checksums of written objects, for verify."""
        data = json.dumps([asdict(o) for o in objects], indent=1).encode()
        self.storage.write(key, data)

    def _put(self, key: str, data: bytes) -> StoredObject:
        self.storage.write(key, data)
        return StoredObject.of(key, data)

    def restating(self, release: str, columns: Iterable[str]) -> CubeWriter:
        """Return the writer of a release that states root columns anew, under ``labels/``."""
        n_rows = self.documents["id"]["shape"][0]
        documents = layouts.restated_documents(release, columns, n_rows)
        return replace(self, documents={**self.documents, **documents})

    def grown(self, n_rows: int, new_groups: Sequence[str] = ()) -> CubeWriter:
        """Return the writer of the next release: every array ``n_rows`` long, groups added."""
        layout = replace(
            self.layout, groups=tuple(dict.fromkeys((*self.layout.groups, *new_groups)))
        )
        documents = layouts.hierarchy(layout, n_rows)
        return replace(
            self,
            layout=layout,
            documents={**layouts.resized(self.documents, n_rows), **documents},
        )
