"""A cube as xarray has it: lazy groups, as one release saw them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from bigearth_cube.layout import Documents
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.opened_store import OpenedStore
from bigearth_cube.release import Release, filled_runs, patch_rows, restated, runs_of
from bigearth_cube.storage import Storage
from bigearth_cube.writer import ROOT, ZARR


def open_tree(
    storage: Storage, root: bytes, documents: Documents, releases: Sequence[Release]
) -> xr.DataTree:
    """Open all groups of a cube, without padding.

    Parameters
    ----------
    storage
        The cube's prefix.
    root
        Its root document, which is not asked for again.
    documents
        Metadata of the groups and arrays that the release has.
    releases
        All of them up to the one that is meant, oldest first.

    Returns
    -------
    xarray.DataTree
        Every group with the root's columns and ``row``, the index in the stored arrays, as
        coordinates along ``patch``.
    """
    store: Any = OpenedStore(storage.child(ZARR).zarr_store(), ROOT, root)
    opened = xr.open_datatree(store, engine="zarr", consolidated=True, chunks={}, zarr_format=3)
    n_rows = releases[-1].stop
    whole = _with_restated(opened, releases)
    # Variables, not arrays: an array would bring the root's `id` and `acquired` along, over
    # those of the Sentinel-1 group.
    shared = {name: c.variable for name, c in whole.coords.items() if c.dims == ("patch",)}
    shared["row"] = xr.Variable("patch", np.arange(n_rows))
    rows = patch_rows(releases)
    runs = runs_of(rows)
    there = slice(*runs[0]) if len(runs) == 1 else rows
    nodes: dict[str, xr.Dataset] = {}
    for node in opened.subtree:
        path = node.path.strip("/")
        if path and path not in documents:
            continue  # of a later release than this one
        dataset = node.to_dataset(inherit=False) if path else whole
        if "patch" in dataset.dims:
            dataset = dataset.isel(patch=slice(n_rows))  # later releases made it longer
        if path in GROUPS:
            dataset = _without_later_views(dataset, path, releases)
        if "patch" in dataset.dims:
            own = {name: c for name, c in shared.items() if name not in dataset.variables}
            dataset = dataset.assign_coords(own).isel(patch=there)
        nodes[node.path] = dataset
    return xr.DataTree.from_dict(nodes)


def patch_of(tree: xr.DataTree, position: int) -> xr.DataTree:
    """Take one patch, by its position along ``patch``, with x, y and CRS on every group."""
    nodes = {}
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=False)
        if "patch" in dataset.dims:
            dataset = dataset.isel(patch=position)
        if {"y", "x"} <= set(dataset.dims):
            dataset = _georeferenced(dataset, GROUPS[node.path.strip("/")].resolution_m)
        nodes[node.path] = dataset
    return xr.DataTree.from_dict(nodes)


def _with_restated(opened: xr.DataTree, releases: Sequence[Release]) -> xr.Dataset:
    """Give the root as the newest release that states each column has it."""
    root = opened.to_dataset(inherit=False)
    stated = {}
    for name in root.variables:
        found = restated(releases, str(name))
        if found is not None:
            path, stop = found
            anew = opened[f"/{path}"].variable
            stated[name] = _end_to_end([anew[:stop], root.variables[name][stop:]])
    return root.assign(stated).isel(patch=slice(releases[-1].stop))


def _without_later_views(
    dataset: xr.Dataset, group: str, releases: Sequence[Release]
) -> xr.Dataset:
    """Let rows of which this release has no view read as fill, as they did then."""
    runs, n_rows = filled_runs(releases, group), releases[-1].stop
    if sum(stop - start for start, stop in runs) == n_rows:
        return dataset
    ends = [0, *(end for run in runs for end in run), n_rows]
    pieces = {}
    for name, variable in dataset.variables.items():
        if "patch" not in variable.dims:
            continue
        fill = _fill_of(variable, GROUPS[group].fill_value)
        pieces[name] = _end_to_end(
            [
                variable[a:b] if i % 2 else xr.full_like(variable[a:b], fill)
                for i, (a, b) in enumerate(itertools.pairwise(ends))
                if a < b
            ]
        )
    return dataset.assign(pieces)


def _end_to_end(pieces: Sequence[xr.Variable]) -> xr.Variable:
    joined: xr.Variable = xr.Variable.concat(pieces, "patch")  # type: ignore[no-untyped-call]
    return joined


def _fill_of(variable: xr.Variable, pixel_fill: float) -> Any:
    """Say what a variable of a pixel group holds where nothing was written."""
    if variable.ndim > 1:
        return pixel_fill
    if variable.dtype.kind == "M":
        return np.datetime64(0, "s")
    return "" if variable.dtype.kind in "OT" else variable.dtype.type(0)


def _georeferenced(dataset: xr.Dataset, resolution_m: int) -> xr.Dataset:
    """Add x and y of pixel centers (meters) and the CRS, CF style."""
    import pyproj

    ulx, uly = int(dataset["ulx"]), int(dataset["uly"])
    x = ulx + resolution_m * (np.arange(dataset.sizes["x"]) + 0.5)
    y = uly - resolution_m * (np.arange(dataset.sizes["y"]) + 0.5)
    crs = pyproj.CRS.from_epsg(int(dataset["epsg"]))
    transform = f"{ulx} {resolution_m} 0 {uly} 0 {-resolution_m}"
    reference = xr.DataArray(0, attrs={**crs.to_cf(), "GeoTransform": transform})
    located = dataset.assign_coords(x=x, y=y, spatial_ref=reference)
    for name in located.data_vars:
        if {"y", "x"} <= set(located[name].dims):
            located[name].attrs["grid_mapping"] = "spatial_ref"
    return located
