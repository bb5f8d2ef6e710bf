"""The error tree. Every error becomes OpenAI's shape at one place, in `web/errors.py` (API-5).

GatewayError
├── BadRequest 400
├── Unauthenticated 401
├── Forbidden 403
├── NotFound 404
│   └── ResponseDeleted
├── Conflict 409
├── Gone 410
├── PreconditionFailed 412
├── Unprocessable 422
├── Undecipherable 500
├── SecretUnavailable 503
├── StoreUnavailable 503
│   └── StorageFull 503
└── UpstreamError 502
    ├── UpstreamRefused           the upstream's own status and body
    ├── UpstreamUnreachable 502   nothing was sent
    ├── UpstreamTimeout 504       it may have arrived
    └── UpstreamDisconnected 502  it may have arrived
"""

from __future__ import annotations

from collections.abc import Mapping


class GatewayError(Exception):
    """An error that a caller is told.

    Attributes:
        status_code: The HTTP status.
        type: OpenAI's error type.
        code: OpenAI's error code, for programs.
        param: The field that is wrong, or `None`.
        headers: Response headers such as `retry-after`.
    """

    status_code = 500
    type = "server_error"
    default_code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.headers = dict(headers or {})


class BadRequest(GatewayError):
    """The request is wrong in a way that its sender can mend."""

    status_code = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class Unauthenticated(GatewayError):
    """No credential, or not a valid one."""

    status_code = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class Forbidden(GatewayError):
    """The principal may not do this."""

    status_code = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFound(GatewayError):
    """There is no such thing for this caller; a foreign thing reads the same (AUTH-2)."""

    status_code = 404
    type = "invalid_request_error"
    default_code = "not_found"


class ResponseDeleted(NotFound):
    """The response was deleted under whoever still worked on it."""

    default_code = "response_deleted"


class Conflict(GatewayError):
    """The thing is in a state that does not allow this."""

    status_code = 409
    type = "conflict_error"
    default_code = "conflict"


class Gone(GatewayError):
    """Its time is over."""

    status_code = 410
    type = "conflict_error"
    default_code = "expired"


class PreconditionFailed(GatewayError):
    """`If-Match` names another version."""

    status_code = 412
    type = "conflict_error"
    default_code = "version_mismatch"


class Unprocessable(GatewayError):
    """Well-formed, but a needed part is missing."""

    status_code = 422
    type = "invalid_request_error"
    default_code = "unprocessable"


class StoreUnavailable(GatewayError):
    """The store does not answer; state-bearing requests fail closed (OPS-4)."""

    status_code = 503
    default_code = "store_unavailable"

    def __init__(self, message: str = "The state store is unavailable. Try again.") -> None:
        super().__init__(message, headers={"retry-after": "2"})


class StorageFull(StoreUnavailable):
    """The store refuses to write."""

    default_code = "storage_full"

    def __init__(self) -> None:
        super().__init__("The state store is full. Try again later.")


class SecretUnavailable(GatewayError):
    """A secret that must be sent cannot be read; the message names its reference only."""

    status_code = 503
    default_code = "secret_unavailable"


class Undecipherable(GatewayError):
    """Stored bytes cannot be opened: unknown key, or altered."""

    status_code = 500
    default_code = "state_undecipherable"


class UpstreamError(GatewayError):
    """The upstream did not do what was asked."""

    status_code = 502
    type = "upstream_error"
    default_code = "upstream_error"


class UpstreamRefused(UpstreamError):
    """The upstream answered with an HTTP error; its body and headers are passed on."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"The upstream answered {status}.")
        self.status_code = status
        self.upstream_headers = dict(headers)
        self.body = body


class UpstreamUnreachable(UpstreamError):
    """No connection to the upstream; provably nothing was sent."""

    default_code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer in time; the request may have arrived."""

    status_code = 504
    default_code = "upstream_timeout"


class UpstreamDisconnected(UpstreamError):
    """The connection to the upstream broke; the request may have arrived."""

    default_code = "upstream_disconnected"
