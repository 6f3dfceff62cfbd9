"""What may be asked over HTTP: parameters of GET, bodies of POST, and one form of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import attr
import orjson
from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.pages import Fields
from bigearth_cube.retrieval.distances import Metric
from bigearth_cube.search import Question

MOST_ITEMS: Final = 10_000
"""Items of one page; a larger limit is taken for it, as STAC asks."""
MOST_ROWS: Final = 1_000_000
"""Rows of one table: columns cost a fiftieth of JSON."""
DEFAULT_LIMIT: Final = 10

_CRS84: Final = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
_INSTANT: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
Format = Literal["geojson", "geoparquet", "arrow"]
_TYPES: Final[Mapping[str, Format]] = {
    "application/vnd.apache.parquet": "geoparquet",
    "application/x-parquet": "geoparquet",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/geo+json": "geojson",
    "application/json": "geojson",
    "application/*": "geojson",
    "*/*": "geojson",
}
_WEIGHT: Final = re.compile(r"\s*[Qq]\s*=\s*([01](?:\.\d{0,3})?)\s*", re.ASCII)
_FORMATS: Final[Mapping[str, Format]] = {
    "json": "geojson",
    "geojson": "geojson",
    "parquet": "geoparquet",
    "geoparquet": "geoparquet",
    "arrow": "arrow",
}

_Bbox = Annotated[str | None, Query(description="West, south, east, north in degrees, by commas.")]
_Intersects = Annotated[str | None, Query(description="GeoJSON geometry, instead of a bbox.")]
_Datetime = Annotated[
    str | None,
    Query(description="Instant or interval, as RFC 3339 has it: 2018-03-01T00:00:00Z/.. say."),
]
_Limit = Annotated[
    str | None,
    Query(description=f"Items of a page, 1 to {MOST_ITEMS:,}; {DEFAULT_LIMIT} if not said."),
]
_Token = Annotated[str | None, Query(description="Where a page begins, from its link.")]
_Filter = Annotated[
    str | None,
    Query(alias="filter", description="""CQL2, text or JSON, e.g. "bec:season" = 'summer'."""),
]
_FilterLang = Annotated[
    str | None, Query(alias="filter-lang", description="cql2-text or cql2-json.")
]
_FilterCrs = Annotated[str | None, Query(alias="filter-crs", description=_CRS84)]
_Sortby = Annotated[str | None, Query(description="E.g. -datetime,+id.")]
_Fields = Annotated[str | None, Query(description="E.g. id,properties.datetime,-assets.")]
_F = Annotated[str | None, Query(description="Form of the answer: geojson, geoparquet, arrow.")]


@attr.s
class _FilterGet(APIRequest):
    filter: _Filter = attr.ib(default=None)
    filter_lang: _FilterLang = attr.ib(default=None)
    filter_crs: _FilterCrs = attr.ib(default=None)


@attr.s
class _AreaGet(APIRequest):
    bbox: _Bbox = attr.ib(default=None)
    datetime: _Datetime = attr.ib(default=None)


@attr.s
class _PageGet(APIRequest):
    limit: _Limit = attr.ib(default=None)
    token: _Token = attr.ib(default=None)
    sortby: _Sortby = attr.ib(default=None)
    fields: _Fields = attr.ib(default=None)
    f: _F = attr.ib(default=None)


@attr.s
class _ManyGet(APIRequest):
    collections: Annotated[str | None, Query(description="Names, by commas.")] = attr.ib(
        default=None
    )
    ids: Annotated[str | None, Query(description="Names of items, by commas.")] = attr.ib(
        default=None
    )
    intersects: _Intersects = attr.ib(default=None)


@attr.s
class QuestionGet(_AreaGet, _FilterGet):
    """Conditions on the items of one collection."""

    ids: Annotated[str | None, Query(description="Names of items, by commas.")] = attr.ib(
        default=None
    )
    intersects: _Intersects = attr.ib(default=None)


@attr.s
class DensityGet(QuestionGet):
    """Parameters of ``GET /collections/{collection_id}/density``."""

    zoom: Annotated[
        int, Query(ge=0, le=22, description="Of the web map tiles that are counted by.")
    ] = attr.ib(default=8)
    label: Annotated[str | None, Query(description="Count the items of this class, too.")] = (
        attr.ib(default=None)
    )


@attr.s
class SimilarGet(QuestionGet):
    """Parameters of ``GET /collections/{collection_id}/items/{item_id}/similar``."""

    k: Annotated[int, Query(description="How many, 1 to 10,000.")] = attr.ib(default=10)
    model: Annotated[
        str | None, Query(description="Whose embeddings; not needed where there is one model.")
    ] = attr.ib(default=None)
    query_model: Annotated[
        str | None,
        Query(
            alias="query-model",
            description="Embeddings that the query is of, where they are others of the same space.",
        ),
    ] = attr.ib(default=None)
    metric: Annotated[Metric, Query(description="Distance.")] = attr.ib(default="chi2")


@attr.s
class CollectionGet(APIRequest):
    """The name of a collection, in the path."""

    collection_id: Annotated[str, Path(description="Id of the collection.")] = attr.ib()


@attr.s
class SearchGet(_ManyGet, _AreaGet, _FilterGet, _PageGet):
    """Parameters of ``GET /search``."""


@attr.s
class ItemsGet(CollectionGet, _AreaGet, _FilterGet, _PageGet):
    """Parameters of ``GET /collections/{collection_id}/items``."""


@attr.s
class _AggregationsGet(APIRequest):
    aggregations: Annotated[str | None, Query(description="Names of /aggregations, by commas.")] = (
        attr.ib(default=None)
    )
    zoom: Annotated[
        int, Query(ge=0, le=22, description="Of the web map tiles of grid_geotile_frequency.")
    ] = attr.ib(default=6)


@attr.s
class AggregateGet(_AggregationsGet, _ManyGet, _AreaGet, _FilterGet):
    """Parameters of ``GET /aggregate``."""


@attr.s
class CollectionAggregateGet(CollectionGet, _AggregationsGet, _ManyGet, _AreaGet, _FilterGet):
    """Parameters of ``GET /collections/{collection_id}/aggregate``."""


class _SearchConditions(BaseModel):
    # What is not known is refused: a condition that is not applied would widen the answer.
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    collections: list[str] | None = None
    ids: list[str] | None = None
    bbox: list[float] | None = None
    intersects: dict[str, Any] | None = None
    datetime: str | None = None
    filter: str | dict[str, Any] | None = Field(None, description="CQL2, text or JSON.")
    filter_lang: str | None = Field(None, alias="filter-lang")
    filter_crs: str | None = Field(None, alias="filter-crs")


class SimilarPost(_SearchConditions):
    """Body of ``POST /collections/{collection_id}/similar``: ``bands`` or ``item``."""

    bands: dict[str, Any] | None = Field(
        None, description="DN (dB of VV and VH) by band, rows of numbers: all bands of a patch."
    )
    item: dict[str, Any] | None = Field(None, description="A STAC item of any cube served here.")
    k: int = 10
    model: str | None = None
    query_model: str | None = Field(None, alias="query-model")
    metric: Metric = "chi2"


class SearchPost(_SearchConditions):
    """Body of ``POST /search``."""

    limit: int | None = None
    token: str | None = None
    sortby: list[dict[str, Any] | str] | None = None
    fields: dict[str, Any] | list[str] | None = None


class AggregatePost(_SearchConditions):
    """Body of ``POST /aggregate``."""

    aggregations: list[str] | None = None
    zoom: int = Field(6, ge=0, le=22)
    limit: int | None = None


@dataclass(frozen=True)
class Asked:
    """What a request asks: a question, among which cubes, and how the answer is to come.

    Attributes
    ----------
    question
        The conditions.
    collections
        Names of cubes; None for all.
    limit
        Items of a page.
    token, sortby
        As ``pages.page`` takes them.
    fields
        Those wanted; None for all.
    """

    question: Question
    collections: tuple[str, ...] | None
    limit: int
    token: str | None
    sortby: Any
    fields: Fields | None

    @classmethod
    def of(cls, given: Mapping[str, Any], *, most: int = MOST_ITEMS) -> Asked:
        """Understand what was given, as parameters (texts) or as a body.

        Raises
        ------
        InvalidInputError
            If something cannot be understood; the message says where.
        """
        collections = _names(given.get("collections"))
        fields = given.get("fields")
        return cls(
            question_of(given),
            None if collections is None else tuple(collections),
            _limit(given.get("limit"), most),
            given.get("token") or None,
            given.get("sortby") or None,
            None if not fields else Fields.of(fields),
        )


def question_of(given: Mapping[str, Any]) -> Question:
    """Understand the conditions among what was given.

    Raises
    ------
    InvalidInputError
        If one cannot be understood; the message says where.
    """
    return Question.of(**conditions_of(given))


def conditions_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the conditions among what was given: arguments of ``search``, None where not given.

    Raises
    ------
    InvalidInputError
        As ``question_of``, but for what only a question says.
    """
    crs = given.get("filter_crs")
    if crs not in (None, "", _CRS84):
        raise InvalidInputError(f"filter-crs is {crs!r:.200}; expected {_CRS84}")
    return {
        "bbox": _numbers(given.get("bbox"), "bbox"),
        "intersects": _json(given.get("intersects"), "intersects"),
        "datetime": _datetime(given.get("datetime")),
        "filter": _filter(given.get("filter"), given.get("filter_lang")),
        "ids": _names(given.get("ids")),
    }


