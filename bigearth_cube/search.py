"""Questions to the items table: which rows of the cube, and a frozen answer.

A question is a box or shape, a time, a CQL2 filter, a split, ids, or any of them together. What
is unknown of an item is not found: a patch without labels does not lack ``Pastures``.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from bigearth_cube.cql import conjuncts, evaluate, parse_filter, shapes_required
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError
from bigearth_cube.item_index import (
    Box,
    ItemIndex,
    Mask,
    Places,
    When,
    one_array,
    parse_bbox,
    parse_datetime,
    parse_geometry,
    taken,
)
from bigearth_cube.nomenclature import check_split
from bigearth_cube.storage import Storage, StorageOptions, normalized_url

_SPARSE: Final = 8  # where fewer than one in so many is left, only those are asked further
_FORMAT: Final = "bigearth_cube selection 1"


def search(
    items: pa.Table | ItemIndex,
    *,
    bbox: Sequence[float] | None = None,
    intersects: Mapping[str, Any] | None = None,
    datetime: When | None = None,
    filter: str | Mapping[str, Any] | None = None,
    split: str | None = None,
    ids: Iterable[str] | None = None,
) -> NDArray[np.int64]:
    """Find the rows of the cube that meet every condition given.

    Parameters
    ----------
    items
        Items table of the cube, or an index of it.
    bbox
        West, south, east, north in degrees (six numbers: with heights, which are ignored). A
        patch is found when its footprint and the box share a point. West greater than east
        crosses the antimeridian.
    intersects
        GeoJSON geometry; instead of ``bbox``.
    datetime
        Instant, or interval as STAC writes it: ``"2018-03/2018-05"``, ``"2018-06-01/.."``; or
        a pair. A year, month or day means the whole of it.
    filter
        CQL2, as text or JSON: ``"bec:season" = 'summer' AND a_contains("bec:labels",
        'Pastures')``. As in ``datetime``, a year, month or day means the whole of it:
        ``datetime <= '2018-05'`` takes all of that May in.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    ids
        Names of patches; those that are not there are not found.

    Returns
    -------
    numpy.ndarray
        int64, sorted: values of ``bec:row``.

    Raises
    ------
    InvalidInputError
        If a condition cannot be understood; the message says where, and the choices.
    """
    index = items if isinstance(items, ItemIndex) else ItemIndex(items)
    question = Question.of(
        bbox=bbox, intersects=intersects, datetime=datetime, filter=filter, split=split, ids=ids
    )
    return np.sort(index.rows[question.places(index)])


@dataclass(frozen=True)
class Question:
    """Conditions, understood: what ``search`` takes, checked as far as no table is needed.

    Make it with ``of``.
    """

    boxes: tuple[Box, ...] = ()
    shape: shapely.Geometry | None = None
    interval: tuple[int, int] | None = None
    expression: Any = None
    split: str | None = None
    ids: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        *,
        bbox: Sequence[float] | None = None,
        intersects: Mapping[str, Any] | None = None,
        datetime: When | None = None,
        filter: str | Mapping[str, Any] | None = None,
        split: str | None = None,
        ids: Iterable[str] | None = None,
    ) -> Question:
        """Check conditions; the arguments are those of ``search``.

        Raises
        ------
        InvalidInputError
            If a condition cannot be understood; the message says where, and the choices.
        """
        if bbox is not None and intersects is not None:
            raise InvalidInputError("bbox and intersects given together; choose one of them")
        return cls(
            () if bbox is None else tuple(parse_bbox(bbox)),
            None if intersects is None else parse_geometry(intersects, "intersects"),
            None if datetime is None else parse_datetime(datetime),
            None if filter is None else parse_filter(filter),
            None if split is None else check_split(split),
            None if ids is None else tuple(_id_list(ids)),
        )

    @functools.cached_property
    def digest(self) -> bytes:
        """16 bytes that another question has not."""
        shape = None if self.shape is None else shapely.to_wkb(self.shape, hex=True)
        stated = [self.boxes, shape, self.interval, self.expression, self.split, self.ids]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).digest()[:16]

    def places(self, index: ItemIndex) -> Places:
        """Find the places in the table, increasing, of what meets every condition.

        Raises
        ------
        InvalidInputError
            If the filter names what the table has not.
        """
        at = self._candidates(index)
        found: Mask | None = None
        for condition in self._conditions(index):
            true = condition(at)
            found = true if found is None else found & true
            if np.count_nonzero(found) < len(found) // _SPARSE:
                at, found = _left(found, at), None
        if found is not None:
            return _left(found, at)
        return index.everything if at is None else at

    def _conditions(self, index: ItemIndex) -> Iterator[Callable[[Places | None], Mask]]:
        """Each says of some places where it is true; what it refuses does not depend on them."""
        if self.interval is not None:
            first, last = self.interval
            when = index.values("datetime")[0]
            yield lambda at: (taken(when, at) >= first) & (taken(when, at) <= last)
        if self.boxes:
            yield lambda at: functools.reduce(
                np.logical_or, (index.in_box(box, at) for box in self.boxes)
            )
        if self.shape is not None:
            yield functools.partial(index.in_relation, "intersects", self.shape)
        wanted = [] if self.expression is None else conjuncts(self.expression)
        if self.split is not None:
            wanted = [{"op": "=", "args": [{"property": "bec:split"}, self.split]}, *wanted]
        for condition in wanted:
            yield functools.partial(evaluate, condition, index)

    def _candidates(self, index: ItemIndex) -> Places | None:
        """Places that bounds or names leave; None for all."""
        if self.ids is not None:
            return index.places_of(self.ids)
        shapes = [] if self.shape is None else [self.shape]
        shapes += shapes_required(self.expression)
        boxes = self.boxes or tuple(tuple(shapely.bounds(shape).tolist()) for shape in shapes[:1])
        return index.near(boxes, self.interval) if boxes or self.interval is not None else None


def _left(found: Mask, at: Places | None) -> Places:
    """Places where a mask over ``at`` is true."""
    places = np.flatnonzero(found)
    return places.astype(np.int32) if at is None else at[places]


def _id_list(ids: Iterable[str]) -> list[str]:
    names = [ids] if isinstance(ids, str) else list(ids)
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError("ids holds something that is no text; expected names of patches")
    return names


class Searchable(Protocol):
    """What a selection is made of and resolved in: a cube opened at one release."""

    @property
    def id(self) -> str:
        """Name of the cube."""
        ...

    @property
    def release(self) -> Any:
        """The release it was opened at; ``name`` is its name."""
        ...

    @property
    def index(self) -> ItemIndex:
        """Its items."""
        ...

    def search(self, **query: Any) -> Selection:
        """Select patches by a query."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Frozen rows of one release of one cube: what a training was given.

    Two selections are equal when their digests are.

    Attributes
    ----------
    cube_id, release
        The cube, and the release its rows were chosen from.
    rows
        int64, sorted, read-only: indices along the patch axis.
    ids
        Names of the patches, in the order of ``rows``, as an Arrow array of strings.
    query
        The question asked, by argument of ``search``; beside the digest, not in it.
    """

    cube_id: str
    release: str
    rows: NDArray[np.int64]
    ids: pa.Array
    query: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = np.array(self.rows, np.int64)
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)

    def __repr__(self) -> str:
        asked = f", {dict(self.query)}" if self.query else ""
        return f"<Selection of {len(self):,} patches of {self.cube_id} {self.release}{asked}>"

    @classmethod
    def of(
        cls,
        items: pa.Table | ItemIndex,
        rows: NDArray[np.int64],
        *,
        cube_id: str,
        release: str,
        query: Mapping[str, Any] | None = None,
    ) -> Selection:
        """Freeze rows of an items table.

        Parameters
        ----------
        items
            Items table of the release, or an index of it.
        rows
            Values of ``bec:row``, in any order, each once.
        cube_id, release
            What they are rows of.
        query
            The question that gave them; what is None in it is left out.

        Raises
        ------
        InvalidInputError
            If a row is not in the table, or named twice.
        """
        index = items if isinstance(items, ItemIndex) else ItemIndex(items)
        wanted = np.sort(np.asarray(rows, np.int64))
        if len(wanted) and (np.diff(wanted) == 0).any():
            raise InvalidInputError("a row is named twice; a selection holds each row once")
        ids = _ids_of(index, wanted, release)
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        return cls(cube_id, release, wanted, ids, asked)

    @classmethod
    def from_items(
        cls, items: Any, cube: Searchable, *, query: Mapping[str, Any] | None = None
    ) -> Selection:
        r"""Freeze STAC items that any client found: the rows and digest that ``search`` gives.

        Parameters
        ----------
        items
            A pystac ItemCollection, pystac Items, a GeoJSON FeatureCollection, its features, or
            an Arrow table of items. An item that is there twice counts once.
        cube
            The cube whose items they are, at the release that is meant.
        query
            The question that gave them.

        Raises
        ------
        InvalidInputError
            If an item is of another collection, unknown to the cube, or at another row in it.

        Examples
        --------
        ::

            client = pystac_client.Client.open("http://127.0.0.1:8000")
            found = client.search(filter="a_contains(\"bec:labels\", 'Pastures')")
            selection = Selection.from_items(found.item_collection(), cube)
        """
        ids, rows, collections = _stated(items)
        if others := sorted(collections - {cube.id}):
            raise InvalidInputError(
                f"the items are of collection {others[0]!r}, this cube is {cube.id!r}; "
                f"open that one, or leave the items out"
            )
        places = _places_in(cube, ids)
        there = cube.index.rows[places]
        at = pc.index_in(cube.index.column("id").take(pa.array(places)), value_set=ids).to_numpy()
        stated = rows[at]
        differs = np.flatnonzero((stated != there) & (stated != _NOT_STATED))
        if len(differs):
            first = differs[0]
            raise InvalidInputError(
                f"item {ids[int(at[first])].as_py()!r} says row {stated[first]}, release "
                f"{cube.release.name!r} of cube {cube.id!r} has it in row {there[first]}; "
                f"it is of another cube of that name: search this one"
            )
        return cls.of(cube.index, there, cube_id=cube.id, release=cube.release.name, query=query)

    def resolve(
        self, cube: Searchable, *, by: Literal["patches", "query"] = "patches"
    ) -> Selection:
        """Make the selection anew for another release or cube; nothing does so unasked.

        Parameters
        ----------
        cube
            Where it is to hold.
        by
            ``"patches"``: the same patches by name, at the rows that they have there.
            ``"query"``: whatever the same question finds there.

        Raises
        ------
        InvalidInputError
            If a patch is not there, or the question is not known.
        """
        if by not in ("patches", "query"):
            raise InvalidInputError(f"by is {by!r}; choose 'patches' or 'query'")
        if by == "patches":
            rows = cube.index.rows[_places_in(cube, self.ids)]
            return Selection.of(
                cube.index,
                rows,
                cube_id=cube.id,
                release=cube.release.name,
                query=self.query,
            )
        unknown = set(self.query) - set(_CONDITIONS)
        if unknown or not self.query:
            raise InvalidInputError(
                f"the selection does not say what question gave it (it says {dict(self.query)!r}); "
                f"resolve it by='patches'"
            )
        return cube.search(**self.query)

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of cube id, release and the sorted ids, a line each, in UTF-8.

        Lines end with a line feed, ids are sorted by their bytes. Neither the order of rows nor
        the query counts, so the same patches of the same release have one digest for ever.
        """
        ids = self.ids.take(pc.array_sort_indices(self.ids)).to_pylist()
        lines = "\n".join([self.cube_id, self.release, *ids, ""])
        return hashlib.sha256(lines.encode()).hexdigest()

    def rows_in(self, items: pa.Table | ItemIndex) -> NDArray[np.int64]:
        """Return the rows once the items say that they hold the patches named.

        The digest vouches for the names alone; without this look a file whose rows were changed,
        or a cube that was made anew under the same name, would deliver other patches.

        Parameters
        ----------
        items
            Items table of the release, or an index of it; ``id`` and ``bec:row`` are enough.

        Returns
        -------
        numpy.ndarray
            int64, sorted, read-only: ``rows``.

        Raises
        ------
        InvalidInputError
            If a row holds another patch, or none.
        """
        index = items if isinstance(items, ItemIndex) else ItemIndex(items)
        there = _ids_of(index, self.rows, self.release)
        differs = pc.fill_null(pc.not_equal(there, self.ids), True)
        first = pc.index(differs, True).as_py()
        if first >= 0:
            raise InvalidInputError(
                f"row {self.rows[first]} is {there[first].as_py()!r} in the cube and "
                f"{self.ids[first].as_py()!r} in the selection; search again"
            )
        return self.rows

    def to_bytes(self) -> bytes:
        """Return the selection as a parquet file: ``id`` and ``bec:row``."""
        about = {
            "format": _FORMAT,
            "cube_id": self.cube_id,
            "release": self.release,
            "digest": self.digest,
            "query": self.query,
        }
        table = pa.table({"id": self.ids, "bec:row": self.rows})
        table = table.replace_schema_metadata({"bigearth_cube": json.dumps(about, default=str)})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()

    def save(self, url: str, storage_options: StorageOptions | None = None) -> None:
        """Write the selection as one parquet file; see ``to_bytes``.

        Parameters
        ----------
        url
            Path or URL of the file.
        storage_options
            As for a cube.

        Raises
        ------
        StorageError
            If storage refuses or cannot be reached.
        """
        folder, name = _split_url(url)
        Storage(folder, storage_options).write(name, self.to_bytes())

    @classmethod
    def load(cls, url: str, storage_options: StorageOptions | None = None) -> Selection:
        """Read a selection and check its digest.

        Parameters
        ----------
        url
            Path or URL of the file.
        storage_options
            As for a cube.

        Raises
        ------
        NotFoundError
            If there is no such file.
        InvalidInputError
            If the file is no selection.
        CubeIntegrityError
            If its patches are not those its digest was made of.
        StorageError
            If storage refuses or cannot be reached.
        """
        folder, name = _split_url(url)
        data = Storage(folder, storage_options).read(name)
        refusal = InvalidInputError(
            f"{url} is no selection; expected a parquet file that Selection.save wrote"
        )
        try:
            # Threads of Arrow let go of the bytes late, which aborts a process that is exiting.
            file = pq.ParquetFile(pa.BufferReader(data))
            table = file.read(use_threads=False).sort_by("bec:row")
            about = json.loads((table.schema.metadata or {})[b"bigearth_cube"])
            is_ours = about["format"] == _FORMAT
            rows, ids = table["bec:row"].to_numpy(), one_array(table["id"])
            selection = cls(about["cube_id"], about["release"], rows, ids, about["query"])
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            raise refusal from None
        if not is_ours or ids.null_count:
            raise refusal
        if selection.digest != about["digest"]:
            raise CubeIntegrityError(
                url, f"its patches give digest {selection.digest}, it states {about['digest']}"
            )
        return selection


