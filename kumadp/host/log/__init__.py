"""The log: output, journal, filter of repeated lines, output of libraries, secrets to mask."""
