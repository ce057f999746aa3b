"""DNS for the workload: the Corefile and CoreDNS as a child."""
