"""``kumadp demo``: a data plane with two workloads on one machine, to try kumadp out."""
