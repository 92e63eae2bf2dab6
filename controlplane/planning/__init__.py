"""PURE: placement, order of changes, and the difference between what is wanted and what is."""
