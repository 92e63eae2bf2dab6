"""Which requests wait while a model is saturated, and how many."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from controlplane.routing.admission import settings
from controlplane.spec import fields
from controlplane.spec.engines import Part
from controlplane.spec.fields import Count, Label, Number

#: Bounds of a spec; see controlplane/spec/engines.py.
MAX_WAITING = settings.MAX_WAITING
MAX_WAITING_TOKENS = 1 << 32
MAX_WEIGHTS = 8_192

Timeout = Annotated[Number, Field(gt=0, le=settings.MAX_TIMEOUT_S)]


class TimeoutsSpec(Part):
    """Longest waits in the queue, in seconds, by priority."""

    high: Timeout = settings.TIMEOUT_S
    """Of requests with `x-slipstream-priority: high`."""
    normal: Timeout = settings.TIMEOUT_S
    """Of all others."""
    low: Timeout = settings.TIMEOUT_S
    """Of requests with `x-slipstream-priority: low`."""


class AdmissionSpec(Part):
    """Bounds count waiting requests and the tokens of their prompts, as predicted."""

    ttft_target_s: Annotated[Number, Field(ge=0.001, le=3_600)] = settings.TTFT_TARGET_S
    """Predicted seconds to the first token beyond which the model is saturated."""
    max_requests: Annotated[Count, Field(ge=1, le=MAX_WAITING)] = settings.MAX_REQUESTS
    """Requests that wait, of all tenants and priorities; more are refused, or displace less urgent ones."""
    max_tokens: Annotated[Count, Field(ge=1_024, le=MAX_WAITING_TOKENS)] = settings.MAX_TOKENS
    """Prompt tokens of these."""
    tenant_requests: Annotated[Count, Field(ge=1, le=MAX_WAITING)] = settings.TENANT_REQUESTS
    """Requests that wait, of one tenant within one priority."""
    tenant_tokens: Annotated[Count, Field(ge=1_024, le=MAX_WAITING_TOKENS)] = settings.TENANT_TOKENS
    """Prompt tokens of these."""
    timeouts_s: TimeoutsSpec = TimeoutsSpec()
    """Longest waits, in seconds, by priority; then a request is refused."""
    guaranteed_share: Annotated[Number, Field(ge=0, le=0.4)] = settings.GUARANTEED_SHARE
    """Part of the tokens let go that each less urgent priority gets while more urgent ones wait."""
    weights: Annotated[
        dict[Label, Annotated[Number, Field(ge=0.001, le=1_000)]], Field(max_length=MAX_WEIGHTS), fields.IN_ORDER
    ] = Field(default_factory=dict)
    """Shares of tenants (of the API keys), in proportion to each other; a tenant that is not listed has 1."""
