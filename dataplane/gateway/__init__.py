"""HAProxy: render, check, swap, apply, verify, roll back."""
