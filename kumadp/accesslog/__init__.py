"""Access logs: Envoy writes lines into a FIFO, which are forwarded to TCP destinations, independently of each other."""
