"""CoreDNS as a component. It never ends the daemon: names may go, traffic by address stays."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import TYPE_CHECKING, Protocol

import psutil

from kumadp.dns.question import answers
from kumadp.errors import KumadpError
from kumadp.process.policy import ChildState
from kumadp.process.supervise import Past, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.process.child import Child, Command, ExitStatus
    from kumadp.process.policy import RestartPolicy
    from kumadp.process.supervise import ChildReport

log = logging.getLogger("kumadp.dns")

CHECK_EVERY = 5.0
_ASK_AGAIN = 0.5
_FAILURES = 3
_ANSWER_WITHIN = 1.0
# A CoreDNS that has bound its ports answers within milliseconds: past this the stand-in is put back.
_TRUSTED_FOR = 2.0
_NO_PAST = Past()


class StandIn(Protocol):
    """Who answers on CoreDNS's port while CoreDNS does not; it shares the port (SO_REUSEPORT), as CoreDNS does."""

    async def open(self) -> None:
        """Answer; raises OSError or KumadpError where the port cannot be had."""

    async def close(self) -> None:
        """Answer what has come and give the port up."""


class CoreDnsComponent:
    """Runs CoreDNS on ``port``; up once it answers by UDP and TCP, and watched by questions from then on.

    ``stand_in`` answers from the moment CoreDNS ends or goes silent until the next one answers, and for good once it is
    given up. ``gave_up`` hears the story then, and whether somebody answers in its place. ``worry`` hears what is wrong
    with a CoreDNS that lives, in one line, empty once it is well. ``first`` is a CoreDNS that runs already.
    ``health_name`` is a name that its present Corefile answers without asking others, if there is one. ``yields`` says
    whether the stand-in's sockets come after those of CoreDNS with its present Corefile: then they stay open, and take
    over in the moment in which CoreDNS ends; else both would get queries, and they are opened when CoreDNS has ended.
    ``past`` is what died before.
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
        gave_up: Callable[[str, bool], None],
        worry: Callable[[str], None] = lambda _why: None,
        stand_in: StandIn | None = None,
        first: Child | None = None,
        health_name: Callable[[], str] = lambda: "",
        yields: Callable[[], bool] = lambda: False,
        check_every: float = CHECK_EVERY,
        past: Past = _NO_PAST,
    ) -> None:
        self._port = port
        self._changed = changed
        self._gave_up = gave_up
        self._worry = worry
        self._stand_in = stand_in
        self._stands_in = False
        self._moving = asyncio.Lock()
        self._health_name = health_name
        self._yields = yields
        self._check_every = check_every
        self._answered = False
        self._opening: asyncio.Task[None] | None = None
        self.supervisor = Supervisor(
            self.name,
            command,
            policy,
            self._bring_up,
            permanent=self._permanent,
            changed=self._note,
            grace=grace,
            first=first,
            past=past,
        )

    @property
    def stands_in(self) -> bool:
        """Whether it is the stand-in that answers."""
        return self._stands_in and self.supervisor.report.state is not ChildState.RUNNING

    async def stand_in(self) -> None:
        """Have the stand-in answer until CoreDNS does."""
        await self._open()

    async def run(self, up: Callable[[], None]) -> None:
        """Keep CoreDNS running until cancelled; a spent budget is told and then waited on, not raised."""
        watch = asyncio.create_task(self._watch(), name="dns health")
        try:
            try:
                await self.supervisor.run(up)
            except KumadpError as error:
                await self._open()
                self._gave_up(str(error), self._stands_in)
                if self._stands_in:
                    up()
                await asyncio.Event().wait()
        finally:
            watch.cancel()
            if self._opening is not None:
                self._opening.cancel()
            await self._close()

    def reload(self) -> bool:
        """Have CoreDNS read its Corefile and resolv.conf again (SIGUSR1); False where none runs that could."""
        child = self.supervisor.child
        # Before it has set its signals up SIGUSR1 would end it.
        runs = self.supervisor.report.state is ChildState.RUNNING
        return runs and child is not None and child.send_signal(signal.SIGUSR1)

    def _note(self, report: ChildReport) -> None:
        if report.state is ChildState.EXITED and self._answered and self._stand_in is not None:
            log.info("the embedded resolver answers in CoreDNS's place")
            self._opening = asyncio.create_task(self._open(), name="dns stand-in")
        self._changed(report)

    async def _open(self) -> None:
        async with self._moving:
            if self._stand_in is None or self._stands_in:
                return
            try:
                await self._stand_in.open()
            except (OSError, KumadpError) as error:
                log.warning("nobody answers in CoreDNS's place: %s", error)
                return
            self._stands_in = True

    async def _close(self) -> None:
        async with self._moving:
            if self._stand_in is not None and self._stands_in:
                self._stands_in = False
                await self._stand_in.close()

    async def _bring_up(self, child: Child) -> None:
        while True:
            if self._opening is not None:
                await asyncio.shield(self._opening)
            if self._stands_in:
                # Both have the port: what was asked now might be answered by either.
                await _until(lambda: asyncio.to_thread(_has_bound, child.pid, self._port))
                if not self._yields():
                    await self._close()
            try:
                async with asyncio.timeout(_TRUSTED_FOR if self._answered else None):
                    await _until(self._answers)
            except TimeoutError:
                await self._open()
                continue
            self._answered = True
            self._worry("")
            if self._yields():
                await self._open()
            return

    async def _answers(self) -> bool:
        return not await self._missing()

    async def _missing(self) -> str:
        return await answers(self._port, self._health_name(), deadline=_ANSWER_WITHIN)

    async def _watch(self) -> None:
        """Ask now and then; one that lives and says nothing is killed, and started again as any that has ended."""
        failures = 0
        while True:
            await asyncio.sleep(_ASK_AGAIN if failures else self._check_every)
            child = self.supervisor.child
            if self.supervisor.report.state is not ChildState.RUNNING or child is None or child.ended:
                failures = 0
                continue
            missing = await self._missing()
            if not missing or child is not self.supervisor.child or child.ended:
                failures = 0
                self._worry("")
                continue
            failures += 1
            if failures == _FAILURES:
                failures = 0
                self._worry(f"CoreDNS (pid {child.pid}) runs but does not answer by {missing}: it is killed")
                await self._open()
                child.condemn(f"it hung: no answer by {missing}")

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        if self._answered or status.code in {None, 0}:
            return None
        broken = next((line for line in lines if "Corefile:" in line or "Error during parsing" in line), None)
        return f"its Corefile cannot be loaded: {broken}" if broken else None


async def _until(there: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``there`` is true. Nothing tells of a port that another process binds, so it is asked for."""
    pause = 0.02
    while not await there():
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def _has_bound(pid: int, port: int) -> bool:
    """Whether this process has the port by UDP and TCP; also true where we may not see it. May block."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    found = {
        one.type
        for one in connections
        if one.laddr[1:] == (port,) and (one.type == socket.SOCK_DGRAM or one.status == psutil.CONN_LISTEN)
    }
    return {socket.SOCK_STREAM, socket.SOCK_DGRAM} <= found