_CONDITIONS: Final = ("bbox", "intersects", "datetime", "filter", "split", "ids")
_NOT_STATED: Final = -1


def _stated(items: Any) -> tuple[pa.Array, NDArray[np.int64], set[str]]:
    """Ids of items, the rows they say they are (-1: none), and their collections."""
    if isinstance(items, pa.Table):
        names = set(items.column_names)
        rows = items["bec:row"] if "bec:row" in names else pa.nulls(len(items), pa.int64())
        of = items["collection"].unique().to_pylist() if "collection" in names else []
        numbers = pc.fill_null(rows, _NOT_STATED).to_numpy()
        return one_array(items["id"]), numbers, set(of) - {None}
    if isinstance(items, Mapping):
        items = items.get("features")
    try:
        facts = [
            (item["id"], item.get("collection"), item.get("properties") or {})
            if isinstance(item, Mapping)
            else (item.id, item.collection_id, item.properties)
            for item in items
        ]
        ids = pa.array([identifier for identifier, _, _ in facts], pa.string())
        numbers = np.array([p.get("bec:row", _NOT_STATED) for _, _, p in facts], np.int64)
    except (KeyError, TypeError, AttributeError, ValueError, pa.ArrowException):
        raise InvalidInputError(
            "expected STAC items: an ItemCollection, a FeatureCollection, a list or a table of them"
        ) from None
    return ids, numbers, {of for _, of, _ in facts if of is not None}


