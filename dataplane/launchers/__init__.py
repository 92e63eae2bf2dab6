"""Start, adopt and stop processes."""
