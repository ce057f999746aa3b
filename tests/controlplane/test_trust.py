"""The control plane's CA as it is read from the settings: for the request, for what it carries, and for `doctor`."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

from kumadp.controlplane.bootstrap_http import fetch_bootstrap
from kumadp.controlplane.trust import Trust, make_context, read_trust
from kumadp.doctor.control_plane import control_plane
from kumadp.doctor.subject import Subject
from kumadp.errors import ControlPlaneRefused
from kumadp.settings.resolve import resolve
from tests.support.pki import issue
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.settings.model import Settings

GOOD = bootstrap_answer({"node": {"id": "default.web"}})
KEY = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"


def settings(url: str = "https://localhost:1", file: Path | None = None, inline: str = "") -> Settings:
    flags = {"name": "web", "mesh": "default", "cp_address": url, "ca_cert_file": str(file) if file else None}
    return resolve("run", flags, {"KUMA_CONTROL_PLANE_CA_CERT": inline} if inline else {}).settings


@pytest.mark.parametrize("inline", [False, True])
async def test_a_file_with_more_than_the_ca_serves_request_and_doctor(tmp_path: Path, inline: bool) -> None:
    with ScriptedControlPlane(GOOD) as plane:
        dirty = b"M\xfcller\r\n" + KEY + plane.ca.encode().replace(b"\n", b"\r\n") + b"\xff"
        file = tmp_path / "ca.pem"
        file.write_bytes(dirty)
        text = dirty.decode("utf-8", "surrogateescape") if inline else ""
        taken = settings(plane.url, None if inline else file, text)
        trust, notes = await asyncio.to_thread(read_trust, taken)
        # The control plane parses the first block, and puts all of it into Envoy's bootstrap (Kuma 2.14).
        assert trust.ca == plane.ca
        assert len(notes) == 1
        assert "line 2: PRIVATE KEY is not a certificate; it is ignored" in notes[0]

        async def request() -> tuple[bytes, Trust]:
            return b"{}", trust

        answer = await fetch_bootstrap([plane.url], request, backoff=0.001, max_duration=20, on_failure=lambda _: None)
        assert answer.bootstrap
    with ScriptedControlPlane(Answer(200)) as plane:
        file.write_bytes(dirty + b"\n" + plane.ca.encode())
        checks = await control_plane(Subject(settings(plane.url, file), None, None, None, {}))
        assert [check.state for check in checks] == ["warning", "ok", "ok"]
        assert "TLS verified" in checks[1].text


async def test_a_renewed_ca_beside_the_previous_one_of_the_same_name(tmp_path: Path) -> None:
    """Without key identifiers OpenSSL looks at one of them alone."""
    cas = [issue("private CA", bare=True) for _ in range(2)]
    file = tmp_path / "ca.pem"
    file.write_bytes(b"".join(ca.pem for ca in cas))
    for ca in cas:
        with ScriptedControlPlane(GOOD) as plane:
            leaf = issue("cp", ca, ca=None, bare=True, names=("localhost",))
            (tmp_path / "leaf.pem").write_bytes(leaf.key_pem + leaf.pem)
            plane.context.load_cert_chain(tmp_path / "leaf.pem")
            taken = settings(plane.url, file)
            trust, _ = read_trust(taken)

            async def request(trust: Trust = trust) -> tuple[bytes, Trust]:
                return b"{}", trust

            for _ in range(2):
                answer = await fetch_bootstrap(
                    [plane.url], request, backoff=0.001, max_duration=20, on_failure=lambda _: None
                )
                assert answer.bootstrap
                checks = await control_plane(Subject(taken, None, None, None, {}))
                assert "TLS verified" in checks[0].text


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"no PEM", KEY])
async def test_a_file_without_a_ca_is_named_with_its_path(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(text)
    with pytest.raises(ControlPlaneRefused, match=r"CA is not a PEM certificate: .*ca\.pem") as error:
        read_trust(settings(file=file))
    assert "\n" not in str(error.value)
    (check,) = await control_plane(Subject(settings(file=file), None, None, None, {}))
    assert (check.state, check.text) == ("failed", error.value.message)


def test_a_file_that_cannot_be_read_is_named_too(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ControlPlaneRefused, match=f"the CA file {path} cannot be read"):
            read_trust(settings(file=path))


def test_an_inline_ca_takes_precedence_over_the_file(tmp_path: Path) -> None:
    ca = issue("ca").pem.decode()
    assert read_trust(settings(file=tmp_path / "none", inline="ü\n" + ca))[0] == Trust(ca)
    with pytest.raises(ControlPlaneRefused, match="inline CA holds no PEM"):
        read_trust(settings(inline="ü"))


def test_the_rules_do_not_depend_on_python() -> None:
    for trust in (Trust(issue("ca").pem.decode()), Trust("")):
        context = make_context(trust)
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
