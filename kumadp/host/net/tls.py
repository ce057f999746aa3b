"""TLS of our clients: trust anchors and verification rules. Every client's SSL context is created here.

Python's own defaults depend on its version (3.13 turned on VERIFY_X509_STRICT and VERIFY_X509_PARTIAL_CHAIN) and differ
from those of Go, which kuma-dp is written in; so each rule is stated here instead.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.host.facts import system_ca_path

if TYPE_CHECKING:
    from collections.abc import Iterator

# Bytes. A store of all public CAs has 250 KB.
LARGEST_FILE = 4 << 20
# As Go verifies (crypto/x509) and as curl does: every certificate of the file is a trust anchor, also an intermediate
# or the server's own; a CA without key usage or authority key identifier is one (no VERIFY_X509_STRICT).
VERIFY_FLAGS = ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
# Python's list (3.10 to 3.13) at OpenSSL's default security level: Go accepts RSA keys of 1024 bits, level 2 does not.
# SHA-1 and MD5 signatures are rejected at both levels, and by Go.
_CIPHERS = "@SECLEVEL=1:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
# X509 CERTIFICATE is what OpenSSL wrote before 0.9 (RFC 7468, 5.1).
_LABELS = {b"CERTIFICATE", b"X509 CERTIFICATE"}
# A block begins a line; RFC 7468 (section 3, lax grammar) allows white space before it, and a NUL is half of
# a line end in UTF-16.
_BEGIN = re.compile(rb"(?:\A|[\r\n])(?:\xef\xbb\xbf)?[ \t\v\f\0]*-----BEGIN ([ -,.-~]{0,64})-----")
_GLUED = re.compile(rb"-----BEGIN ([ -,.-~]{0,64})-----")
_DASHES = b"-----"
_MAX_NOTES = 5
_turns = itertools.count()


class NoTrustAnchor(ValueError):
    """A text or file holds no certificate that can be trusted; the message has no path."""


class TrustAnchors(Struct, frozen=True):
    """The trust anchors of a text: ``certificates`` in DER, each once, in order; ``notes`` on skipped blocks."""

    certificates: tuple[bytes, ...]
    notes: tuple[str, ...] = ()

    @property
    def pem(self) -> str:
        """The same certificates as plain PEM, with nothing around them."""
        return "".join(map(ssl.DER_cert_to_PEM_cert, self.certificates))


def read_anchors(text: str | bytes) -> TrustAnchors:
    """Return the certificates of a PEM text, with any text around them and in any encoding (RFC 7468, section 2).

    Like Go's AppendCertsFromPEM, takes each valid CERTIFICATE block and skips all others: keys, CRLs, blocks with
    headers, malformed blocks. Accepts a byte order mark, UTF-16 and line ends of any kind.
    Raises NoTrustAnchor if there is no certificate.
    """
    data = _bytes(text)
    certificates: dict[bytes, None] = {}
    notes: list[str] = []
    labels: dict[str, None] = {}
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for line, label, body in _blocks(data):
        shown = label.decode("ascii")
        if label not in _LABELS:
            labels[shown] = None
            notes.append(f"line {line}: {shown} is not a certificate")
            continue
        der, problem = _der(body)
        if not problem and der not in certificates:
            try:
                store.load_verify_locations(cadata=der)
            except (ssl.SSLError, ValueError) as error:
                problem = f"is not readable: {_lower(error)}"
        if problem:
            notes.append(f"line {line}: the certificate {problem}")
        else:
            certificates[der] = None
    if not certificates:
        raise NoTrustAnchor(_why(data, notes, labels))
    hidden = len(notes) - _MAX_NOTES
    shown_notes = notes[:_MAX_NOTES] + ([f"and {hidden} more"] if hidden > 0 else [])
    return TrustAnchors(tuple(certificates), tuple(shown_notes))


def read_anchors_file(path: str | Path) -> TrustAnchors:
    """Return `read_anchors` of a file. May block. Raises OSError, and NoTrustAnchor, which names the path."""
    data = _read(path)
    try:
        return read_anchors(data)
    except NoTrustAnchor as error:
        raise NoTrustAnchor(f"{path} {error}") from None


def client_context(anchors: TrustAnchors | None = None, *, verify: bool = True) -> ssl.SSLContext:
    """Return an SSL context for a client: TLS 1.2 or newer, as in kuma-dp (2.8 to 2.14). May block.

    Only ``anchors`` are trusted; None is the system's store (or SSL_CERT_FILE and SSL_CERT_DIR). A certificate is for
    the names and addresses in its subjectAltName; its common name is ignored (Go 1.15, RFC 9525, 6.3).
    """
    context = _base()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif anchors is None:
        _load_system(context)
    else:
        context.load_verify_locations(cadata=b"".join(_next_order(anchors.certificates)))
    return context


def _base() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.hostname_checks_common_name = False
    context.verify_flags = VERIFY_FLAGS
    return context


def _next_order(certificates: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the certificates; among several with the same subject, another one comes first at each call.

    A CA may be renewed without key identifiers: Go tries both keys, OpenSSL only the first. Each attempt to connect has
    a new context, and is retried.
    """
    subjects: dict[bytes, list[bytes]] = {}
    for der in certificates:
        subjects.setdefault(_subject(der), []).append(der)
    if all(len(alike) == 1 for alike in subjects.values()):
        return certificates
    turn = next(_turns)
    return tuple(der for alike in subjects.values() for der in alike[turn % len(alike) :] + alike[: turn % len(alike)])


