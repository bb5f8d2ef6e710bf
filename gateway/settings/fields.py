"""The kinds of value a setting can have; each error says what is right, never what was written."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
)

from gateway.domain.identity import Role
from gateway.domain.secrets import SecretRef

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_HOST_PATTERN = re.compile(r"[A-Za-z0-9*?.-]+")
_REDIS_SCHEMES = (
    "redis://",
    "rediss://",
    "redis+cluster://",
    "rediss+cluster://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "unix://",
)

# Set by HTTP itself for each connection and body; a configured one could only break the message.
_TRANSPORT_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def seconds(value: object) -> float:
    """Read a duration: `"30m"`, `"1h30m"`, `"250ms"`, or a number of seconds.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"\d+(?:\.\d+)?", text):  # the environment knows only text
        return float(text)
    if _DURATION.fullmatch(text) is None:
        raise ValueError('must be a duration such as "30s", "30m" or "2h", or a number of seconds')
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def reference(value: object) -> SecretRef:
    """Read a secret's reference.

    Raises:
        ValueError: It is not one; perhaps it is the secret itself, so it is not repeated.
    """
    if isinstance(value, SecretRef):
        return value
    return SecretRef.parse(value if isinstance(value, str) else "")


def redis_url(value: object) -> SecretRef | SecretStr | None:
    """Read `redis.url`: "embedded", a URL, or the reference of a URL that holds a password.

    Raises:
        ValueError: It is none of these.
    """
    if value is None or isinstance(value, SecretRef):
        return value
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and (text == "embedded" or text.startswith(_REDIS_SCHEMES)):
        return SecretStr(text)
    try:
        return reference(text)
    except ValueError:
        raise ValueError(
            'must be "embedded", a URL (redis://, rediss://, redis+cluster://, redis+sentinel://, '
            "unix://) or the reference of one: env:NAME, file:PATH or keyvault:NAME"
        ) from None


def web_url(text: str) -> str:
    """Check an http(s) URL without user, fragment or characters that clients read differently.

    Raises:
        ValueError: It is not such a URL.
    """
    if re.search(r"[\s\\\x00-\x1f\x7f]", text) or not text.isascii():
        raise ValueError("must be an ASCII URL without spaces, control characters or backslashes")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("must be a valid http:// or https:// URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL with a host")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password; use a header with a reference")
    if parts.fragment:
        raise ValueError("must not hold a fragment (#…)")
    return text


def origin(text: str) -> str:
    """Check a CORS origin: `*`, or scheme, host and port alone.

    Raises:
        ValueError: It has a path or is no URL.
    """
    if text == "*":
        return text
    parts = urlsplit(web_url(text))
    if parts.path or parts.query:
        raise ValueError("must be an origin (https://host[:port]) without a path or final slash")
    return text


def header_name(text: str) -> str:
    """Check the name of a header that may be configured.

    Raises:
        ValueError: It is no HTTP token, or HTTP sets it itself.
    """
    if _TOKEN.fullmatch(text) is None:
        raise ValueError("is not a valid header name")
    if text.lower() in _TRANSPORT_HEADERS:
        raise ValueError("is a header that HTTP itself sets and cannot be configured")
    return text


def header_value(text: str) -> str:
    """Check a header value: visible ASCII, no space at its ends.

    Raises:
        ValueError: It would not survive the wire, or would split the message.
    """
    if _HEADER_VALUE.fullmatch(text) is None:
        raise ValueError("must be visible ASCII without line breaks or outer spaces")
    return text


def host_pattern(text: str) -> str:
    """Check a host pattern such as `*.example.com`.

    Raises:
        ValueError: It has a scheme, port or path.
    """
    if _HOST_PATTERN.fullmatch(text) is None:
        raise ValueError('must be a host pattern such as "*.example.com", without scheme or path')
    return text


def network(text: str) -> str:
    """Check a network such as `10.1.0.0/16`, or one address.

    Raises:
        ValueError: It is neither, or has bits outside its mask.
    """
    try:
        ip_network(text)
    except ValueError:
        raise ValueError('must be a network such as "10.1.0.0/16" or "fd12::/64"') from None
    return text


def approver(text: str) -> str:
    """Check who may approve: `role:NAME`, `group:NAME` or `subject:NAME`.

    Raises:
        ValueError: It is none of these, or names a role that does not exist.
    """
    kind, separator, name = text.partition(":")
    if not separator or not name or kind not in ("role", "group", "subject"):
        raise ValueError("must be role:NAME, group:NAME or subject:NAME")
    if kind == "role" and name not in {role.value for role in Role}:
        raise ValueError(f"names no role; roles are {', '.join(role.value for role in Role)}")
    return text


def _written(value: object) -> str | None:
    return None if value is None else str(value)  # a SecretStr writes asterisks


Duration = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=366 * 86400)]
Pause = Annotated[float, BeforeValidator(seconds), Field(ge=0, le=3600)]
Reference = Annotated[SecretRef, PlainValidator(reference), PlainSerializer(str)]
RedisUrl = Annotated[
    SecretRef | SecretStr | None, PlainValidator(redis_url), PlainSerializer(_written)
]
WebUrl = Annotated[str, AfterValidator(web_url)]
Origin = Annotated[str, AfterValidator(origin)]
HeaderName = Annotated[str, AfterValidator(header_name)]
HeaderValue = Annotated[str, AfterValidator(header_value)]
HostPattern = Annotated[str, AfterValidator(host_pattern)]
NetworkText = Annotated[str, AfterValidator(network)]
Approver = Annotated[str, AfterValidator(approver)]
Count = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
# Labels and ids become parts of store keys, header values and log lines.
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Subject = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@/+-]{0,254}$")]
KeyHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", repr=False)]
