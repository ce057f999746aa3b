"""What every part of the daemon stands on: part, context, component, status, phases, events."""
