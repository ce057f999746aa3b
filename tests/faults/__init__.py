"""Faults with traffic running: what is lost, what is reported, and what state follows.

A file has a constant `GROUP`, its part of the table in tests/README.md, and `Row` objects or tests that use
``fault_rig.fault(name)`` by themselves. `make faults` stores the records of tests that pass.
"""
