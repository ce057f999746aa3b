"""Certificates of odd shapes, as old private CAs have issued them, and a TLS handshake without sockets."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    ca: bool | None = True,
    bare: bool = False,
    bits: int = 0,
    names: tuple[str, ...] = (),
) -> Issued:
    """A certificate: self-signed without an ``issuer``; ``ca`` None has no basicConstraints.

    ``bare`` leaves out key usage and the key identifiers; ``bits`` of an RSA key, 0 for an elliptic curve; ``names``
    are host names and IP addresses of subjectAltName.
    """
    key: Key = rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=not bare)
    if not bare:
        public = issuer.key.public_key() if issuer else key.public_key()
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    if names:
        general_names = [
            x509.IPAddress(ipaddress.ip_address(text)) if _is_ip(text) else x509.DNSName(text) for text in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names), critical=False)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def server_context(folder: Path, leaf: Issued, *chain: Issued) -> ssl.SSLContext:
    """A server's context with this certificate and what it sends with it."""
    file = folder / "server.pem"
    file.write_bytes(leaf.key_pem + leaf.pem + b"".join(certificate.pem for certificate in chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A weak key is the test's wish.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(file)
    return context


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str:
    """Do a handshake in memory; the version agreed on. Raises ssl.SSLError as the client sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    done = [False, False]
    for _ in range(20):
        for at, side in enumerate((ours, theirs)):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                if side is ours:
                    raise
                continue
            done[at] = True
        if all(done):
            return ours.version() or ""
    raise AssertionError("the handshake does not end")
