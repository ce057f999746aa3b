"""The name that is resolved and the one in TLS and HTTP are two things (RFC 6066, section 3)."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.controlplane.bootstrap_http import fetch_bootstrap
from kumadp.controlplane.trust import Trust
from kumadp.doctor.control_plane import control_plane
from kumadp.doctor.subject import Subject
from kumadp.errors import SettingsError
from kumadp.relay.session import addresses
from kumadp.settings.resolve import resolve
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.errors import ControlPlaneUnavailable
    from kumadp.settings.model import Settings

GOOD = bootstrap_answer({"node": {"id": "default.web"}})


def settings(url: str, **more: str) -> Settings:
    return resolve("run", {"name": "web", "mesh": "default", "cp_address": url, **more}, {}).settings


@pytest.fixture(autouse=True)
def absolute_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a final dot is looked up as DNS has it, also where localhost is in /etc/hosts alone."""
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *others: Any, **named: Any) -> Any:
        if isinstance(host, bytes):
            host = host.decode()
        return original(host.removesuffix(".") if isinstance(host, str) else host, *others, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", ["localhost.", "LOCALHOST", "LocalHost.", "localhost"])
async def test_a_final_dot_and_capitals_are_for_the_resolver_alone(host: str) -> None:
    reasons: list[ControlPlaneUnavailable] = []
    with ScriptedControlPlane(GOOD) as plane:

        async def request() -> tuple[bytes, Trust]:
            return b"{}", Trust(plane.ca)

        urls = settings(f"https://{host}:{plane.port}").cp_addresses
        async with asyncio.timeout(30):
            answer = await fetch_bootstrap(urls, request, backoff=0.001, max_duration=20, on_failure=reasons.append)
        assert answer.bootstrap
        assert plane.names_seen == ["localhost"]
        assert plane.headers_seen[0]["host"] == f"localhost:{plane.port}"
    assert reasons == []


@pytest.mark.parametrize("host", ["localhost.", "LOCALHOST"])
def test_doctor_verifies_the_same_name(host: str, tmp_path: Path) -> None:
    with ScriptedControlPlane(Answer(200)) as plane:
        taken = settings(f"https://{host}:{plane.port}", ca_cert_file=str(plane.write_ca(tmp_path / "ca.crt")))
        checks = asyncio.run(control_plane(Subject(taken, None, None, None, {})))
        assert [check.state for check in checks] == ["ok", "ok"]
        assert plane.names_seen == ["localhost"]


@pytest.mark.parametrize("name", ["127.0.0.1", "::1"])
async def test_an_address_is_verified_and_never_sent_as_a_name(name: str) -> None:
    plane = ScriptedControlPlane(GOOD, names=(name,), host=name)
    with plane:

        async def request() -> tuple[bytes, Trust]:
            return b"{}", Trust(plane.ca)

        shown = f"[{name}]" if ":" in name else name
        urls = settings(f"https://{shown}:{plane.port}").cp_addresses
        assert (await fetch_bootstrap(urls, request, backoff=0.1, max_duration=20, on_failure=lambda _: None)).bootstrap
        assert plane.names_seen == [None]
        assert plane.headers_seen[0]["host"] == f"{shown}:{plane.port}"


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        ("https://cp.example.com.:5678", "https://cp.example.com.:5678"),
        ("https://KASSE_1:5678/x?y=Z", "https://kasse_1:5678/x?y=Z"),
        ("https://kasse_1_", "https://kasse_1_"),
        ("https://[FE80:0::1%25eth0]:5678", "https://[fe80::1%eth0]:5678"),
        ("https://[fe80::1%eth0]:5678", "https://[fe80::1%eth0]:5678"),
        ("https://[fe80::1%25]:5678", "https://[fe80::1%25]:5678"),
        ("https://käse.example:5678", "https://xn--kse-qla.example:5678"),
        ("https://KÄSE.example", "https://xn--kse-qla.example"),
        ("https://straße.example", "https://xn--strae-oqa.example"),
        ("https://user:pass@CP:1", "https://user:pass@cp:1"),
    ],
)
def test_hosts_as_they_are_dialled(given: str, dialled: str) -> None:
    assert settings(given).cp_addresses == (dialled,)


@pytest.mark.parametrize(
    "host",
    [
        *("a..b", ".cp", "-cp", "cp%41", f"{'a' * 64}.example", ".".join(["a" * 50] * 6), "käse_1", "☃☃--☃", "a b"),
        *(
            "cp..",
            "[fe80::1%]",
            "[fe80::1%25a/b]",
            "[fe80::1%a b]",
            "[::1",
            "[fe80::1%eth0%eth1]",
            "[v1.x]",
            "[1.2.3.4]",
        ),
        *("a@", "ａ／b"),
    ],
)
def test_an_invalid_host_is_one_clear_error(host: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings(f"https://{host}:5678")
    assert "is not an http or https address" in str(error.value)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("requested_host", "url"),
    [
        ("cp.example", "https://cp.example.:5678"),
        ("CP.example.", "https://cp.example:5678"),
        ("fe80::1", "https://[fe80::1%25eth0]:5678"),
        ("10.0.0.1", "https://10.0.0.1:5678"),
    ],
)
def test_the_relay_dials_what_the_user_named(requested_host: str, url: str) -> None:
    """The control plane writes the host of the request into the bootstrap."""
    urls = settings(f"https://other:5678,{url}").cp_addresses
    first, second = addresses(requested_host, 5678, urls)
    assert f"//{first[0]}:" in url.replace("%25", "%").replace("[", "").replace("]", "")
    assert second == ("other", 5678)
    assert addresses("elsewhere", 5678, urls) == (("elsewhere", 5678),)
