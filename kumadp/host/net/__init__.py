"""Sockets, ports, TLS, and servers with limits for their clients."""
