"""CoreDNS as a child: binary, Corefile, component, and the fallback while it is down."""
