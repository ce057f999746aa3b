"""The embedded control plane: Dataplane files in, Envoy configuration out as filesystem xDS."""
