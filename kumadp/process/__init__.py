"""One operating-system process: states, restart policy, spawn, signal, reap, log pump."""
