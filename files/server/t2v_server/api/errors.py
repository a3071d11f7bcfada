"""What a request can be refused with: one shape, stable codes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

# The ``type`` that clients of OpenAI's API know, by the status.
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class ApiError(Exception):
    """An answer that is an error.

    ``code`` is for programs and does not change, ``message`` for people; ``param`` names the
    parameter that is wrong; ``retry_after`` is seconds. ``text`` stands in for the message
    where the answer is text/plain.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        self.text = text or message

    @property
    def kind(self) -> str:
        """The ``type`` of the error object."""
        if self.status in _TYPES:
            return _TYPES[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """The body: ``{"error": {"code", "message", "type", "param"}}``."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "type": self.kind,
                "param": self.param,
            }
        }
