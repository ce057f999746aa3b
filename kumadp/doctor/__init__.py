"""Checks of `kumadp doctor`: before a start, with the options of `run`, and of a running data plane."""
