"""Ids of responses, which lead back to the replica that keeps them."""

from __future__ import annotations

import re
import secrets

PIN = re.compile(r"[0-9a-f]{8}")


def response_id(pin: str) -> str:
    """Return a new id ``resp_<pin>_<32 hex>`` (docs/contracts.md, Response ids)."""
    return f"resp_{pin}_{secrets.token_hex(16)}"
