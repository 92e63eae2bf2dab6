"""Which prompts may share cached KV: those of one tenant.

vLLM hashes ``cache_salt`` into the first block of a prompt, so prompts of different salts have no block in common.
"""

from __future__ import annotations

import hashlib
import re

#: The paths whose bodies name a prompt that the engine caches.
SALTED_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/score",
        "/score",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/pooling",
        "/classify",
        "/generative_scoring",
        "/inference/v1/generate",
    }
)
MEMBER = "cache_salt"
#: As the gateway writes it: HMAC-SHA256 of the tenant with a key that only gateways have, cut to 160 bits.
SALT = re.compile(rb"[0-9a-f]{40}")
SALT_DIGITS = 40


def salt(signed: bytes, tenant: bytes) -> str:
    """Return the salt of a tenant's prompts. Requests without a tenant share one, as they share a gateway.

    ``signed`` is the gateway's own salt of the tenant, which nobody else can make. Without it the tenant's name
    decides; who reaches the engine's port past the gateway can then claim any tenant, but never meets the prompts of a
    gateway that signs.
    """
    if SALT.fullmatch(signed) is not None:
        return signed.decode()
    return hashlib.sha256(b"slipstream cache salt\0" + tenant).hexdigest()[:SALT_DIGITS]
