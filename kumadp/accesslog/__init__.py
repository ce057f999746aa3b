"""Access logs: what Envoy writes into a FIFO goes to TCP destinations, each by itself."""
