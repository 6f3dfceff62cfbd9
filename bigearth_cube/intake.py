"""Intake drivers: a cube as a DataTree, its items as an Arrow table, a group as a Dataset.

The catalogs that use them are in Intake's V1 format. ``bigearthnet`` is the entry that
``intake.cat`` shows once the package is installed; its cube is named by ``url`` or BEC_CUBE.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import Any, Final

import pyarrow as pa
import xarray as xr
from intake.catalog.local import YAMLFileCatalog
from intake.source.base import DataSource, Schema

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.storage import StorageOptions

_CATALOG: Final = importlib.resources.files("bigearth_cube") / "data" / "bigearthnet.yaml"


class _CubeDriver(DataSource):  # type: ignore[misc]  # intake has no types
    """What the drivers share: the cube they read, opened when first needed.

    Parameters
    ----------
    url
        URL of the cube.
    storage_options
        As for ``open_cube``.
    release
        Name of a release; the newest if None.
    metadata
        What the catalog says of the source.
    """

    version = "1"
    partition_access = False

    def __init__(
        self,
        url: str,
        storage_options: StorageOptions | None = None,
        release: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(storage_options=storage_options, metadata=metadata)
        self.url = url
        self.release = release

    @functools.cached_property
    def cube(self) -> Cube:
        """The cube behind the source.

        Raises
        ------
        InvalidInputError
            If no URL was given.
        """
        if not self.url:
            raise InvalidInputError(
                "no cube named; set the environment variable BEC_CUBE to its URL, or pass url=, "
                "e.g. intake.cat.bigearthnet(url='s3://bucket/bigearthnet-v2')"
            )
        return open_cube(self.url, storage_options=self.storage_options, release=self.release)

    def _get_schema(self) -> Schema:
        about = {"cube": self.cube.id, "release": self.cube.release.name}
        return Schema(dtype=None, shape=None, npartitions=1, extra_metadata=about)

    def _close(self) -> None:
        self.__dict__.pop("cube", None)


class CubeSource(_CubeDriver):
    """A whole cube (driver ``bigearth_cube``)."""

    name = "bigearth_cube"
    container = "xarray"

    def to_datatree(self) -> xr.DataTree:
        """All groups, lazily: nothing is read before values are asked for."""
        return self.cube.tree

    def to_dask(self) -> xr.DataTree:
        """Give the same as ``to_datatree``; its arrays are Dask arrays."""
        return self.to_datatree()

    def read(self) -> xr.DataTree:
        """Give the same: a cube is larger than memory, so reading is left to the caller."""
        return self.to_datatree()


class ItemsSource(_CubeDriver):
    """The items of a cube, one row a patch (driver ``bigearth_items``)."""

    name = "bigearth_items"
    container = "table"

    def read(self) -> pa.Table:
        """All items, as an Arrow table (stac-geoparquet)."""
        return self.cube.items


class GroupSource(_CubeDriver):
    """One group of a cube, on one grid (driver ``bigearth_group``).

    Parameters
    ----------
    url
        URL of the cube.
    sensor
        ``"s2"``, ``"s1"`` or ``"reference"``.
    res
        ``"r10m"``, ``"r20m"`` or ``"r60m"``; the last two for ``"s2"`` only.
    storage_options
        As for ``open_cube``.
    release
        Name of a release; the newest if None.
    metadata
        What the catalog says of the source.

    Raises
    ------
    InvalidInputError
        If there is no such group.
    """

    name = "bigearth_group"
    container = "xarray"

    def __init__(
        self,
        url: str,
        sensor: str = "s2",
        res: str = "r10m",
        storage_options: StorageOptions | None = None,
        release: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(url, storage_options, release, metadata)
        self.path = f"{sensor}/{res}"
        if self.path not in GROUPS:
            raise InvalidInputError(
                f"unknown group {self.path!r}; choose sensor and res from: {', '.join(GROUPS)}"
            )

    def to_dask(self) -> xr.Dataset:
        """Pixels and coordinates of the group, lazily.

        Raises
        ------
        InvalidInputError
            If this cube has not got the group.
        """
        tree = self.cube.tree
        have = [path for path in GROUPS if f"/{path}" in tree.groups]
        if not have:
            raise InvalidInputError(
                f"cube {self.cube.id!r} has no {self.path}: it was made from lists alone"
            )
        if self.path not in have:
            raise InvalidInputError(
                f"cube {self.cube.id!r} has no {self.path}; it has: {', '.join(have)}"
            )
        return tree[self.path].to_dataset()

    def read(self) -> xr.Dataset:
        """Give the same as ``to_dask``: a group is larger than memory."""
        return self.to_dask()


class BigEarthNetCatalog(YAMLFileCatalog):  # type: ignore[misc]  # intake has no types
    """The sources of one cube, by its URL: ``intake.cat.bigearthnet(url=…)``.

    Parameters
    ----------
    url
        URL of the cube; where it is None the environment variable BEC_CUBE names it.
    storage_options
        As for ``open_cube``; passed on to every source.
    release
        Name of a release; the newest if None.
    **kwargs
        What intake gives every catalog, such as ``name`` and ``metadata``.
    """

    def __init__(
        self,
        url: str | None = None,
        storage_options: StorageOptions | None = None,
        release: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"url": url, "storage_options": storage_options, "release": release}
        self._given = {name: value for name, value in given.items() if value is not None}
        super().__init__(path=str(_CATALOG), **kwargs)

    def parse(self, text: str) -> None:
        """Read the entries, and give each what the catalog was given."""
        super().parse(text)
        for entry in self._entries.values():
            entry._open_args = {**entry._open_args, **self._given}


def __getattr__(name: str) -> Any:
    # Entry points name an instance, and a module without side effects makes none on import.
    if name == "bigearthnet":
        return BigEarthNetCatalog(name="bigearthnet")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
