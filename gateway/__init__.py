"""A gateway for the Responses API with remote MCP tools, approvals and stateless chains."""

__version__ = "0.1.0"
