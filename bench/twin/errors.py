"""Refusals and how they are answered: under /api as RealWorld shapes them, under /market as RFC 9457 does."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

__all__ = ["Refusal", "install"]


class Refusal(Exception):
    """`errors`: field or kind of thing -> sentences."""

    def __init__(self, status: int, errors: Mapping[str, list[str]]) -> None:
        self.status = status
        self.errors = errors
        super().__init__(status, errors)


def install(app: FastAPI) -> None:
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _answer(request, error.status, error.errors)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors: dict[str, list[str]] = {}
    for fault in error.errors():
        place = [part for part in fault["loc"] if isinstance(part, str)]
        errors.setdefault(place[-1] if place else "body", []).append(fault["msg"])
    return _answer(request, 422, errors)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, {"request": [error.detail]})


def _answer(request: Request, status: int, errors: Mapping[str, list[str]]) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    if not request.url.path.startswith("/market/"):
        return JSONResponse({"errors": errors}, status, headers)
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "errors": errors,
    }
    return JSONResponse(problem, status, headers, media_type="application/problem+json")
