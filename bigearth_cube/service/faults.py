"""What a request is refused with: a status, and what was found and what to do in words."""

from __future__ import annotations

import logging
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from bigearth_cube.errors import (
    BigEarthCubeError,
    CubeIntegrityError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from bigearth_cube.service.alike import NoEncoderError
from bigearth_cube.service.stac_api import JsonResponse

_STATUS: Final[dict[type[Exception], int]] = {
    InvalidInputError: 400,
    NoEncoderError: 409,
    NotFoundError: 404,
    CubeIntegrityError: 500,
    StorageError: 503,
}
_log = logging.getLogger(__name__)


class Fault(BaseModel):
    """Body of every refusal."""

    code: str
    description: str


Responses = dict[int | str, dict[str, Any]]
FAULTS: Final[Responses] = {
    400: {"model": Fault, "description": "The question is wrong: where, and what may be asked."},
    404: {"model": Fault, "description": "There is no such collection, item or view of it."},
    413: {"model": Fault, "description": "The body is larger than any question."},
    "default": {
        "model": Fault,
        "description": "Any other refusal; 500: damage; 503: storage is away.",
    },
}
"""What OpenAPI says of every operation."""
NO_ENCODER: Final[Responses] = {
    409: {"model": Fault, "description": "The model's vectors are here, what makes them is not."}
}


def add_faults(app: FastAPI) -> None:
    """Answer errors of the library, of forms and of routes in one shape."""
    app.add_exception_handler(BigEarthCubeError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_form)
    app.add_exception_handler(HTTPException, _refuse_plainly)
    app.add_exception_handler(Exception, _fail)


def fault(
    status: int, code: str, description: str, headers: dict[str, str] | None = None
) -> JsonResponse:
    """Make the answer."""
    return JsonResponse({"code": code, "description": description}, status, headers)


def _refuse(request: Request, error: Exception) -> JsonResponse:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    if status >= 500:
        _log.error("%s %s: %s", request.method, request.url.path, error)
    return fault(status, type(error).__name__, str(error))


def _refuse_form(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, RequestValidationError)
    found = []
    for wrong in error.errors()[:3]:
        place = ".".join(str(part) for part in wrong["loc"][1:]) or "body"
        found.append(f"{place}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}")
    return fault(400, "InvalidInputError", "; ".join(found))


def _refuse_plainly(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, HTTPException)
    code = {404: "NotFoundError", 405: "MethodNotAllowed"}.get(error.status_code, "Error")
    said = f"no {request.url.path:.200} here; / lists what there is"
    detail = said if error.status_code == 404 else str(error.detail)
    return fault(error.status_code, code, detail, dict(error.headers or {}))


def _fail(request: Request, error: Exception) -> JsonResponse:
    # The server logs the error itself, which goes on to it.
    return fault(500, "InternalError", "the service failed on this request; its log says why")
