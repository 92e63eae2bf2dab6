"""The agent on each VM: carries out orders, adopts what already runs, owns HAProxy on a gateway."""
