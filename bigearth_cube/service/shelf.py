"""The cubes that one server answers for, each with its index of items."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.item_index import ItemIndex
from bigearth_cube.nomenclature import GROUPS

# Of an asset only its presence is read: the rest is the same for every item.
_REPEATED: Final = (
    "type",
    "stac_version",
    "stac_extensions",
    "links",
    "href",
    "roles",
    "zarr:node_type",
)
_MISSION: Final = "mission"
_COLLECTION: Final = "collection.json"


class Served:
    """One cube, ready to answer.

    Parameters
    ----------
    cube
        Opened; its items are read here.

    Attributes
    ----------
    cube
        The cube.
    index
        Its items, without what is the same for all of them.

    Raises
    ------
    CubeIntegrityError
        If the items table is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    """

    def __init__(self, cube: Cube) -> None:
        self.cube = cube
        table = cube.read_items(_REPEATED)
        # A field of STAC's core that clients filter by, as by eo:cloud_cover: here it is unknown.
        self.index = ItemIndex(table.append_column(_MISSION, pa.nulls(len(table), pa.string())))

    @property
    def name(self) -> str:
        """Id of the collection."""
        return self.cube.id

    @functools.cached_property
    def url(self) -> str:
        """Where the cube lies, as strangers may read it: without a password in it."""
        parts = urlsplit(self.cube.url)
        if not parts.netloc:
            return self.cube.url
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def place_of(self, patch_id: str) -> int:
        """Return the place of a patch in the index.

        Raises
        ------
        NotFoundError
            If there is none of that name.
        """
        found = self.index.places_of([patch_id])
        if not len(found):
            raise NotFoundError(f"no patch {patch_id!r:.200} in collection {self.name!r}")
        return int(found[0])

    @functools.cached_property
    def presence(self) -> tuple[list[tuple[str, ...]], NDArray[np.uint8]]:
        """Which groups items have pixels of: the sets that occur, and each item's among them."""
        assets = self.index.column("assets")
        there = {field.name: assets.field(field.name).is_valid() for field in assets.type}
        groups = [path for path in GROUPS if path in there]
        codes = np.zeros(len(self.index), np.uint8)
        for bit, path in enumerate(groups):
            codes |= (np.asarray(there[path], bool) << bit).astype(np.uint8)
        seen, which = np.unique(codes, return_inverse=True)
        sets = [
            tuple(path for bit, path in enumerate(groups) if code >> bit & 1)
            for code in seen.tolist()
        ]
        return sets, which.astype(np.uint8)

    @functools.cached_property
    def collection(self) -> Mapping[str, Any]:
        """The collection as it lies beside the cube. Do not change it: it is shared."""
        try:
            return dict(orjson.loads(self.cube.storage.read(_COLLECTION)))
        except (NotFoundError, ValueError) as error:
            raise CubeIntegrityError(_COLLECTION, f"no description of the cube ({error})") from None

    @functools.cached_property
    def etag(self) -> str:
        """What changes when the release served does."""
        stated = f"{self.name} {self.cube.release.name} {self.cube.release.digest}"
        return hashlib.sha256(stated.encode()).hexdigest()[:16]


class Shelf:
    """Cubes by the name of their collection, in the order given.

    Parameters
    ----------
    cubes
        At least one, each with a name of its own.

    Raises
    ------
    InvalidInputError
        If there is none, or two have one name.
    CubeIntegrityError
        If an items table is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    """

    def __init__(self, cubes: Sequence[Cube]) -> None:
        if not cubes:
            raise InvalidInputError("no cube to serve; name at least one")
        names = [cube.id for cube in cubes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidInputError(
                f"two cubes are named {twice!r}; serve one of them, or give the other a name of "
                f"its own with 'bec ingest --id'"
            )
        self.served = {cube.id: Served(cube) for cube in cubes}

    def __getitem__(self, collection: str) -> Served:
        """Return what is served of a collection.

        Raises
        ------
        NotFoundError
            If no cube of that name is served.
        """
        if collection not in self.served:
            raise NotFoundError(
                f"no collection {collection!r:.200}; choose one of: {', '.join(self.served)}"
            )
        return self.served[collection]

    def among(self, collections: Sequence[str] | None) -> list[Served]:
        """Return what is served of some collections, of all if None; unknown ones have nothing."""
        return [
            served
            for name, served in self.served.items()
            if collections is None or name in collections
        ]
