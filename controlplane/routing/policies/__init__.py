"""How a replica is chosen: one small class for each policy, behind one contract (``base.py``)."""
