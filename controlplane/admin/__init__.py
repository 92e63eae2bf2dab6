"""The gRPC admin API and the small web service with health, metrics and a page."""
