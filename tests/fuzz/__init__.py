"""Mutated and generated inputs for every parser of bytes from outside, with bounds of work and of memory."""
