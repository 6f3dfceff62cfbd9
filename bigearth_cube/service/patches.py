"""What there is of one patch beside its item: pictures, pixels, other dates; and maps of many."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.search import Question, Selection
from bigearth_cube.service import requests
from bigearth_cube.service.alike import LookAlikes, pixels_of
from bigearth_cube.service.faults import NO_ENCODER
from bigearth_cube.service.pictures import KINDS, Pictures
from bigearth_cube.service.predictions import Predictions
from bigearth_cube.service.render import THUMBNAIL
from bigearth_cube.service.shelf import Served, Shelf
from bigearth_cube.service.stac_api import CoreClient, JsonResponse
from bigearth_cube.tally import cells

# Pixels of a row do not change, but a cube may be made anew under its name.
_FRESH: Final = "public, max-age=3600"
_MOST_CELLS: Final = 100_000
_MOST_DATES: Final = 1000
_PARQUET: Final = "application/vnd.apache.parquet"
_Similar = Annotated[Any, Depends(requests.SimilarGet)]
_ITEM: Final = "/collections/{collection_id}/items/{item_id}"


def router_of(shelf: Shelf, client: CoreClient) -> APIRouter:
    """Make the routes.

    Parameters
    ----------
    shelf
        The cubes.
    client
        What writes items.
    """
    router = APIRouter(tags=["Patches"])
    alike = {name: LookAlikes(served) for name, served in shelf.served.items()}
    pictures = {name: Pictures(served) for name, served in shelf.served.items()}
    said = {name: Predictions(served) for name, served in shelf.served.items()}

    @router.get(
        f"{_ITEM}/{THUMBNAIL}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, 304: {"description": "As you have it."}},
    )
    def thumbnail(
        request: Request,
        collection_id: str,
        item_id: str,
        kind: Literal["true_color", "false_color", "s1", "map"] = "true_color",
        bands: Annotated[
            str | None, Query(description="Three bands instead of a kind, e.g. B12,B8A,B04.")
        ] = None,
    ) -> Response:
        """Draw a patch, 120 x 120 px, with the same contrast as every other."""
        served = shelf[collection_id]
        place = served.place_of(item_id)
        chosen = tuple(bands.split(",")) if bands else KINDS[kind]
        etag = f'"{served.etag}-{place}-{"-".join(chosen)}"'
        headers = {"ETag": etag, "Cache-Control": _FRESH}
        drawn = pictures[collection_id].picture(place, chosen)
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(drawn, media_type="image/png", headers=headers)

    @router.get(f"{_ITEM}/spectrum")
    def spectrum(collection_id: str, item_id: str, x: int, y: int) -> Response:
        """List all bands of one 10 m pixel, x and y counted from the upper left."""
        place = shelf[collection_id].place_of(item_id)
        bands = pictures[collection_id].spectrum(place, x, y)
        headers = {"Cache-Control": _FRESH}
        return JsonResponse({"id": item_id, "x": x, "y": y, "bands": bands}, headers=headers)

    @router.get(f"{_ITEM}/pixels")
    def pixels(
        collection_id: str,
        item_id: str,
        groups: Annotated[
            str | None, Query(description="E.g. s2/r10m,s1/r10m; all if not said.")
        ] = None,
    ) -> Response:
        """Give the pixels of a patch as stored: values by band, then row, then column."""
        place = shelf[collection_id].place_of(item_id)
        there = pictures[collection_id]
        names = groups.split(",") if groups else there.groups_of(place) or list(GROUPS)[:1]
        found = {
            name: {
                "bands": list(GROUPS[name].bands),
                "resolution_m": GROUPS[name].resolution_m,
                "shape": values.shape,
                "values": np.ascontiguousarray(values).ravel(),
            }
            for name in names
            for values in [there.pixels(place, name)]
        }
        headers = {"Cache-Control": _FRESH}
        return JsonResponse({"id": item_id, "groups": found}, headers=headers)

    @router.get(f"{_ITEM}/dates")
    def dates(request: Request, collection_id: str, item_id: str) -> Response:
        """Give the items of the same place, this one among them, oldest first."""
        served = shelf[collection_id]
        place = served.index.column("bec:place")[served.place_of(item_id)].as_py()
        same = {"op": "=", "args": [{"property": "bec:place"}, place]}
        given = {"filter": same, "sortby": "datetime", "limit": _MOST_DATES}
        return client.answer(request, given, [collection_id])

    @router.get(f"{_ITEM}/predictions")
    def predictions(collection_id: str, item_id: str) -> Response:
        """List what each model says of a patch: class to score, highest first."""
        place = shelf[collection_id].place_of(item_id)
        return JsonResponse({"id": item_id, "models": said[collection_id].of_patch(place)})

    @router.get("/collections/{collection_id}/models")
    def models(collection_id: str) -> Response:
        """List the models whose embeddings a cube has."""
        shelf[collection_id]
        return JsonResponse({"models": alike[collection_id].models()})

    @router.get(f"{_ITEM}/similar", responses=NO_ENCODER)
    def similar(request: Request, collection_id: str, item_id: str, asked: _Similar) -> Response:
        """Give the k items that look most like one, nearest first, with their distance."""
        requests.check_parameters(request, requests.SimilarGet)
        served = shelf[collection_id]
        found = alike[collection_id].of_patch(served.place_of(item_id), **_how(asked.kwargs()))
        return client.ranked(request, served, *found)

    @router.post("/collections/{collection_id}/similar", responses=NO_ENCODER)
    def similar_to_posted(
        request: Request, collection_id: str, given: requests.SimilarPost
    ) -> Response:
        """Give the k items that look most like a patch that is posted: bands, or an item."""
        served, how = shelf[collection_id], _how(given.model_dump())
        if (given.bands is None) == (given.item is None):
            raise InvalidInputError("expected bands or item, one of the two")
        if given.bands is not None:
            found = alike[collection_id].of_pixels(pixels_of(given.bands), **how)
            return client.ranked(request, served, *found)
        other, place = _posted_item(shelf, given.item or {})
        if other is served:
            return client.ranked(request, served, *alike[collection_id].of_patch(place, **how))
        groups = alike[collection_id].groups_read(how["model"], how["query_model"])
        pixels = {group: pictures[other.name].pixels(place, group) for group in groups}
        return client.ranked(request, served, *alike[collection_id].of_pixels(pixels, **how))

    @router.get("/collections/{collection_id}/density")
    def density(
        request: Request, collection_id: str, asked: Annotated[Any, Depends(requests.DensityGet)]
    ) -> Response:
        """Count items by web map tile: columns x, y, count, and those of one class."""
        served = shelf[collection_id]
        requests.check_parameters(request, requests.DensityGet)
        places = requests.question_of(asked.kwargs()).places(served.index)
        x, y, n = cells(served.index, places, asked.zoom)
        if len(x) > _MOST_CELLS:
            raise InvalidInputError(
                f"zoom {asked.zoom} has {len(x):,} cells here, more than {_MOST_CELLS:,}; choose a "
                f"smaller zoom or a smaller bbox"
            )
        found = {"zoom": asked.zoom, "matched": len(places), "x": x, "y": y, "count": n}
        if asked.label is not None:
            found["with_label"] = _with_label(served, places, asked.zoom, asked.label, x, y)
        return JsonResponse(found)

    @router.get(
        "/collections/{collection_id}/selection",
        response_class=Response,
        responses={200: {"content": {_PARQUET: {}}}},
    )
    def selection(
        request: Request, collection_id: str, asked: Annotated[Any, Depends(requests.QuestionGet)]
    ) -> Response:
        """Freeze what a question finds as a selection file, as ``bec search --out`` writes it."""
        served = shelf[collection_id]
        requests.check_parameters(request, requests.QuestionGet)
        query = requests.conditions_of(asked.kwargs())
        places = Question.of(**query).places(served.index)
        frozen = Selection.of(
            served.index,
            served.index.rows[places],
            cube_id=served.name,
            release=served.cube.release.name,
            query=query,
        )
        name = f'attachment; filename="{served.name}-selection.parquet"'
        return Response(
            frozen.to_bytes(), media_type=_PARQUET, headers={"Content-Disposition": name}
        )

    return router


def _how(given: dict[str, Any]) -> dict[str, Any]:
    """Take what is said of the neighbors wanted."""
    among = requests.question_of(given)
    names = ("k", "model", "query_model", "metric")
    return {name: given[name] for name in names} | {"among": among}


def _posted_item(shelf: Shelf, item: dict[str, Any]) -> tuple[Served, int]:
    """Find the patch that a posted item names, in any of the cubes."""
    collection, name = item.get("collection"), item.get("id")
    if not isinstance(collection, str) or not isinstance(name, str):
        raise InvalidInputError("item has no collection and id; expected a STAC item")
    served = shelf[collection]
    return served, served.place_of(name)


def _with_label(served: Served, places: Any, zoom: int, label: str, x: Any, y: Any) -> Any:
    """Count the items of one class in the cells that were found."""
    names = ["bec:labels", "bec:labels_43"]
    known = [name for name in names if name in served.index.queryables]
    for name in known:
        labels, members, _ = served.index.sets(name)
        if label in labels:
            bit = members.dtype.type(1 << labels.index(label))
            chosen = places[(members[places] & bit) != 0]
            counted = np.zeros(len(x), np.int64)
            at_x, at_y, n = cells(served.index, chosen, zoom)
            keys, wanted = x << 22 | y, at_x << 22 | at_y
            counted[np.searchsorted(keys, wanted)] = n
            return counted
    choices = sorted({label for name in known for label in served.index.sets(name)[0]})
    raise InvalidInputError(f"no class {label!r:.100}; choose one of: {', '.join(choices)}")
