"""What an operator configures (RUN-6): `GATEWAY_*` over `gateway.toml` over defaults.

Only the composition root and the command line read settings; everything else gets domain objects,
which the `to_…` methods make. A secret is never here, only its reference.
"""

from gateway.settings.load import ConfigError, load_settings, read_rules
from gateway.settings.model import (
    ApiKeyAuthSettings,
    ApiKeySettings,
    AuthSettings,
    EncryptionKeySettings,
    EncryptionSettings,
    EntraAuthSettings,
    JwtSettings,
    LimitSettings,
    McpServerSettings,
    ModelSettings,
    RedisSettings,
    RouteSettings,
    ServerSettings,
    Settings,
    TenantSettings,
    UpstreamSettings,
    WebhookSettings,
)
from gateway.settings.rules import ApprovalSettings, RuleSettings

__all__ = [
    "ApiKeyAuthSettings",
    "ApiKeySettings",
    "ApprovalSettings",
    "AuthSettings",
    "ConfigError",
    "EncryptionKeySettings",
    "EncryptionSettings",
    "EntraAuthSettings",
    "JwtSettings",
    "LimitSettings",
    "McpServerSettings",
    "ModelSettings",
    "RedisSettings",
    "RouteSettings",
    "RuleSettings",
    "ServerSettings",
    "Settings",
    "TenantSettings",
    "UpstreamSettings",
    "WebhookSettings",
    "load_settings",
    "read_rules",
]
