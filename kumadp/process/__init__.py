"""Operating-system processes: spawn, signal, reap, output, restart policy, supervision, crash records."""
