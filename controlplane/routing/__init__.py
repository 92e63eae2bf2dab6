"""The routing decision, PURE: no I/O, clock, randomness or logging; time and seed are arguments.

The same code runs in the router, the tests, the simulator and the replay of a journal.
"""
