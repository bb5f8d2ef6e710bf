"""Asks Open Policy Agent, or whatever speaks its data API, about a call (APPR-13)."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Literal, Self

import aiohttp
import msgspec
from typing_extensions import override

from gateway.domain.errors import SecretUnavailable
from gateway.domain.ports import SecretSource
from gateway.domain.rules import Effect, Facts, RuleError, Ruling
from gateway.domain.secrets import SecretRef
from gateway.domain.terms import ApprovalTerms
from gateway.services.policy import PolicyEngine

MAX_ANSWER = 64 * 1024
"""Longest answer that is read, in bytes."""

_Approver = Annotated[str, msgspec.Meta(pattern="^(role|group|subject):.+$")]


class _Approval(msgspec.Struct, forbid_unknown_fields=True):
    by: Literal["approver", "caller"] = "approver"
    approvers: Annotated[tuple[_Approver, ...], msgspec.Meta(min_length=1)] = ("role:approver",)
    quorum: Annotated[int, msgspec.Meta(ge=1)] = 1
    allow_self: bool = False
    timeout: Annotated[float, msgspec.Meta(gt=0, le=366 * 86400)] = 30 * 60.0
    on_timeout: Literal["deny", "hold", "rewind"] = "deny"


class _Result(msgspec.Struct, forbid_unknown_fields=True):
    effect: Effect
    rule: Annotated[str, msgspec.Meta(max_length=128)] = ""
    reason: Annotated[str, msgspec.Meta(max_length=2000)] | None = None
    approval: _Approval | None = None


class _Answer(msgspec.Struct):
    """OPA adds `decision_id` and more beside `result`; an undefined rule has no `result`."""

    result: _Result


class OpaEngine(PolicyEngine):
    """Posts `{"input": CALL}` and reads `{"result": {"effect", "rule", "reason", "approval"}}`.

    Opened as a context manager. Redirects are not followed and proxies of the environment are not
    used: they would see arguments that the operator did not send there.

    Args:
        timeout: Seconds for the whole answer.
        headers: Header name to the reference of its value, read at each call.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        headers: Mapping[str, SecretRef],
        secrets: SecretSource,
    ) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._headers = headers
        self._secrets = secrets
        self._session: aiohttp.ClientSession | None = None

    @property
    @override
    def name(self) -> str:
        return "opa"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "mcp-conversation-gateway", "content-type": "application/json"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @override
    async def ask(self, facts: Facts) -> Ruling:
        if self._session is None:
            raise RuntimeError("the engine is not open")
        try:
            headers = {
                name: await self._secrets.resolve(ref) for name, ref in self._headers.items()
            }
            async with self._session.post(
                self._url, data=_question(facts), headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise RuleError(f"it answered {response.status}")
                body = await _read(response)
        except TimeoutError:
            raise RuleError("it did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError, SecretUnavailable) as exc:
            raise RuleError(f"it cannot be asked ({type(exc).__name__})") from None
        return _ruling(body)


def _question(facts: Facts) -> bytes:
    """Write the call; arguments that cannot be judged are `null`, with the reason beside them."""
    readable = facts.fault is None
    document = facts.document(msgspec.Raw(facts.call.arguments.encode()) if readable else None)
    if not readable:
        document["args_fault"] = facts.fault
    return msgspec.json.encode({"input": document})


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise RuleError("its answer is too long")
    return body


def _ruling(body: bytes) -> Ruling:
    try:
        result = msgspec.json.decode(body, type=_Answer).result
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RuleError("its answer is not as agreed") from None
    said = result.approval or _Approval()
    terms = ApprovalTerms(**msgspec.structs.asdict(said))
    name = f"opa:{result.rule}" if result.rule else "opa"
    return Ruling(result.effect, name, terms, result.reason)
