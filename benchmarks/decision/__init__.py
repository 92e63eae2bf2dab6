"""What one routing decision costs."""
