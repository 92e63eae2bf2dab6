"""Routing policies against each other and against an oracle, in simulation."""
