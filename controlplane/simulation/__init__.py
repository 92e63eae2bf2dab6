"""A discrete-event model of engines around the very routing code that the router runs.

Time is simulated: nothing here waits, and a run with the same seed gives the same numbers.
"""
