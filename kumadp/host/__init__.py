"""What the host gives: ports, logs, work directory, process name."""
