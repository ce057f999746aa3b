"""The log: output, journal, repeated lines, what libraries print, secrets that no line may show."""
