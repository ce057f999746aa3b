"""Prometheus text formats: a reader of expositions, and the names in them."""
