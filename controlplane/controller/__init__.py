"""The level-based reconcile loop: observe, plan, act, publish the topology."""