def _datetime(given: str | None) -> str | None:
    """Refuse what the library takes and STAC does not: a client means one thing everywhere."""
    if not given:
        return None
    parts = given.split("/")
    for part in parts:
        if not _INSTANT.fullmatch(part) and not (len(parts) == 2 and part in ("", "..")):
            raise InvalidInputError(
                f"datetime is {given!r:.100}; expected e.g. 2018-03-01T00:00:00Z, "
                f"2018-03-01T00:00:00Z/2018-05-31T23:59:59Z or 2018-03-01T00:00:00Z/.."
            )
    return given


def _filter(given: Any, language: str | None) -> Any:
    if given in (None, "", {}):
        return None
    if language not in (None, "", "cql2-text", "cql2-json"):
        raise InvalidInputError(
            f"filter-lang is {language!r:.60}; choose one of: cql2-text, cql2-json"
        )
    is_json = isinstance(given, dict) or given.lstrip().startswith("{")
    if language and (language == "cql2-json") != is_json:
        found = "JSON" if is_json else "text"
        raise InvalidInputError(f"filter-lang is {language}, but the filter is {found}")
    return _json(given, "filter") if is_json else given


def _json(given: Any, name: str) -> Any:
    if not given or isinstance(given, dict):
        return given or None
    try:
        value = orjson.loads(given)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"{name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} is {given!r:.100}; expected a JSON object")
    return value


