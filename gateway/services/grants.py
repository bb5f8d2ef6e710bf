"""Grants as people make, see and revoke them (APPR-8)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.domain.approvals import Approval, is_approver
from gateway.domain.calls import Call, ChainFacts
from gateway.domain.documents import raw
from gateway.domain.errors import BadRequest, Forbidden, GatewayError, NotFound, Unprocessable
from gateway.domain.grants import (
    BoundTo,
    Grant,
    GrantTerms,
    Scope,
    args_hash,
    bound_call,
    grant_id_of,
    new_grant_id,
)
from gateway.domain.identity import Principal, Role
from gateway.domain.ports import ApprovalStore, AuditLog, GrantStore, Meter
from gateway.domain.registry import McpServer
from gateway.domain.rules import Effect, Ruling
from gateway.domain.tools import Attachment, Tools, may_use
from gateway.domain.turns import ApprovalRequest, TurnState, read_state
from gateway.services.answers import refusal
from gateway.services.callers import Caller
from gateway.services.judgement import Judge
from gateway.services.pins import Pinning
from gateway.services.preparation import restore_tools

logger = logging.getLogger("gateway.grants")

DEFAULT_TTL = 3600.0
"""Seconds that a grant lives when nobody says, unless the rule allows less."""

REVISION_TTL = 600.0
"""Seconds within which the model may make the call as it was revised."""

_MOST = 10**9
"""More seconds or uses than anybody means; numbers of any size come as JSON."""

_PAGE = 100
_PAGES = 100
"""Most pages that one listing looks at for grants that the caller may see."""


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person asks to grant with an approval; `ttl` in seconds."""

    scope: Scope
    ttl: float | None = None
    uses: int | None = None
    bound_to: BoundTo = "chain"
    reason: str | None = None


class WantedStanding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a person asks to grant without an approval."""

    scope: Scope
    server: str
    tool: str
    arguments: dict[str, Any] | None = None
    bound_to: BoundTo = "principal"
    subject: str = ""
    end_user: str = ""
    chain_id: str = ""
    ttl: float | None = None
    uses: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Scope, time, uses and principal of a grant to be."""

    scope: Scope
    bound_to: BoundTo
    ttl: float | None
    uses: int | None
    reason: str | None = None


