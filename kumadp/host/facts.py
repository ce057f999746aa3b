"""Facts about the host that the control plane is told."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from kumadp.host.ports import local_addresses

# Where Linux distributions keep their CA bundle (the places that Go's crypto/x509 looks at).
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def system_ca_path() -> str:
    """The system's CA bundle, empty where none of the usual places has one."""
    return next((path for path in CA_BUNDLES if Path(path).is_file()), "")


def has_ipv6() -> bool:
    """Whether the host has an IPv6 address that is not loopback (Kuma 2.14)."""
    return any(":" in address and not ipaddress.ip_address(address).is_loopback for address in local_addresses())


def name_servers(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """The name servers of resolv.conf, in its order."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = [line.split()[1] for line in lines if line.split()[:1] == ["nameserver"] and len(line.split()) > 1]
    return tuple(address for address in found if "%" not in address)
