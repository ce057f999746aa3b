"""gRPC of raw messages: streams over HTTP/2, a client's connection, a server. What relay and probes both need."""