class Grants:
    """Grants.

    A decision with a grant is made in two steps, so that the model cannot be quicker than the
    grant, and nothing is granted that was not decided:

        grant = grants.plan(approval, actor, wanted)    # 422 before anything has happened
        async with grants.voted(approval, actor, grant):
            ...                                         # the vote; an error withdraws the grant
    """

    def __init__(
        self,
        *,
        store: GrantStore,
        approvals: ApprovalStore,
        judge: Judge,
        pinning: Pinning,
        servers: Mapping[str, McpServer],
        audit: AuditLog,
        meter: Meter,
    ) -> None:
        self._store = store
        self._audit = audit
        self._approvals = approvals
        self._judge = judge
        self._pinning = pinning
        self._servers = servers
        self._meter = meter

    def plan(self, approval: Approval, actor: Principal, wanted: Wanted) -> Grant:
        """Write the grant that goes with the approval of a call, without keeping it.

        Raises:
            Unprocessable: `grant_not_allowed`, `grant_scope_too_wide`, `invalid_grant`.
        """
        if approval.by != "approver":
            raise _not_allowed("The caller decides this call itself, each time.")
        wish = Wish(wanted.scope, wanted.bound_to, wanted.ttl, wanted.uses, wanted.reason)
        grant = _write(
            grant_id_of(approval.id, actor.subject),
            _call_of(approval),
            approval.rule,
            approval.grants,
            actor,
            wish,
            quorum=approval.quorum,
        )
        return msgspec.structs.replace(grant, approval_id=approval.id, waits_for="approve")

    async def plan_revision(
        self, approval: Approval, actor: Principal, arguments: str
    ) -> Grant | None:
        """Write the grant for the call that the model shall make instead: with other arguments.

        Once, within ten minutes, in this chain; it goes with the deny of the call as it was.

        Returns:
            `None` when there is none, and the new call is decided for itself: the rules allow it
            anyway, ask others or several people, or let nobody grant it.

        Raises:
            Unprocessable: `revision_denied`: the rules deny the call with these arguments, or they
                do not fit the tool's pinned schema.
        """
        batch = await self._approvals.batch(approval.tenant, approval.batch_id)
        if approval.by != "approver" or batch is None or not batch.held:
            return None
        state = read_state(batch.held)
        tools = await self._pinning.fresh(
            approval.tenant, restore_tools(state.tools, self._servers)
        )
        request = ApprovalRequest(approval.request_id, approval.server, approval.tool, arguments)
        call = await self._judge.call(state, tools, request)
        ruling = await self._judge.judge(call, tools.attachment(approval.server))
        if ruling.effect is Effect.DENY or ruling.errors:
            why = "; ".join(ruling.errors) or f"the rules deny the call ({ruling.rule})"
            raise Unprocessable(
                f"With these arguments it may not run: {why}.",
                code="revision_denied",
                param="arguments",
            )
        return _revision(approval, call, ruling, actor)

    @asynccontextmanager
    async def voted(
        self, approval: Approval, actor: Principal, grant: Grant | None
    ) -> AsyncGenerator[None, None]:
        """Have the grant that goes with a vote on record while the vote is cast.

        A vote without a grant takes back one that came with an earlier try of the same person.
        """
        planned = grant_id_of(approval.id, actor.subject)
        if grant is None:
            if approval.by == "approver":
                await self._store.withdraw(approval.tenant, planned)
            yield
            return
        kept = await self._store.issue(grant)
        try:
            yield
        except GatewayError:
            await self._store.withdraw(approval.tenant, planned)
            raise
        if kept.status in ("waiting", "active"):  # a repeat tells again what is, not what it wants
            await self._issued(kept)

    async def given_with(self, caller: Caller, approval: Approval) -> Grant | None:
        """Read what the caller granted with its vote on an approval."""
        planned = grant_id_of(approval.id, caller.principal.subject)
        return await self._store.get(approval.tenant, planned)

    async def _issued(self, grant: Grant) -> None:
        self._meter.grant(server=grant.server, event="issued")
        logger.info("a grant was made", extra={"grant": grant.id, "tenant": grant.tenant})
        await self._audit.note(
            grant.tenant,
            "grant.issued",
            actor=f"subject:{grant.made_by}",
            subject=grant.id,
            detail=written(grant),
        )

    async def make(self, caller: Caller, wanted: WantedStanding) -> Grant:
        """Make a grant without an approval, by an approver of the rule that would ask.

        Raises:
            BadRequest: `unknown_mcp_server`.
            Forbidden: `not_an_approver`, `self_approval`.
            Unprocessable: `grant_not_allowed`, `grant_scope_too_wide`, `invalid_grant`.
        """
        actor = caller.principal
        _check_principal(wanted)
        call, ruling = await self._would_ask(caller, wanted)
        terms = ruling.approval
        if not is_approver(terms.approvers, actor):
            raise refusal("not_an_approver")
        if actor.subject in (wanted.subject, wanted.end_user) and not terms.allow_self:
            raise refusal("self_approval")
        wish = Wish(wanted.scope, wanted.bound_to, wanted.ttl, wanted.uses, wanted.reason)
        grant = _write(
            new_grant_id(), call, ruling.rule, terms.grants, actor, wish, quorum=terms.quorum
        )
        made = await self._store.issue(grant)
        await self._issued(made)
        return made

    async def _would_ask(self, caller: Caller, wanted: WantedStanding) -> tuple[Call, Ruling]:
        server = self._servers.get(wanted.server) if may_use(caller.tenant, wanted.server) else None
        if server is None:
            raise BadRequest(
                f"There is no MCP server '{wanted.server}'.",
                code="unknown_mcp_server",
                param="server",
            )
        attachment = Attachment(label=wanted.server, server=server, tool={}, forwarded={})
        state = TurnState(
            tenant=caller.tenant.id,
            subject=wanted.subject,
            key_id="",
            end_user=wanted.end_user,
            upstream="",
            model="",
            body={},
            facts=ChainFacts(id=wanted.chain_id),
        )
        arguments = bytes(raw(wanted.arguments or {})).decode()
        request = ApprovalRequest("", wanted.server, wanted.tool, arguments)
        tools = await self._pinning.fresh(caller.tenant.id, Tools((attachment,)))
        call = await self._judge.call(state, tools, request)
        if wanted.scope.exact:
            ruling = await self._judge.judge(call, tools.attachment(wanted.server))
        else:  # no arguments to judge by: what holds for every call of the tool
            ruling = self._judge.rules.decide(wanted.server, wanted.tool)
        _check_known(server, call, wanted, ruling)
        if ruling.effect is not Effect.ASK or ruling.approval.by != "approver":
            raise _not_allowed(
                f"The rules ask no approver about this call ({ruling.rule}: {ruling.effect.value})."
            )
        return call, ruling

    async def list(
        self,
        caller: Caller,
        *,
        active: bool,
        server: str | None,
        tool: str | None,
        subject: str | None,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[Grant], bool]:
        """List the grants that the caller may see, newest first."""
        seen: list[Grant] = []
        for _ in range(_PAGES):  # a page is full although some are not wanted
            found, more = await self._store.list(
                caller.tenant.id, active=active, after=after, limit=_PAGE
            )
            seen += (
                grant
                for grant in found
                if _sees(caller, grant)
                and server in (None, grant.server)
                and tool in (None, grant.tool)
                and subject in (None, grant.subject)
            )
            if not more or len(seen) > limit:
                break
            after = found[-1].id
        return seen[:limit], len(seen) > limit

    async def retrieve(self, caller: Caller, grant_id: str) -> Grant:
        """Read one grant.

        Raises:
            NotFound: Unknown, of another tenant, or none that the caller may see.
        """
        grant = await self._store.get(caller.tenant.id, grant_id)
        if grant is None or not _sees(caller, grant):
            raise NotFound(f"There is no grant '{grant_id}'.", code="grant_not_found", param="id")
        return grant

    async def revoke(self, caller: Caller, grant_id: str) -> Grant:
        """End a grant at once: its owner, its maker and every approver may.

        Raises:
            NotFound: As `retrieve`.
            Forbidden: An auditor only looks.
        """
        grant = await self.retrieve(caller, grant_id)
        actor = caller.principal
        if not self.may_revoke(caller, grant):
            raise Forbidden("This needs the role 'approver'.", code="missing_role")
        ended = await self._store.revoke(caller.tenant.id, grant_id, actor=actor.subject)
        if ended is None:
            raise NotFound(f"There is no grant '{grant_id}'.", code="grant_not_found", param="id")
        self._meter.grant(server=grant.server, event="revoked")
        await self._audit.note(
            grant.tenant, "grant.revoked", actor=f"subject:{actor.subject}", subject=grant_id
        )
        logger.info("a grant was revoked", extra={"grant": grant_id, "key": actor.key_id})
        return ended

    def may_revoke(self, caller: Caller, grant: Grant) -> bool:
        """Tell whether the caller may end a grant that the caller sees."""
        return caller.principal.has(Role.APPROVER) or _is_own(caller, grant)

    async def end_chain(self, tenant: str, chain_id: str) -> None:
        """Drop what was granted for a chain of which a response was deleted."""
        for grant in await self._store.end_chain(tenant, chain_id):
            self._meter.grant(server=grant.server, event="dropped")
            await self._audit.note(
                tenant,
                "grant.dropped",
                actor="gateway",
                subject=grant.id,
                detail={"cause": grant.ended},
            )


