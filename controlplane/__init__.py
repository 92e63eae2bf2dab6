"""Slipstream's control plane: decides which replica answers, and never sees a token."""

__version__ = "0.1.0"
