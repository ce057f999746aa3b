"""Dynamic configuration: bodies that the control plane puts into Envoy for the data plane, asked for over a socket."""
