"""Phases, the one run loop, drain, readiness, the control socket, and the assembly of all parts."""
