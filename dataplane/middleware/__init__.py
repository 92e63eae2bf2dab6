"""ASGI middleware that runs inside every engine's own server. Standard library only.

Engines are started with ``--middleware dataplane.middleware.SlipstreamMiddleware``.
"""

from dataplane.middleware.slipstream import SlipstreamMiddleware

__all__ = ["SlipstreamMiddleware"]
