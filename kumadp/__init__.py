"""kumadp: a sidecar supervisor for Kuma data planes; runs and watches Envoy and CoreDNS next to one workload."""

__version__ = "0.1.0"
