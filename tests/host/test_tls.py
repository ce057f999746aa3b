"""Trust files as people have them, and verification that is the same whichever Python runs."""

from __future__ import annotations

import base64
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

from kumadp.host.net.tls import LARGEST_FILE, NoTrustAnchor, client_context, read_anchors, read_anchors_file
from tests.support.pki import Issued, issue, server_context, shake_hands

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = issue("Müller & Söhne Root")
OTHER = issue("other root")
INTERMEDIATE = issue("intermediate", ROOT)
LEAF = issue("server", INTERMEDIATE, ca=None, names=("cp.example", "192.0.2.7", "2001:db8::7", "*.wild.example"))
PEM, SECOND = ROOT.pem, OTHER.pem
KEY = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"
BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
NO_BASE64 = b"-----BEGIN CERTIFICATE-----\nM\xfc\n-----END CERTIFICATE-----\n"
HEADERS = PEM.replace(b"CERTIFICATE-----\n", b"CERTIFICATE-----\nProc-Type: 4,ENCRYPTED\n\n", 1)
TRUSTED = PEM.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE")


def block(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


AROUND: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda pem: pem,
    "text in UTF-8": lambda pem: "# Müller & Söhne – Prüfstelle 中文\n".encode() + pem + "Ende ä\n".encode(),
    "text in Latin-1": lambda pem: "Müller & Söhne\n".encode("latin-1") + pem + b"\xe4\xff\n",
    "text in UTF-16": lambda pem: "Müller\n".encode("utf-16-le") + pem,
    "all of it in UTF-16, little end first": lambda pem: (
        b"\xff\xfe" + ("Müller\r\n" + pem.decode()).encode("utf-16-le")
    ),
    "all of it in UTF-16, big end first": lambda pem: b"\xfe\xff" + pem.decode().encode("utf-16-be"),
    "a remark in UTF-16 with its byte order mark": lambda pem: "Müller\r\n".encode("utf-16") + pem,
    "bytes that look like a mark of UTF-16": lambda pem: b"\xfe\xff\n" + pem,
    "a byte order mark": lambda pem: b"\xef\xbb\xbf" + pem,
    "NULs": lambda pem: b"\0\0\n" + pem + b"\0" * 9,
    "every byte": lambda pem: bytes(range(256)) * 3 + b"\n" + pem + bytes(range(256)),
    "CRLF": lambda pem: pem.replace(b"\n", b"\r\n"),
    "CR": lambda pem: pem.replace(b"\n", b"\r"),
    "no final line end": lambda pem: pem.rstrip(),
    "indented": lambda pem: b"".join(b"    " + line + b"\n" for line in pem.splitlines()),
    "spaces at the ends of lines": lambda pem: pem.replace(b"\n", b" \t\n"),
    "blanks in place of line ends": lambda pem: pem.replace(b"\n", b" "),
    "one long line": lambda pem: b"\n".join(
        (pem.splitlines()[0], b"".join(pem.splitlines()[1:-1]), pem.splitlines()[-1])
    ),
    "what openssl x509 -text writes": lambda pem: b"Certificate:\n    Data:\n        Subject: CN=M\xc3\xbcller\n" + pem,
    "a key before it": lambda pem: KEY + pem,
    "a key after it": lambda pem: pem + KEY,
    "a broken one before it": lambda pem: BROKEN + pem,
    "a broken one after it": lambda pem: pem + BROKEN + NO_BASE64,
    "one with headers before it": lambda pem: HEADERS + pem,
    "OpenSSL's own format before it": lambda pem: TRUSTED + pem,
    "a beginning without an end before it": lambda pem: b"-----BEGIN CERTIFICATE-----\nMIIB\n" + pem,
    "a beginning without an end after it": lambda pem: pem + b"-----BEGIN CERTIFICATE-----\nMIIB\n",
    "an end that fits nothing": lambda pem: b"-----BEGIN A-----\nMIIB\n-----END B-----\n" + pem,
    "dashes": lambda pem: b"-----\n----- BEGIN -----\n" + b"-" * 1000 + b"\n" + pem,
    "the label of before OpenSSL 0.9": lambda pem: pem.replace(b" CERTIFICATE", b" X509 CERTIFICATE"),
    "the same twice": lambda pem: pem + b"\n" + pem,
}


