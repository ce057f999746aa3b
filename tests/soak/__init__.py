"""A long run of changes, kills, reloads and re-executions with traffic: nothing may grow. Run by `make soak`."""
