"""Slipstream's data plane: moves tokens, and never makes a choice.

Importing this package must stay cheap and free of dependencies: its middleware runs inside engine processes.
"""