def _numbers(given: str | Sequence[float] | None, name: str) -> Sequence[float] | None:
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        return given
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise InvalidInputError(
            f"{name} is {given!r:.100}; expected numbers with commas between them"
        ) from None


def _names(given: str | Sequence[str] | None) -> list[str] | None:
    if given is None or given == "":
        return None
    return given.split(",") if isinstance(given, str) else list(given) or None


def _limit(given: str | int | None, most: int) -> int:
    if given is None or given == "":
        return DEFAULT_LIMIT
    text = str(given)
    if not text.isascii() or not text.isdigit() or not text.strip("0"):
        raise InvalidInputError(f"limit is {text!r:.30}; expected a whole number from 1")
    return most if len(text.lstrip("0")) > 9 else min(int(text), most)


def format_of(request: Request) -> Format:
    """Choose the form of an answer: ``f`` where it is given, else by the Accept header.

    That with the largest weight there, and of several the first.

    Raises
    ------
    InvalidInputError
        If ``f`` is no form there is.
    """
    asked = request.query_params.get("f")
    if asked:
        if asked not in _FORMATS:
            raise InvalidInputError(
                f"f is {asked!r:.30}; choose one of: geojson, geoparquet, arrow"
            )
        return _FORMATS[asked]
    form: Format = "geojson"
    most = 0.0
    for entry in request.headers.get("accept", "").split(","):
        kind, *parameters = entry.split(";")
        stated = [found[1] for found in map(_WEIGHT.fullmatch, parameters) if found]
        weight = float(stated[0]) if stated else 1.0
        if weight > most and kind.strip().lower() in _TYPES:
            form, most = _TYPES[kind.strip().lower()], weight
    return form


async def refuse_repeated(request: Request) -> None:
    """Refuse a parameter that is there twice: one of the two would not be applied.

    Raises
    ------
    InvalidInputError
        If there is one.
    """
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidInputError(
                f"parameter {name!r:.60} is there twice; give it once, several names by commas"
            )
        seen.add(name)


def check_parameters(request: Request, known: type[APIRequest]) -> None:
    """Refuse a parameter that is not known: unapplied, it would widen the answer.

    Raises
    ------
    InvalidInputError
        If there is one; the message has the choices.
    """
    names = {field.name.replace("_", "-") for field in attr.fields(known)}
    names = {n for n in names if n != "collection-id"}
    for name in request.query_params:
        if name not in names:
            raise InvalidInputError(
                f"unknown parameter {name!r:.60}; choose from: {', '.join(sorted(names))}"
            )
