"""gRPC with raw messages: streams over HTTP/2, a client's connection, a server."""