def _places_in(cube: Searchable, ids: pa.Array) -> Places:
    """Places of all the patches named, or a refusal that names one that is not there."""
    wanted = pc.unique(ids)
    places = cube.index.places_of(wanted.to_pylist())
    if len(places) < len(wanted):
        there = cube.index.column("id").take(pa.array(places))
        missing = wanted.filter(pc.invert(pc.is_in(wanted, value_set=there)))
        raise InvalidInputError(
            f"{len(missing)} of {len(wanted)} patches are not in release {cube.release.name!r} of "
            f"cube {cube.id!r}, the first is {missing[0].as_py()!r}; search(ids=...) finds the others"
        )
    return places


def _ids_of(index: ItemIndex, rows: NDArray[np.int64], release: str) -> pa.Array:
    """Names of the patches in some rows, in their order."""
    order = np.argsort(index.rows, kind="stable")
    places = np.searchsorted(index.rows, rows, sorter=order)
    inside = places < len(order)
    at = order[places[inside]]
    if not inside.all() or (index.rows[at] != rows).any():
        missing = np.setdiff1d(rows, index.rows)
        raise InvalidInputError(
            f"row {missing[0]} is no patch of release {release!r}; "
            f"expected values of bec:row of its items"
        )
    return index.column("id").take(pa.array(at))


def _split_url(url: str) -> tuple[str, str]:
    folder, _, name = normalized_url(url).rpartition("/")
    if str(url).endswith("/") or folder.endswith(":/"):
        raise InvalidInputError(
            f"{str(url)!r} names no file; expected one such as run/train.parquet or "
            f"s3://bucket/train.parquet"
        )
    return folder or "/", name
