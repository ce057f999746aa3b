"""Dataplane, ZoneIngress, ZoneEgress: reading, normalising, validating with field paths, templates."""