def _revision(approval: Approval, call: Call, ruling: Ruling, actor: Principal) -> Grant | None:
    terms = ruling.approval
    mine = terms.by == "approver" and is_approver(terms.approvers, actor)
    if ruling.effect is not Effect.ASK or not mine or terms.quorum > 1:
        return None
    ttl = min(REVISION_TTL, terms.grants.max_ttl)
    try:
        grant = _write(
            grant_id_of(approval.id, actor.subject),
            call,
            ruling.rule,
            terms.grants,
            actor,
            Wish(Scope.ONCE, "chain", ttl, 1),
            quorum=1,
        )
    except Unprocessable:
        return None
    return msgspec.structs.replace(grant, approval_id=approval.id, waits_for="deny")


def written(grant: Grant) -> dict[str, object]:
    """Write for the audit what was granted: no arguments, and not their hash."""
    return {
        "scope": grant.scope.value,
        "bound_to": grant.bound_to,
        "rule": grant.rule,
        "server_label": grant.server,
        "tool": grant.tool,
        "principal": grant.subject,
        "end_user": grant.end_user,
        "chain_id": grant.chain_id,
        "ttl": grant.ttl,
        "uses": grant.max_uses,
        "approval_id": grant.approval_id,
        "reason": grant.reason,
    }


def _write(
    grant_id: str,
    call: Call,
    rule: str,
    terms: GrantTerms,
    actor: Principal,
    wish: Wish,
    *,
    quorum: int,
) -> Grant:
    """Write a grant for calls like this one, within the rule's terms."""
    arguments = args_hash(call.arguments)
    _check(terms, wish, call, arguments, quorum)
    bound = bound_call(call, rule, wish.scope, arguments or "")
    mine = wish.bound_to != "tenant"
    return Grant(
        id=grant_id,
        tenant=call.tenant,
        scope=wish.scope,
        bound_to=wish.bound_to,
        rule=rule,
        server=call.server,
        server_identity=call.server_identity,
        made_by=actor.subject,
        ttl=wish.ttl or min(DEFAULT_TTL, terms.max_ttl),
        tool=bound.tool,
        definition_hash=bound.definition_hash,
        args_hash=bound.args_hash,
        subject=call.subject if mine else "",
        end_user=call.end_user if mine else "",
        chain_id=call.chain.id if wish.bound_to == "chain" else "",
        reason=wish.reason,
        max_uses=1 if wish.scope is Scope.ONCE else wish.uses or terms.max_uses,
    )


