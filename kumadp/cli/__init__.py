"""One file per command; the only place that exits the process."""
