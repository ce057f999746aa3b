"""Facts about the host that are sent to the control plane."""

from __future__ import annotations

import ipaddress
from pathlib import Path, PurePosixPath

from kumadp.host.cgroup import MOUNTED, PROC, cgroups
from kumadp.host.net.interfaces import local_addresses

# Where Linux distributions keep their CA bundle (the places that Go's crypto/x509 looks at).
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# No machine has that much memory: "unlimited" in v1 is 2^63 rounded down to a page.
_UNLIMITED = 1 << 60


def system_ca_path() -> str:
    """Return the path of the system's CA bundle, or an empty text if none of the usual places has one."""
    return next((path for path in CA_BUNDLES if Path(path).is_file()), "")


def has_ipv6() -> bool:
    """Return whether the host has an IPv6 address that is not loopback (Kuma 2.14)."""
    return any(":" in address and not ipaddress.ip_address(address).is_loopback for address in local_addresses())


def memory_limit(proc: Path = PROC, mounted: Path = MOUNTED) -> int:
    """Return the bytes that this process and its children may use, by the tightest cgroup above them; 0: no limit.

    Reads v1 and v2. kuma-dp reads only the root of the hierarchy, which is right in a container; on a VM the limit is
    that of the unit. "Unlimited" in v1 is a number close to 2^63, which kuma-dp sends as it is.
    """
    places = [(mounted, "memory.max", "/"), (mounted / "memory", "memory.limit_in_bytes", "/")]
    for controllers, path in cgroups(proc):
        if not controllers:
            places.append((mounted, "memory.max", path))
        elif "memory" in controllers.split(","):
            places.append((mounted / "memory", "memory.limit_in_bytes", path))
    limits: list[int] = []
    for root, name, path in places:
        inside = PurePosixPath(path.lstrip("/"))
        limits += [_limit(root / folder / name) for folder in (inside, *inside.parents)]
    return min((limit for limit in limits if 0 < limit < _UNLIMITED), default=0)


def _limit(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
