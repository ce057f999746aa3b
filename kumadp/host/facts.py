"""Facts about the host that the control plane is told."""

from __future__ import annotations

import ipaddress
from pathlib import Path, PurePosixPath

from kumadp.host.cgroup import MOUNTED, PROC, cgroups
from kumadp.host.net.ports import local_addresses

# Where Linux distributions keep their CA bundle (the places that Go's crypto/x509 looks at).
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# No machine has as much memory: what v1 calls unlimited is 2^63 rounded down to a page.
_UNLIMITED = 1 << 60


def system_ca_path() -> str:
    """The system's CA bundle, empty where none of the usual places has one."""
    return next((path for path in CA_BUNDLES if Path(path).is_file()), "")


def has_ipv6() -> bool:
    """Whether the host has an IPv6 address that is not loopback (Kuma 2.14)."""
    return any(":" in address and not ipaddress.ip_address(address).is_loopback for address in local_addresses())


def memory_limit(proc: Path = PROC, mounted: Path = MOUNTED) -> int:
    """Bytes that this process and its children may use, by the tightest cgroup above them, v1 or v2; 0 for no limit.

    kuma-dp looks at the root of the hierarchy alone, which is right in a container; on a VM the limit is that of the
    unit. "Unlimited" of v1 is a number as good as 2^63, which kuma-dp sends on.
    """
    places = [(mounted, "memory.max", "/"), (mounted / "memory", "memory.limit_in_bytes", "/")]
    for controllers, path in cgroups(proc):
        if not controllers:
            places.append((mounted, "memory.max", path))
        elif "memory" in controllers.split(","):
            places.append((mounted / "memory", "memory.limit_in_bytes", path))
    found = []
    for root, name, path in places:
        inside = PurePosixPath(path.lstrip("/"))
        found += [_limit(root / folder / name) for folder in (inside, *inside.parents)]
    return min((limit for limit in found if 0 < limit < _UNLIMITED), default=0)


def _limit(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
