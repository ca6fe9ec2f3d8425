"""Refusals, as the HTTP API reports them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any


class ApiError(Exception):
    """A request that is answered with an error status. `message` is for the person who reads the client's log."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def error_body(status: int, message: str) -> dict[str, Any]:
    """The JSON of an error, as the API gives it."""
    return {"statusCode": status, "error": HTTPStatus(status).phrase, "message": message}
