"""CoreDNS as a component. It never ends the daemon: names may go, traffic by address stays."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import KumadpError
from kumadp.process.output import output_of
from kumadp.process.supervise import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.process.child import Child, Command, ExitStatus
    from kumadp.process.policy import RestartPolicy
    from kumadp.process.supervise import ChildReport

log = logging.getLogger("kumadp.dns")

DEADLINE = 10.0
_QUERY_DEADLINE = 0.5


def find_coredns(path: str) -> Path | None:
    """The CoreDNS binary: a path, or a name looked up on PATH; None when there is none."""
    found = shutil.which(path)
    return Path(found).absolute() if found else None


async def coredns_version(path: Path, environment: Mapping[str, str]) -> str:
    """Its version, as in 1.14.7 (``CoreDNS-1.14.7`` in the answer to ``--version``), empty when unknown."""
    match = re.search(r"CoreDNS-(\S+)", await _ask(path, "--version", environment))
    return match[1] if match else ""


async def coredns_plugins(path: Path, environment: Mapping[str, str]) -> frozenset[str]:
    """Names of the plugins it was built with: a line each, with ``dns.`` before it in older versions."""
    lines = (await _ask(path, "-plugins", environment)).splitlines()
    return frozenset(name.strip().removeprefix("dns.") for name in lines if name.strip() and " " not in name.strip())


async def _ask(path: Path, argument: str, environment: Mapping[str, str]) -> str:
    try:
        return await output_of(path, argument, environment=environment, deadline=DEADLINE, with_errors=True)
    except TimeoutError:
        return ""
    except OSError as error:
        log.warning("%s cannot be run: %s", path, error.strerror)
        return ""


class CoreDnsComponent:
    """Runs CoreDNS on ``port``; up once it answers. ``gave_up`` hears its story when the budget is spent.

    ``first`` is a CoreDNS that runs already.
    """

    name = "coredns"

    def __init__(
        self,
        command: Callable[[], Awaitable[Command]],
        port: int,
        policy: RestartPolicy,
        *,
        grace: float,
        changed: Callable[[ChildReport], None],
        gave_up: Callable[[str], None],
        first: Child | None = None,
    ) -> None:
        self._port = port
        self._gave_up = gave_up
        self._answered = False
        self.supervisor = Supervisor(
            self.name,
            command,
            policy,
            self._bring_up,
            permanent=self._permanent,
            changed=changed,
            grace=grace,
            first=first,
        )

    async def run(self, up: Callable[[], None]) -> None:
        """Keep CoreDNS running until cancelled; a spent budget is told and then waited on, not raised."""
        try:
            await self.supervisor.run(up)
        except KumadpError as error:
            self._gave_up(str(error))
            await asyncio.Event().wait()

    async def _bring_up(self, child: Child) -> None:  # noqa: ARG002 - the supervisor gives it
        pause = 0.02
        while not await _answers(self._port):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        self._answered = True

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        if self._answered or status.code in {None, 0}:
            return None
        broken = next((line for line in lines if "Corefile:" in line or "Error during parsing" in line), None)
        return f"its Corefile cannot be loaded: {broken}" if broken else None


async def _answers(port: int) -> bool:
    """Whether a DNS server on loopback answers at all: any answer to our question counts (RFC 1035)."""
    loop = asyncio.get_running_loop()
    number = secrets.randbelow(65536)
    question = b"\x06kumadp\x05ready\x04mesh\x00" + struct.pack("!HH", 1, 1)
    query = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + question
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        try:
            client.connect(("127.0.0.1", port))
            async with asyncio.timeout(_QUERY_DEADLINE):
                await loop.sock_sendall(client, query)
                answer = await loop.sock_recv(client, 512)
        except (OSError, TimeoutError):
            return False
    return len(answer) >= 12 and answer[:2] == query[:2] and bool(answer[2] & 0x80)
