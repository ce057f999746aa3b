"""Dynamic configuration: bodies that the control plane sends to a data plane through Envoy, polled over a socket."""
