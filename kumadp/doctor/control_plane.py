"""Check of the connection to the control plane, step by step: name, connection, TLS, answer, clock."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kumadp.addresses import address_text, authority, server_name, with_port
from kumadp.controlplane.bootstrap_http import CERTIFICATE_TRIES
from kumadp.controlplane.trust import Trust, make_context, read_trust
from kumadp.doctor.report import CheckResult, failed, ok, skipped, warning
from kumadp.errors import ControlPlaneRefused

if TYPE_CHECKING:
    from kumadp.doctor.subject import Subject

# Timeout of each step (seconds).
_STEP_TIMEOUT = 5.0
_MAX_HEAD = 64 * 1024
# OpenSSL's X509_V_ERR_CERT_SIGNATURE_FAILURE.
_BAD_SIGNATURE = 7
# Differences from which tokens and certificates may be rejected near their expiry, or are rejected (seconds).
_CLOCK_WARNING, _CLOCK_FAILED = 5.0, 60.0


async def control_plane(subject: Subject) -> list[CheckResult]:
    """Check each address of the control plane."""
    if subject.mesh is not None:
        return skipped("standalone: no control plane is needed")
    settings = subject.settings
    try:
        trust, notes = await asyncio.to_thread(read_trust, settings)
    except ControlPlaneRefused as error:
        return failed(error.message, error.hint)
    results: list[CheckResult] = []
    if not trust.verify:
        results += warning("its certificate is not verified (--skip-verify)", "give its CA with --ca-cert-file")
    for note in notes:
        results += warning(note, "remove it from the file")
    for of_address in await asyncio.gather(*(_address(url, trust) for url in settings.cp_addresses)):
        results += of_address
    return results


async def _address(url: str, trust: Trust) -> list[CheckResult]:
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme.lower() == "https"
    port = parts.port or (443 if tls else 80)
    where = with_port(host, port)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_STEP_TIMEOUT):
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return failed(f"{where}: the name was not resolved within {_STEP_TIMEOUT:g} s", "see resolv.conf above")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        return failed(f"{where}: the name cannot be resolved: {reason}", "check --cp-address and resolv.conf")
    address = address_text(addresses[0][4])
    try:
        async with asyncio.timeout(_STEP_TIMEOUT):
            reader, writer = await _connected(host, port, trust if tls else None)
    except ssl.SSLCertVerificationError as error:
        text = f"{where} ({address}): its certificate is rejected: {error.verify_message}"
        return failed(text, "is --ca-cert-file its CA, and is the certificate valid for this address?")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        return failed(f"{where} ({address}): TLS failed: {reason}", "is this the port of its data plane server (5678)?")
    except TimeoutError:
        return failed(f"{where} ({address}): no connection within {_STEP_TIMEOUT:g} s", "does a firewall block it?")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return failed(f"{where} ({address}): {reason}", "does it run, and listen there?")
    try:
        return await _answer(f"{where} ({address})", authority(host, port), reader, writer, tls=tls)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await asyncio.wait_for(writer.wait_closed(), 1)


async def _connected(host: str, port: int, trust: Trust | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, with TLS if there is a ``trust``; raises OSError, of which ssl.SSLError is one."""
    if trust is None:
        return await asyncio.open_connection(host, port)
    for tries in range(CERTIFICATE_TRIES, 0, -1):
        context = await asyncio.to_thread(make_context, trust)
        try:
            return await asyncio.open_connection(host, port, ssl=context, server_hostname=server_name(host))
        except ssl.SSLCertVerificationError as error:
            # Of several CAs with the same name, each attempt tries another one first, as the retries of `run` do.
            if error.verify_code != _BAD_SIGNATURE or tries == 1:
                raise
    raise AssertionError


async def _answer(
    where: str, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, tls: bool
) -> list[CheckResult]:
    """Send any request: whatever the answer is, it shows that the server speaks HTTP, and holds its time."""
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(_STEP_TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return failed(f"{where}: connected, but there is no HTTP answer", "check the port")
    lines = head[:_MAX_HEAD].decode("latin-1").split("\r\n")
    status = lines[0].split(" ", 1)[-1]
    results = ok(f"{where}: resolved, connected{', TLS verified' if tls else ''}, answers ({status})")
    dates = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("date:")]
    return [*results, *clock(dates[0] if dates else "", time.time())]


def clock(date: str, now: float) -> list[CheckResult]:
    """Check how our clock differs from an HTTP date (RFC 9110, 6.6.1), which has whole seconds."""
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return skipped("clock: its answer has no date")
    off = now - theirs - 0.5
    text = f"clock: {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the control plane's"
    if abs(off) >= _CLOCK_FAILED:
        return failed(text, "tokens and certificates depend on it: synchronise the clocks (NTP)")
    if abs(off) >= _CLOCK_WARNING:
        return warning(text, "synchronise the clocks (NTP)")
    return ok("clock: same as the control plane's")
