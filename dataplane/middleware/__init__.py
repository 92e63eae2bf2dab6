"""ASGI middleware that runs inside every engine's own server."""