def _load_system(context: ssl.SSLContext) -> None:
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    paths = ssl.get_default_verify_paths()
    # OpenSSL stops without an error at the first entry of a file that it cannot read; and a Python that is not of this
    # distribution may look for the store in another place.
    store = os.environ.get("SSL_CERT_FILE") or ("" if paths.cafile or paths.capath else system_ca_path())
    if not store:
        return
    try:
        data = _read(store)
        count = sum(label in _LABELS for _, label, _ in _blocks(_bytes(data)))
        if context.cert_store_stats()["x509"] < count:
            context.load_verify_locations(cadata=b"".join(read_anchors(data).certificates))
    except (OSError, NoTrustAnchor):
        return


def _read(path: str | Path) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise NoTrustAnchor(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
    return data


def _bytes(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    # A byte order mark may begin a remark, with PEM in ASCII after it.
    if b"-----BEGIN " in data:
        return data
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            return data[2:].decode(encoding, "replace").encode()
    return data


def _blocks(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield line number, label and body of each PEM block. Linear: each byte is read a bounded number of times."""
    begin = _BEGIN.search(data)
    line, counted = 1, 0
    while begin is not None:
        start = begin.end()
        end = data.find(_DASHES, start)
        if end < 0:
            return
        closing = b"-----END " + begin[1] + _DASHES
        line += data.count(b"\n", counted, start)
        counted = start
        if data.startswith(closing, end):
            yield line, begin[1], data[start:end]
            end += len(closing)
            # Concatenated files, the first without a final line end.
            begin = _GLUED.match(data, end) or _BEGIN.search(data, end)
        else:
            # The line end before a block that begins here is read again.
            begin = _BEGIN.search(data, start)


def _der(body: bytes) -> tuple[bytes, str]:
    """Return the bytes of a block, and what is wrong with it, if anything."""
    if b":" in body:
        return b"", "has headers"
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        return b"", "is not base64"
    if len(der) != _length(der):
        return b"", "is cut off or has more after it"
    return der, ""


def _length(der: bytes) -> int:
    """Return the length of the ASN.1 sequence at the start, with its header; 0 if there is none."""
    return _element(der, 0)[1] if der[:1] == b"\x30" else 0


def _element(der: bytes, at: int) -> tuple[int, int]:
    """Return start and end of the content of the ASN.1 element at ``at`` (X.690, 8.1.3); 0 if there is none."""
    if len(der) < at + 2:
        return 0, 0
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        more = length & 0x7F
        if not 1 <= more <= 4:
            return 0, 0
        start += more
        length = int.from_bytes(der[at + 2 : start])
    return start, start + length


def _subject(der: bytes) -> bytes:
    """Return the subject of a certificate (RFC 5280, 4.1): the sixth element of the signed part, with the version."""
    at = _element(der, _element(der, 0)[0])[0]
    # Version, in certificates of version 2 and later.
    at = _element(der, at)[1] if der[at : at + 1] == b"\xa0" else at
    for _ in ("serial number", "algorithm", "issuer", "validity"):
        at = _element(der, at)[1]
    return der[at : _element(der, at)[1]]


def _why(data: bytes, notes: list[str], labels: dict[str, None]) -> str:
    if not data.strip():
        return "is empty"
    if data[:1] == b"\x30" and not notes:
        return "is not PEM; is it DER? (openssl x509 -inform der -in FILE -out CA.pem)"
    if rb"\n" in data and b"\n" not in data.strip():
        return r"holds no PEM certificate: it has \n in place of line ends"
    if set(labels) & {"TRUSTED CERTIFICATE"}:
        hint = "openssl x509 -in FILE -out CA.pem makes one of it"
        return f"holds no PEM certificate: TRUSTED CERTIFICATE is OpenSSL's own format ({hint})"
    return "holds no PEM certificate" + (f": {'; '.join(notes[:_MAX_NOTES])}" if notes else "")


def _lower(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).lower().replace("_", " ")
