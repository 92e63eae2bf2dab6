"""Errors of the gateway's applier."""

from __future__ import annotations

from dataplane.errors import DataplaneError


class GatewayError(DataplaneError):
    """HAProxy did not do what it was told."""


class CheckFailed(GatewayError):
    """HAProxy refuses the rendered files; nothing was changed."""


class ApplyFailed(GatewayError):
    """The new files were checked but could not be put to work; the old ones are in use again."""
