"""What services need of the world, in our own words. Adapters implement these.

Every store method is scoped by tenant; an id of another tenant is an unknown id (AUTH-2).
Store methods raise `errors.StoreUnavailable` when the store cannot answer, and
`errors.StorageFull` when it refuses to write. Nothing is half-written.
"""

from gateway.domain.ports.approvals import (
    ApprovalStore,
    InboxEntry,
    InboxPage,
    Once,
    VoteProblem,
    VoteResult,
)
from gateway.domain.ports.audit import AuditHead, AuditLog, AuditState, AuditStore
from gateway.domain.ports.crypto import Cipher, Signer, TokenCipher
from gateway.domain.ports.event_log import EventLog, LogPage
from gateway.domain.ports.grants import GrantAnswer, GrantStore, Question
from gateway.domain.ports.jobs import Fleet, Hint, Job, JobQueue, Lane, Wake
from gateway.domain.ports.metrics import Meter
from gateway.domain.ports.pins import PinnedServer, PinStore
from gateway.domain.ports.turns import (
    Chain,
    ConversationStore,
    Turn,
    TurnHead,
    TurnStore,
    Window,
)
from gateway.domain.ports.upstream import ByteStream, SecretSource, UpstreamAnswer, UpstreamClient
from gateway.domain.ports.webhooks import Due, Outbox, Outcome, Settled, WebhookStore

__all__ = [
    "ApprovalStore",
    "AuditHead",
    "AuditLog",
    "AuditState",
    "AuditStore",
    "ByteStream",
    "Chain",
    "Cipher",
    "ConversationStore",
    "Due",
    "EventLog",
    "Fleet",
    "GrantAnswer",
    "GrantStore",
    "Hint",
    "InboxEntry",
    "InboxPage",
    "Job",
    "JobQueue",
    "Lane",
    "LogPage",
    "Meter",
    "Once",
    "Outbox",
    "Outcome",
    "PinStore",
    "PinnedServer",
    "Question",
    "SecretSource",
    "Settled",
    "Signer",
    "TokenCipher",
    "Turn",
    "TurnHead",
    "TurnStore",
    "UpstreamAnswer",
    "UpstreamClient",
    "VoteProblem",
    "VoteResult",
    "Wake",
    "WebhookStore",
    "Window",
]
