"""Virtual probes of the Dataplane."""
