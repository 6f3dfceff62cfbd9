"""Answers page by page: in any order, counted exactly, with the fields that were asked for.

A page ends at an item, and its token names that item, not a number of items to skip: a page is
found as fast at the end of an answer as at its start, by any process that has the same cubes, and
a release that is published meanwhile neither repeats nor loses an item.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import ItemIndex, Places, taken
from bigearth_cube.search import Question

Sort = str | Sequence[str | Mapping[str, Any]]
"""``"-datetime,id"``, its parts, or ``{"field": "datetime", "direction": "desc"}`` of each."""

_TOKEN: Final = struct.Struct("<?B8sq")  # forward, which index, stamp of the question, row
_TOP_LEVEL: Final = (
    "id",
    "type",
    "stac_version",
    "stac_extensions",
    "geometry",
    "bbox",
    "links",
    "assets",
    "properties",
    "collection",
)
_ALWAYS_VALID: Final = (
    ("id",),
    ("type",),
    ("stac_version",),
    ("geometry",),
    ("bbox",),
    ("links",),
    ("assets",),
    ("collection",),
    ("properties", "datetime"),
)


@dataclass(frozen=True, slots=True)
class SortKey:
    """A property to sort by; unknown values come last, up or down."""

    name: str
    descending: bool = False


def parse_sort(sortby: Sort | None, index: ItemIndex) -> tuple[SortKey, ...]:
    """Understand how an answer is to be sorted.

    Parameters
    ----------
    sortby
        As the STAC API writes it: text with ``+`` or ``-`` before each name, or objects with
        ``field`` and ``direction``. Names may begin with ``properties.``.
    index
        Whose properties are meant.

    Raises
    ------
    InvalidInputError
        If a name is unknown or has no order; the message has the choices.
    """
    parts = sortby.split(",") if isinstance(sortby, str) else list(sortby or ())
    return tuple(_sort_key(part, index) for part in parts)


def _sort_key(part: Any, index: ItemIndex) -> SortKey:
    name: Any = None
    direction: Any = None
    if isinstance(part, str):
        text = part.strip()  # a plus sign in a URL that was not quoted is a space
        name, direction = text.lstrip("+-"), "desc" if text.startswith("-") else "asc"
    elif isinstance(part, Mapping):
        name, direction = part.get("field"), part.get("direction", "asc")
    if not isinstance(name, str) or direction not in ("asc", "desc"):
        raise InvalidInputError(
            f"sortby has {part!r}; expected e.g. '-datetime', or a field with direction asc or desc"
        )
    name = name.removeprefix("properties.")
    if name not in index.sortables:
        raise InvalidInputError(f"sortby has {name!r}; choose from: {', '.join(index.sortables)}")
    return SortKey(name, direction == "desc")


@dataclass(frozen=True, slots=True)
class Page:
    """Part of an answer.

    Attributes
    ----------
    which
        Number of the index of each item, among those that were asked.
    places
        Place of each item in the table of that index.
    matched
        Items in the whole answer.
    next, previous
        Tokens of the pages around it; None where there is none.
    """

    which: NDArray[np.uint8]
    places: Places
    matched: int
    next: str | None
    previous: str | None

    def __len__(self) -> int:
        return len(self.places)


def page(
    indexes: ItemIndex | Sequence[ItemIndex],
    question: Question,
    *,
    sortby: Sort | None = None,
    limit: int = 10,
    token: str | None = None,
) -> Page:
    """Find one page of the answer to a question.

    Parameters
    ----------
    indexes
        One cube's items, or those of several, at most 256, whose answers become one.
    question
        The conditions.
    sortby
        See ``parse_sort``. Where nothing is said, and between equals, items stand in the order of
        the indexes and of their tables.
    limit
        Most items of a page; at least 1.
    token
        What the page before said of this one. Question, order and indexes must be the same;
        ``limit`` may differ.

    Raises
    ------
    InvalidInputError
        If the order, the limit, the token or the filter cannot be understood.
    """
    asked = [indexes] if isinstance(indexes, ItemIndex) else list(indexes)
    if limit < 1:
        raise InvalidInputError(f"limit is {limit}; expected at least 1")
    keys = [parse_sort(sortby, index) for index in asked]
    stamp = _stamp(asked, question, keys[0] if keys else ())
    anchor = None if token is None else _Anchor.of(token, stamp, asked)
    forward = anchor is None or anchor.forward
    found = [question.places(index) for index in asked]
    left = 0
    heads: list[Places] = []
    for number, (index, places, by) in enumerate(zip(asked, found, keys, strict=True)):
        columns = [_column(index, key, places, forward=forward) for key in by]
        if anchor is not None:
            beyond = anchor.beyond(number, index, by, columns, places)
            places = places[beyond]
            columns = [column[beyond] for column in columns]
        left += len(places)
        heads.append(places[_smallest(columns, limit, len(places), forward)])
    which, places = _merged(heads, asked, keys[0] if keys else ())
    which, places = (
        (which[:limit], places[:limit]) if forward else (which[-limit:], places[-limit:])
    )
    matched = sum(map(len, found))
    has_more, has_less = left > len(places), left < matched
    after, before = (has_more, has_less) if forward else (has_less, has_more)

    def token_at(i: int, *, forward: bool) -> str:
        number = int(which[i])
        row = int(asked[number].rows[places[i]])
        packed = _TOKEN.pack(forward, number, stamp, row)
        return base64.urlsafe_b64encode(packed).decode()

    return Page(
        which,
        places,
        matched,
        token_at(-1, forward=True) if after and len(places) else None,
        token_at(0, forward=False) if before and len(places) else None,
    )


def _stamp(asked: Sequence[ItemIndex], question: Question, keys: Sequence[SortKey]) -> bytes:
    """8 bytes by which a token knows the answer that it is of."""
    stated = [[index.collection for index in asked], [(k.name, k.descending) for k in keys]]
    return hashlib.sha256(question.digest + json.dumps(stated).encode()).digest()[:8]


def _column(index: ItemIndex, key: SortKey, places: Places, *, forward: bool) -> NDArray[Any]:
    """Numbers that increase along the answer, or against it where ``forward`` is False."""
    ranks, unknown = index.ranks(key.name)
    values = taken(ranks, places)
    values = values.astype(np.int64 if values.dtype.kind in "biu" else np.float64)
    if key.descending:
        values = -values
    if unknown is not None:
        values[taken(unknown, places)] = _last(values.dtype)
    return values if forward else -values


def _last(dtype: Any) -> Any:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


@dataclass(frozen=True, slots=True)
class _Anchor:
    """The item that a page begins after, or ends before."""

    forward: bool
    number: int
    index: ItemIndex
    place: int

    @classmethod
    def of(cls, token: str, stamp: bytes, asked: Sequence[ItemIndex]) -> _Anchor:
        try:
            packed = base64.b64decode(token.encode(), b"-_", validate=True)
            forward, number, made_for, row = _TOKEN.unpack(packed)
        except (binascii.Error, struct.error, UnicodeError, AttributeError):
            raise InvalidInputError(
                f"token {token!r:.60} is none of ours; take it as the last page gave it"
            ) from None
        if made_for != stamp:
            raise InvalidInputError(
                "the token is of another question, order or set of collections; "
                "ask for its first page again"
            )
        place = asked[number].place_of_row(row) if number < len(asked) else None
        if place is None:
            raise InvalidInputError(
                f"the token names row {row}, which is no item any more; ask for the first page again"
            )
        return cls(forward, number, asked[number], place)

    def beyond(
        self,
        number: int,
        index: ItemIndex,
        keys: Sequence[SortKey],
        columns: Sequence[NDArray[Any]],
        places: Places,
    ) -> NDArray[np.bool_]:
        """Say which candidates of an index come after the anchor, in the direction of travel."""
        further = number > self.number if self.forward else number < self.number
        if number == self.number:
            after = places > self.place if self.forward else places < self.place
        else:
            after = np.full(len(places), further)
        for key, column in zip(reversed(keys), reversed(columns), strict=True):
            edge = self._value(key, index, column.dtype)
            after = (column > edge) | ((column == edge) & after)
        return after

    def _value(self, key: SortKey, index: ItemIndex, dtype: Any) -> Any:
        """Where the anchor stands on the scale of an index, between two of its numbers or on one."""
        ranks, unknown = self.index.ranks(key.name)
        if unknown is not None and unknown[self.place]:
            edge = _last(dtype)
            return edge if self.forward else -edge
        if index is self.index:
            value: Any = ranks[self.place].item()
        else:
            known = self.index.column(key.name)[self.place]
            value = index.rank_of(key.name, known.as_py(), ranks[self.place].item())
        return value if key.descending != self.forward else -value


def _smallest(
    columns: Sequence[NDArray[Any]], n: int, n_all: int, forward: bool
) -> NDArray[np.intp] | slice:
    """Positions, increasing, of the first ``n`` in order; equals are taken by position."""
    if n_all <= n:
        return slice(None)
    if not columns:
        return slice(n) if forward else slice(-n, None)
    head, *rest = columns
    edge = np.partition(head, n - 1)[n - 1]
    below, ties = np.flatnonzero(head < edge), np.flatnonzero(head == edge)
    n_ties = n - len(below)
    ties = ties[_smallest([column[ties] for column in rest], n_ties, len(ties), forward)]
    return np.sort(np.concatenate([below, ties]))


def _merged(
    heads: Sequence[Places],
    asked: Sequence[ItemIndex],
    keys: Sequence[SortKey],
) -> tuple[NDArray[np.uint8], Places]:
    """Put the first items of every index in order: the order of the answer, not of travel."""
    which = np.repeat(np.arange(len(heads), dtype=np.uint8), [len(of_index) for of_index in heads])
    places = np.concatenate([np.empty(0, np.int32), *heads])
    if not keys:
        return which, places
    columns = []
    for key in keys:
        if len(heads) == 1:
            columns.append(_column(asked[0], key, places, forward=True))
            continue
        known = [
            value
            for index, of_index in zip(asked, heads, strict=True)
            for value in index.column(key.name).take(of_index).to_pylist()
        ]
        scale = sorted({value for value in known if value is not None})
        rank = {value: i for i, value in enumerate(scale)}
        sign = -1 if key.descending else 1
        columns.append(np.array([len(scale) if v is None else sign * rank[v] for v in known]))
    # lexsort is stable: equals stay in the order of indexes and places.
    order = np.lexsort(columns[::-1])
    return which[order], places[order]


# --- fields


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of an item are wanted, after the STAC API's extension.

    Wanted are the fields that make an item valid, those included, and not those excluded.
    """

    include: tuple[tuple[str, ...], ...] = ()
    exclude: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, fields: str | Sequence[str] | Mapping[str, Any]) -> Fields:
        """Understand what fields are asked for.

        Parameters
        ----------
        fields
            ``"properties,-geometry"``, its parts, or an object with ``include`` and ``exclude``.
            Names of properties need no ``properties.`` before them.

        Raises
        ------
        InvalidInputError
            If it is none of these.

        Examples
        --------
        >>> Fields.of("bec:labels,-assets")
        Fields(include=(('properties', 'bec:labels'),), exclude=(('assets',),))
        """
        if isinstance(fields, Mapping):
            include, exclude = fields.get("include") or [], fields.get("exclude") or []
        else:
            parts = fields.split(",") if isinstance(fields, str) else list(fields)
            if not all(isinstance(part, str) for part in parts):
                raise InvalidInputError(f"fields is {fields!r}; expected names")
            names = [part.strip() for part in parts if part.strip()]
            exclude = [name[1:] for name in names if name.startswith("-")]
            include = [name.lstrip("+") for name in names if not name.startswith("-")]
        both = (include, exclude)
        if not all(
            isinstance(x, list | tuple) and all(isinstance(n, str) for n in x) for x in both
        ):
            raise InvalidInputError(
                f"fields is {fields!r}; expected lists of names as include and exclude"
            )
        return cls(tuple(map(_path, include)), tuple(map(_path, exclude)))

    def apply(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Give the wanted part of an item; what it has not got is left out."""
        chosen: dict[str, Any] = {}
        for path in (*_ALWAYS_VALID, *self.include):
            _copy(item, path, chosen)
        for path in self.exclude:
            _remove(chosen, path)
        return chosen


def _path(name: str) -> tuple[str, ...]:
    first, *rest = name.split(".")
    return (first, *rest) if first in _TOP_LEVEL else ("properties", name)


def _copy(source: Mapping[str, Any], path: Sequence[str], target: dict[str, Any]) -> None:
    name, *rest = path
    if name not in source:
        return
    value = source[name]
    if not rest:
        target[name] = dict(value) if isinstance(value, Mapping) else value
    elif isinstance(value, Mapping):
        inner = target.setdefault(name, {})
        if inner is value:
            inner = target[name] = dict(value)
        _copy(value, rest, inner)


def _remove(target: dict[str, Any], path: Sequence[str]) -> None:
    name, *rest = path
    if name not in target:
        return
    if not rest:
        del target[name]
    elif isinstance(target[name], Mapping):
        target[name] = dict(target[name])  # assets are shared between items
        _remove(target[name], rest)
