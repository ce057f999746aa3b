"""The configuration relay: Envoy's stream ends here, one stream to the control plane outlives every Envoy."""
