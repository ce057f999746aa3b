"""Defaults of the names of a mesh, whether they come from the control plane or from Dataplane files."""

from __future__ import annotations

DEFAULT_TTL = 30
"""Seconds for which clients may cache an answer, unless the control plane sends another number."""
