"""The process entry for production: limits before parsing, and a stop that loses nothing.

The stock server has neither: see `protocol` (LIMIT-3) and `process` (STREAM-4).
"""

from gateway.server.process import GracefulServer, bind, run, serve
from gateway.server.protocol import HttpLimits, protocol_class

__all__ = ["GracefulServer", "HttpLimits", "bind", "protocol_class", "run", "serve"]
