"""PURE: request features, the view of the replicas, policies, prefix index and receipts."""
