"""Engine command lines, probes and the simulated engine."""
