"""Everything between the stores and the doors of a process, wired as the settings say.

To add a service, add a property that makes it: it is made once, when something first needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from gateway.adapters.metrics import PrometheusMeter
from gateway.adapters.openai.upstream import OpenAIUpstreams
from gateway.adapters.webhook import HttpWebhookSender
from gateway.console.playground import Playground, Suggestion
from gateway.console.sessions import Sessions
from gateway.domain.identity import KeyRing, Tenant
from gateway.domain.lifecycle import Lifecycle
from gateway.domain.registry import McpServer, Model, Upstream
from gateway.domain.requests import Bounds
from gateway.domain.rules import RuleSet
from gateway.services.answers import NativeAnswers
from gateway.services.approvals import ApprovalService
from gateway.services.audit import AuditService, AuditTerms, Chainer
from gateway.services.chains import Chains
from gateway.services.continuations import Continuations, Sweeper
from gateway.services.conversations import ConversationService
from gateway.services.endings import Endings
from gateway.services.following import Following
from gateway.services.granted import Granted
from gateway.services.grants import Grants
from gateway.services.health import Health
from gateway.services.judgement import Judge
from gateway.services.legs import Legs
from gateway.services.overview import Overview
from gateway.services.pins import Pinning, PinService
from gateway.services.pipe import Pipe
from gateway.services.policy import Policy, PolicyEngine
from gateway.services.preparation import Catalog, Preparation
from gateway.services.prewarm import Prewarming
from gateway.services.recording import Recorder
from gateway.services.records import Records
from gateway.services.redaction import RedactingUpstreams
from gateway.services.refusals import Refusals
from gateway.services.responses import ResponseService
from gateway.services.resumption import Resumption
from gateway.services.settlement import Settlement
from gateway.services.turns import EARLY, TurnService
from gateway.services.webhook_endpoints import WebhookEndpoints
from gateway.services.webhooks import Deliverer, Directory, FanOut, Messenger
from gateway.services.worker import Worker
from gateway.settings import Settings
from gateway.stores import Stores
from gateway.web.answers import Pace
from gateway.web.doors import Doors


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """The clients of others: providers, receivers of webhooks, and the engine beside the rules."""

    upstreams: OpenAIUpstreams
    sender: HttpWebhookSender
    engine: PolicyEngine | None


class Wiring:
    """The parts of one process; making them does no I/O."""

    def __init__(
        self, settings: Settings, *, stores: Stores, outside: Outside, lifecycle: Lifecycle
    ) -> None:
        self.settings = settings
        self.stores = stores
        self.outside = outside
        self.lifecycle = lifecycle
        self.lease = settings.server.lease

    # What the operator configured

    @cached_property
    def servers(self) -> Mapping[str, McpServer]:
        """MCP servers by label."""
        return {server.label: server for server in self.settings.to_mcp_servers()}

    @cached_property
    def tenants(self) -> Mapping[str, Tenant]:
        """Tenants by id."""
        return {tenant.id: tenant for tenant in self.settings.to_tenants()}

    @cached_property
    def models(self) -> Mapping[str, Model]:
        """Models by the name that callers use."""
        return {model.name: model for model in self.settings.to_models()}

    @cached_property
    def upstreams(self) -> Mapping[str, Upstream]:
        """Upstreams by name, the first one first."""
        return {one.name: one for one in self.settings.to_upstreams()}

    @cached_property
    def rules(self) -> RuleSet:
        """The rules in force."""
        return self.settings.to_rule_set()

    @cached_property
    def catalog(self) -> Catalog:
        """What preparation needs of all that."""
        return Catalog(self.models, next(iter(self.upstreams)), self.servers)

    @cached_property
    def keys(self) -> KeyRing:
        """The API keys."""
        return KeyRing(self.settings.to_api_keys())

    @cached_property
    def bounds(self) -> Bounds:
        """How large a request may be."""
        server = self.settings.server
        return Bounds(
            max_depth=server.max_json_depth, max_tools=server.max_tools, max_items=server.max_items
        )

    # What several parts share

    @cached_property
    def upstream(self) -> RedactingUpstreams:
        """The upstreams, with what no caller may see taken out of their errors."""
        return RedactingUpstreams(
            self.outside.upstreams,
            secrets=self.stores.secrets,
            upstreams=self.upstreams,
            servers=self.servers,
        )

    @cached_property
    def meter(self) -> PrometheusMeter:
        """The metrics."""
        return PrometheusMeter(models=self.models, servers=self.servers)

    @cached_property
    def health(self) -> Health:
        """Whether the store takes writes."""
        return Health(self.stores.probe)

    @cached_property
    def refusals(self) -> Refusals:
        """Notes refused requests for the audit."""
        return Refusals(self.stores.audit)

    @cached_property
    def following(self) -> Following:
        """Follows turns that others run."""
        return Following(
            log=self.stores.log,
            turns=self.stores.turns,
            wake=self.stores.wake,
            lifecycle=self.lifecycle,
        )

    @cached_property
    def endings(self) -> Endings:
        """Ends turns from outside their pipe."""
        return Endings(
            turns=self.stores.turns,
            conversations=self.stores.conversations,
            log=self.stores.log,
            following=self.following,
            meter=self.meter,
            tenants=self.tenants,
        )

    @cached_property
    def records(self) -> Records:
        """Reads recorded responses."""
        return Records(
            turns=self.stores.turns, approvals=self.stores.approvals, following=self.following
        )

    # How a call is judged

    @cached_property
    def granted(self) -> Granted:
        """Grants that answer in a person's place."""
        return Granted(
            store=self.stores.grants,
            audit=self.stores.audit,
            meter=self.meter,
            fatigue=self.settings.approvals.fatigue.to_domain(),
        )

    @cached_property
    def policy(self) -> Policy:
        """The rules, and the engine beside them."""
        return Policy(
            self.rules,
            servers=self.servers,
            meter=self.meter,
            audit=self.stores.audit,
            engine=self.outside.engine,
            on_error=self.settings.policy.on_error,
        )

    @cached_property
    def judge(self) -> Judge:
        """Judges calls."""
        return Judge(
            policy=self.policy,
            active=lambda key_id: self.keys.entry(key_id) is not None,
            granted=self.granted,
        )

    @cached_property
    def pinning(self) -> Pinning:
        """Pins what upstreams list."""
        return Pinning(
            store=self.stores.pins,
            approvals=self.stores.approvals,
            outbox=self.stores.outbox,
            audit=self.stores.audit,
            meter=self.meter,
            rules=self.judge.rules,
        )

    # How a turn runs

    @cached_property
    def preparation(self) -> Preparation:
        """Turns requests into turns."""
        return Preparation(
            turns=self.stores.turns,
            conversations=self.stores.conversations,
            chains=self.chains,
            answers=NativeAnswers(self.stores.approvals, refusals=self.refusals, lease=self.lease),
            catalog=self.catalog,
            judge=self.judge,
            pinning=self.pinning,
            refusals=self.refusals,
            meter=self.meter,
        )

    @cached_property
    def legs(self) -> Legs:
        """Opens upstream responses."""
        return Legs(
            upstream=self.upstream,
            secrets=self.stores.secrets,
            upstreams=self.upstreams,
            meter=self.meter,
        )

    @cached_property
    def chains(self) -> Chains:
        """Reads what turns go on from, and has it compacted."""
        return Chains(turns=self.stores.turns, legs=self.legs, models=self.models, meter=self.meter)

    @cached_property
    def settlement(self) -> Settlement:
        """Settles what a leg asked for."""
        return Settlement(
            approvals=self.stores.approvals,
            judge=self.judge,
            pinning=self.pinning,
            meter=self.meter,
        )

    @cached_property
    def recorder(self) -> Recorder:
        """Puts turns on record."""
        return Recorder(
            turns=self.stores.turns,
            conversations=self.stores.conversations,
            outbox=self.stores.outbox,
            audit=self.stores.audit,
            meter=self.meter,
        )

    @cached_property
    def pipe(self) -> Pipe:
        """Runs turns."""
        return Pipe(
            legs=self.legs,
            settlement=self.settlement,
            recorder=self.recorder,
            approvals=self.stores.approvals,
            jobs=self.stores.jobs,
            meter=self.meter,
            lease=self.lease,
            version=self.settings.version,
        )

    @cached_property
    def continuations(self) -> Continuations:
        """Goes on with held turns."""
        return Continuations(
            approvals=self.stores.approvals,
            turns=self.stores.turns,
            conversations=self.stores.conversations,
            log=self.stores.log,
            jobs=self.stores.jobs,
            fleet=self.stores.fleet,
            outbox=self.stores.outbox,
            wake=self.stores.wake,
            following=self.following,
            endings=self.endings,
            pipe=self.pipe,
            recorder=self.recorder,
            chains=self.chains,
            settlement=self.settlement,
            servers=self.servers,
            tenants=self.tenants,
            version=self.settings.version,
            lease=self.lease,
        )

    # What runs beside the requests

    @cached_property
    def directory(self) -> Directory:
        """The webhook endpoints."""
        return Directory(
            store=self.stores.webhooks,
            configured=self.settings.to_webhooks(),
            networks=self.settings.to_networks(),
        )

    @cached_property
    def messenger(self) -> Messenger:
        """Writes and signs webhooks."""
        return Messenger(
            directory=self.directory,
            sender=self.outside.sender,
            secrets=self.stores.secrets,
            public_url=self.settings.server.public_url or "",
        )

    @cached_property
    def worker(self) -> Worker:
        """Runs jobs."""
        return Worker(
            jobs=self.stores.jobs,
            wake=self.stores.wake,
            fleet=self.stores.fleet,
            version=self.settings.version,
            lease=self.lease,
            continuations=self.continuations,
            webhooks=FanOut(
                store=self.stores.webhooks,
                directory=self.directory,
                approvals=self.stores.approvals,
            ),
            sweeper=Sweeper(self.stores.approvals, self.meter),
            tenants=self.tenants,
            meter=self.meter,
            most_in_background=self.settings.server.max_background,
        )

    @cached_property
    def chainer(self) -> Chainer:
        """Chains the audit."""
        return Chainer(
            store=self.stores.audit,
            signer=self.stores.cipher,
            meter=self.meter,
            tenants=self.tenants,
            policy=self.rules,
            terms=AuditTerms(
                retention=self.settings.audit.retention,
                checkpoint_interval=self.settings.audit.checkpoint_interval,
                checkpoint_entries=self.settings.audit.checkpoint_entries,
            ),
        )

    @cached_property
    def deliverer(self) -> Deliverer:
        """Sends webhooks."""
        return Deliverer(
            store=self.stores.webhooks,
            directory=self.directory,
            messenger=self.messenger,
            meter=self.meter,
            audit=self.stores.audit,
            wake=self.stores.wake,
            tenants=self.tenants,
            retries=self.settings.webhook_delivery.retries,
            # Whoever took a delivery has time to try it and to say what became of it.
            lease=max(self.lease, self.settings.webhook_delivery.timeout + 10),
        )

    # What the doors need

    @cached_property
    def sessions(self) -> Sessions:
        """The console's sessions."""
        return Sessions(self.stores.cipher, self.keys, self.tenants)

    @cached_property
    def doors(self) -> Doors:
        """What each door does first."""
        return Doors(self.keys, self.tenants, self.bounds.max_depth, self.sessions.holder)

    @cached_property
    def pace(self) -> Pace:
        """How streams are kept."""
        return Pace(
            heartbeat=self.settings.server.heartbeat, stall=self.settings.server.stall_timeout
        )

    @cached_property
    def turns(self) -> TurnService:
        """Creates responses."""
        return TurnService(
            preparation=self.preparation,
            pipe=self.pipe,
            chains=self.chains,
            records=self.records,
            approvals=self.stores.approvals,
            conversations=self.stores.conversations,
            log=self.stores.log,
            following=self.following,
            health=self.health,
            bounds=self.bounds,
            early=min(EARLY, self.settings.server.heartbeat * 0.6),
        )

    @cached_property
    def grants(self) -> Grants:
        """Makes and revokes grants."""
        return Grants(
            store=self.stores.grants,
            approvals=self.stores.approvals,
            judge=self.judge,
            pinning=self.pinning,
            servers=self.servers,
            audit=self.stores.audit,
            meter=self.meter,
        )

    @cached_property
    def responses(self) -> ResponseService:
        """Serves stored responses."""
        return ResponseService(
            turns=self.stores.turns,
            conversations=self.stores.conversations,
            approvals=self.stores.approvals,
            grants=self.grants,
            upstream=self.upstream,
            records=self.records,
            following=self.following,
            preparation=self.preparation,
            legs=self.legs,
            continuations=self.continuations,
            catalog=self.catalog,
            bounds=self.bounds,
        )

    @cached_property
    def resumption(self) -> Resumption:
        """Retry or rewind of turns in doubt."""
        return Resumption(
            turns=self.stores.turns,
            approvals=self.stores.approvals,
            records=self.records,
            refusals=self.refusals,
        )

    @cached_property
    def conversations(self) -> ConversationService:
        """Serves conversations."""
        return ConversationService(
            turns=self.stores.turns,
            conversations=self.stores.conversations,
            upstream=self.upstream,
            catalog=self.catalog,
            bounds=self.bounds,
            refusals=self.refusals,
        )

    @cached_property
    def approvals(self) -> ApprovalService:
        """Serves approvals."""
        return ApprovalService(
            grants=self.grants,
            approvals=self.stores.approvals,
            turns=self.stores.turns,
            audit=self.stores.audit,
            wake=self.stores.wake,
            meter=self.meter,
            drained=self.lifecycle.drained,
            refusals=self.refusals,
        )

    @cached_property
    def audits(self) -> AuditService:
        """Serves the audit."""
        return AuditService(
            store=self.stores.audit, signer=self.stores.cipher, chainer=self.chainer
        )

    @cached_property
    def pins(self) -> PinService:
        """Serves tool pins."""
        return PinService(
            store=self.stores.pins, servers=self.servers, audit=self.stores.audit, meter=self.meter
        )

    @cached_property
    def webhooks(self) -> WebhookEndpoints:
        """Serves webhook endpoints."""
        return WebhookEndpoints(
            store=self.stores.webhooks,
            directory=self.directory,
            messenger=self.messenger,
            sender=self.outside.sender,
            audit=self.stores.audit,
        )

    @cached_property
    def prewarming(self) -> Prewarming:
        """Keeps inputs without calling a model."""
        return Prewarming(
            preparation=self.preparation,
            turns=self.stores.turns,
            health=self.health,
            bounds=self.bounds,
        )

    @cached_property
    def overview(self) -> Overview:
        """Shows turns to the console."""
        return Overview(turns=self.stores.turns, approvals=self.stores.approvals)

    @cached_property
    def playground(self) -> Playground | None:
        """The console's chat, where it is allowed."""
        console = self.settings.console
        if not console.playground:
            return None
        return Playground(
            models=[model.name for model in self.settings.models],
            servers=self.settings.to_mcp_servers(),
            suggestions=[Suggestion(one.title, one.text) for one in console.suggestions],
        )