def _check(terms: GrantTerms, wish: Wish, call: Call, arguments: str | None, quorum: int) -> None:
    widest = terms.widest(call.annotations)
    if widest is None:
        raise _not_allowed("The rule lets nobody grant this.")
    if quorum > 1 and not terms.with_quorum:
        raise _not_allowed(f"{quorum} people must approve each call.")
    if call.pin == "quarantined":
        raise _not_allowed("The tool's definition has changed and was not accepted.")
    if wish.scope.width > widest.width:
        raise Unprocessable(
            f"The widest scope that the rule allows for this tool is '{widest.value}'.",
            code="grant_scope_too_wide",
            param="grant.scope",
        )
    _check_amount("ttl", wish.ttl, terms.max_ttl)
    _check_amount("uses", wish.uses, 1 if wish.scope is Scope.ONCE else terms.max_uses)
    if wish.bound_to == "chain" and not call.chain.id:
        raise _invalid("There is no chain to bind it to.", "bound_to")
    if wish.scope.exact and arguments is None:
        raise _invalid("The arguments have no canonical form, so nothing equals them.", "scope")


def _check_amount(name: str, value: float | None, most: float | None) -> None:
    if value is None:
        return
    if not 0 < value <= _MOST:
        raise _invalid(f"'{name}' must be greater than 0, and not beyond {_MOST:,}.", name)
    if most is not None and value > most:
        raise _invalid(f"'{name}' may be at most {most:g} here.", name)


def _check_known(server: McpServer, call: Call, wanted: WantedStanding, ruling: Ruling) -> None:
    """Refuse to grant what nobody can have looked at: an unseen tool, or arguments unfit for it."""
    narrow = wanted.scope is not Scope.SERVER
    if narrow and server.pins != "off" and not call.definition_hash:
        raise _not_allowed(f"The tool '{call.tool}' was not seen yet, so it has no definition.")
    if wanted.scope.exact and ruling.errors:
        raise _invalid(f"The rules cannot judge the call: {'; '.join(ruling.errors)}.", "arguments")


def _check_principal(wanted: WantedStanding) -> None:
    if (wanted.bound_to == "tenant") == bool(wanted.subject):
        raise _invalid("'subject' is needed, but for a grant bound to the tenant.", "subject")
    if (wanted.bound_to == "chain") != bool(wanted.chain_id):
        raise _invalid("'chain_id' goes with 'bound_to' \"chain\".", "chain_id")
    if wanted.bound_to == "tenant" and wanted.end_user:
        raise _invalid("A grant bound to the tenant has no end user.", "end_user")
    if wanted.scope.exact != (wanted.arguments is not None):
        raise _invalid("'arguments' go with the scopes 'once' and 'exact_args'.", "arguments")


def _call_of(approval: Approval) -> Call:
    return Call(
        tenant=approval.tenant,
        subject=approval.requester,
        end_user=approval.end_user,
        server=approval.server,
        server_identity=approval.server_identity,
        tool=approval.tool,
        arguments=approval.arguments,
        trust=approval.trust,
        annotations=approval.annotations,
        definition_hash=approval.definition_hash,
        chain=ChainFacts(id=approval.chain_id),
    )


def _sees(caller: Caller, grant: Grant) -> bool:
    """Approvers and auditors see their tenant's grants, others their own."""
    principal = caller.principal
    oversees = principal.has(Role.APPROVER) or principal.has(Role.AUDITOR)
    return oversees or _is_own(caller, grant)


def _is_own(caller: Caller, grant: Grant) -> bool:
    subject = caller.principal.subject
    if grant.made_by == subject:
        return True
    return grant.subject == subject and grant.end_user in ("", caller.end_user)


def _not_allowed(message: str) -> Unprocessable:
    return Unprocessable(message, code="grant_not_allowed", param="grant")


def _invalid(message: str, name: str) -> Unprocessable:
    return Unprocessable(message, code="invalid_grant", param=f"grant.{name}")
