"""The routing-decision service: SPOP, gRPC, and the feedback of HAProxy's log."""
