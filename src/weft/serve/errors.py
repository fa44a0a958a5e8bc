"""Every answer that is not a success has OpenAI's error shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from weft.errors import UserError
from weft.serve.engine_client import EngineLostError, QueueFullError

_FIELD: Final = re.compile(r"(?!(?:body|str|int|float|bool)$)[a-z_]\w*")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


DESCRIBED: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be served"},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot serve now"},
}
"""The error answers of the OpenAPI description."""


class ApiError(Exception):
    """An answer with a status; raised anywhere before the first byte is sent."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install_error_handlers(app: FastAPI) -> None:
    """Turn every exception of the application into an error answer."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, error: ApiError) -> JSONResponse:
        return _answer(error.status, str(error), error.param, error.code)

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first.get("type") == "refused":
            return _answer(400, str(first["msg"])[:300], first["ctx"]["name"])
        param = _place(first.get("loc", ()))
        return _answer(400, f"{param or 'body'}: {_message(first)}", param)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(UserError)
    async def _user(_: Request, error: UserError) -> JSONResponse:
        named = re.match(r"`(\w+)`", str(error))
        return _answer(400, str(error), named and named[1])

    @app.exception_handler(QueueFullError)
    async def _full(_: Request, error: QueueFullError) -> JSONResponse:
        return _answer(429, str(error), code="queue_full", headers={"Retry-After": "1"})

    @app.exception_handler(EngineLostError)
    async def _lost(_: Request, error: EngineLostError) -> JSONResponse:
        return _answer(503, str(error), code="engine_unavailable")


def _answer(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    safe = message.encode(errors="replace").decode()
    return JSONResponse(error_body(status, safe, param, code), status, headers)


def _place(location: Sequence[Any]) -> str | None:
    """The field, without the names that pydantic gives to the members of a union."""
    fields = [part for part in location if isinstance(part, int) or _FIELD.fullmatch(part)]
    return ".".join(map(str, fields))[:100] or None


def _message(error: Mapping[str, Any]) -> str:
    if error.get("type") == "json_invalid":
        return "the body is not valid JSON"
    if error.get("type") == "model_attributes_type" and len(error.get("loc", ())) < 2:
        return "must be a JSON object, sent with content-type: application/json"
    return str(error.get("msg", "invalid"))[:300].removeprefix("Value error, ")
