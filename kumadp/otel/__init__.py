"""OpenTelemetry's pipe (Kuma 2.14): what Envoy sends by OTLP to a socket of ours goes on to the collector."""
