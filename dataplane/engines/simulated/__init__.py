"""A stand-in for ``vllm serve`` without a model: the same HTTP, and an engine that takes the time that one would.

Run as ``python -m dataplane.engines.simulated``; docs/simulated-engine.md says what is modelled and what is not.
"""
