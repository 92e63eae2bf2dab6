"""Desired state: what a cluster's YAML or Python builder may say, validated."""
