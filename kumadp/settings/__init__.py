"""Every option exactly once: flag, variable, file key, default, help, whether it is secret; and the merge."""