@pytest.mark.parametrize("name", AROUND)
def test_what_stands_around_a_certificate_does_not_matter(name: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(AROUND[name](PEM))
    assert read_anchors_file(file).certificates == (ROOT.der,)
    # In a variable such bytes are surrogates (PEP 383).
    inline = AROUND[name](PEM).decode("utf-8", "surrogateescape")
    anchors = read_anchors(inline)
    assert anchors.certificates == (ROOT.der,)
    assert read_anchors(anchors.pem).pem == anchors.pem == PEM.decode()
    assert shake_hands(client_context(anchors), server_context(tmp_path, LEAF, INTERMEDIATE), "cp.example")


def test_all_certificates_are_taken_in_their_order() -> None:
    text = b"a\n" + PEM + b"\xff b\n" + KEY + SECOND + BROKEN + INTERMEDIATE.pem + PEM
    anchors = read_anchors(text)
    assert anchors.certificates == (ROOT.der, OTHER.der, INTERMEDIATE.der)
    key, broken = (text[: text.index(block)].count(b"\n") + 1 for block in (KEY, BROKEN))
    assert anchors.notes == (
        f"line {key}: PRIVATE KEY is not a certificate",
        f"line {broken}: the certificate is cut off or has more after it",
    )


def test_files_that_were_joined_without_a_line_end() -> None:
    assert read_anchors(PEM.rstrip() + SECOND.rstrip() + PEM).certificates == (ROOT.der, OTHER.der)


def test_a_certificate_that_is_commented_out_is_not_trusted() -> None:
    commented = b"".join(b"# " + line + b"\n" for line in PEM.splitlines())
    assert read_anchors(commented + SECOND).certificates == (OTHER.der,)


def test_many_notes_are_cut_short() -> None:
    assert read_anchors(BROKEN * 100 + PEM).notes[-1] == "and 95 more"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "is empty"),
        (b" \n\t\r\n", "is empty"),
        (b"no PEM", "holds no PEM certificate"),
        (KEY, "line 1: PRIVATE KEY is not a certificate"),
        (b"x\n" + BROKEN, "line 2: the certificate is cut off"),
        (NO_BASE64, "line 1: the certificate is not base64"),
        (HEADERS, "line 1: the certificate has headers"),
        (TRUSTED, "TRUSTED CERTIFICATE is OpenSSL's own format"),
        (ROOT.der, "is it DER?"),
        (PEM.replace(b"\n", rb"\n"), r"it has \n in place of line ends"),
        (
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(ROOT.der + b"more") + b"-----END CERTIFICATE-----",
            "more",
        ),
        (
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(b"\x30\x02\x05\x00") + b"-----END CERTIFICATE-----",
            "not",
        ),
    ],
    # The certificates differ from process to process, and pytest-xdist compares names.
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_a_file_without_a_certificate_is_one_clear_error_with_its_path(text: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(text)
    with pytest.raises(NoTrustAnchor) as error:
        read_anchors_file(file)
    assert str(error.value).startswith(str(file))
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with file.open("wb") as output:
        output.truncate(LARGEST_FILE + 1)
    with pytest.raises(NoTrustAnchor, match="larger than 4 MiB"):
        read_anchors_file(file)


def test_an_intermediate_alone_is_a_trust_anchor(tmp_path: Path) -> None:
    server = server_context(tmp_path, LEAF)
    assert shake_hands(client_context(read_anchors(INTERMEDIATE.pem)), server, "cp.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(read_anchors(SECOND)), server, "cp.example")


def test_the_server_s_own_certificate_is_a_trust_anchor(tmp_path: Path) -> None:
    server = server_context(tmp_path, LEAF)
    assert shake_hands(client_context(read_anchors(LEAF.pem)), server, "cp.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(read_anchors(LEAF.pem)), server, "other.example")


@pytest.mark.parametrize("bits", [0, 1024, 2048])
def test_an_old_private_ca_is_taken_whichever_python_runs(bits: int, tmp_path: Path) -> None:
    """Without key usage and key identifiers, its basic constraints not critical: VERIFY_X509_STRICT refuses it."""
    root = issue("old", bare=True, bits=bits)
    leaf = issue("cp", root, ca=None, bare=True, bits=bits, names=("cp.example",))
    assert shake_hands(client_context(read_anchors(root.pem)), server_context(tmp_path, leaf), "cp.example")


def test_the_rules_are_stated_and_not_python_s() -> None:
    context = client_context(read_anchors(PEM))
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_self_signed_certificate_that_was_renewed_beside_the_former_one(tmp_path: Path) -> None:
    former, new = (issue("kuma-cp", ca=None, names=("cp.example",)) for _ in range(2))
    both = client_context(read_anchors(former.pem + new.pem))
    for one in (former, new):
        assert shake_hands(both, server_context(tmp_path, one), "cp.example")


@pytest.mark.parametrize("number", [2, 3])
def test_cas_of_one_name_are_all_tried_in_as_many_attempts(number: int, tmp_path: Path) -> None:
    """Renewed without key identifiers: OpenSSL looks at the first of them alone, and attempts are repeated."""
    alike = [issue("private CA", bare=True) for _ in range(number)]
    anchors = read_anchors(PEM + b"".join(one.pem for one in alike) + SECOND)
    for one in alike:
        leaf = issue("cp", one, ca=None, bare=True, names=("cp.example",))
        server = server_context(tmp_path, leaf)
        taken = 0
        for _ in range(number):
            with contextlib.suppress(ssl.SSLCertVerificationError):
                taken += bool(shake_hands(client_context(anchors), server, "cp.example"))
        assert taken == 1


@pytest.mark.parametrize("name", ["cp.example", "CP.Example", "192.0.2.7", "2001:db8::7", "a.wild.example"])
def test_names_and_addresses_that_the_certificate_is_for(name: str, tmp_path: Path) -> None:
    server = server_context(tmp_path, LEAF, INTERMEDIATE)
    assert shake_hands(client_context(read_anchors(PEM)), server, name)


@pytest.mark.parametrize("name", ["server", "192.0.2.8", "2001:db8::8", "a.b.wild.example", "cp.example.net"])
def test_names_and_addresses_that_it_is_not_for(name: str, tmp_path: Path) -> None:
    server = server_context(tmp_path, LEAF, INTERMEDIATE)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(read_anchors(PEM)), server, name)


def test_a_common_name_alone_is_no_name(tmp_path: Path) -> None:
    leaf: Issued = issue("cp.example", ROOT, ca=None)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(read_anchors(PEM)), server_context(tmp_path, leaf), "cp.example")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_1_1_is_not_spoken(tmp_path: Path) -> None:
    server = server_context(tmp_path, LEAF, INTERMEDIATE)
    server.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(client_context(read_anchors(PEM)), server, "cp.example") == "TLSv1.2"
    server.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="version"):
        shake_hands(client_context(read_anchors(PEM)), server, "cp.example")


def test_the_system_s_store_of_the_environment_may_have_broken_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "store.pem"
    file.write_bytes(BROKEN + "Müller\n".encode("latin-1") + PEM)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert shake_hands(client_context(), server_context(tmp_path, LEAF, INTERMEDIATE), "cp.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(), server_context(tmp_path, LEAF, INTERMEDIATE), "cp.example")


def test_without_verification_any_certificate_will_do(tmp_path: Path) -> None:
    server = server_context(tmp_path, LEAF)
    assert shake_hands(client_context(read_anchors(SECOND), verify=False), server, "anything")
