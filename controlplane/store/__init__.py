"""Desired state and generations that outlive the controller."""
