"""How the control plane's certificate is verified, for the bootstrap request, the relay's stream and `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import ControlPlaneRefused
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    import ssl

    from kumadp.settings.model import Settings

_HINT = "check --ca-cert-file or KUMA_CONTROL_PLANE_CA_CERT"


class Trust(Struct, frozen=True):
    """The trusted CA: ``ca`` is PEM, empty for the system's store. ``verify`` False: any certificate is accepted."""

    ca: str
    verify: bool = True


def read_trust(settings: Settings) -> tuple[Trust, tuple[str, ...]]:
    """Read the CA, inline before the file; return it with notes on entries that are ignored. May block.

    ``Trust.ca`` is the certificates alone, as plain PEM. Raises ControlPlaneRefused, and OSError if this process has no
    descriptor or memory left.
    """
    source = settings.ca_cert_file
    if not (settings.ca_cert or source):
        return Trust("", verify=not settings.skip_verify), ()
    from kumadp.host.net.tls import NoTrustAnchor, read_anchors, read_anchors_file

    try:
        if settings.ca_cert:
            source = "the inline CA"
            anchors = read_anchors(settings.ca_cert)
        else:
            anchors = read_anchors_file(source)
    except OSError as error:
        if is_exhausted(error):
            raise
        raise ControlPlaneRefused(f"the CA file {source} cannot be read: {error}") from None
    except NoTrustAnchor as error:
        where = f"{source} " if settings.ca_cert else ""
        raise ControlPlaneRefused(f"the control plane's CA is not a PEM certificate: {where}{error}", _HINT) from None
    notes = tuple(f"{source}: {note}; it is ignored" for note in anchors.notes)
    return Trust(anchors.pem, verify=not settings.skip_verify), notes


def make_context(trust: Trust) -> ssl.SSLContext:
    """Create a context for TLS 1.2 or newer; a given CA is the only trusted one (Kuma 2.14). May block.

    Raises ControlPlaneRefused if the CA is not PEM.
    """
    from kumadp.host.net.tls import NoTrustAnchor, client_context, read_anchors

    try:
        anchors = read_anchors(trust.ca) if trust.ca else None
    except NoTrustAnchor as error:
        raise ControlPlaneRefused(f"the control plane's CA is not a PEM certificate: it {error}", _HINT) from None
    return client_context(anchors, verify=trust.verify)
