"""PURE: which requests wait when a model is saturated, in which order they go, and which are told to come back."""
