"""Errors in the form that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

from fastapi.responses import JSONResponse

_TYPES = {404: "invalid_request_error", 429: "requests"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class Refused(Exception):
    """A request is not answered, and why."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def error_answer(refused: Refused) -> JSONResponse:
    """The answer to a request that is refused; `Retry-After` where it may be asked again."""
    body = error_body(refused.status, refused.message, refused.param, refused.code)
    headers = {"Retry-After": "1"} if refused.status in {429, 503} else None
    return JSONResponse(body, refused.status, headers)
