"""Sockets, ports, TLS, and servers that limit their clients."""
