"""A control plane for tests: bootstrap, ADS and HDS for a real Envoy, misbehaving on request."""
