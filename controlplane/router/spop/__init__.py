"""SPOP 2.0, the agent's side, without I/O: bytes in, events out.

HAProxy's doc/SPOE.txt, chapter 3, is the specification.
"""
