"""CoreDNS as a component. It never ends the daemon: names may go, traffic by address stays."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
from typing import TYPE_CHECKING, Protocol, TypeVar

import psutil

from kumadp.dns.coredns.health_check import missing_transports
from kumadp.errors import KumadpError
from kumadp.process.restart_policy import ChildState
from kumadp.process.supervisor import PreviousDeaths, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from kumadp.dns.coredns.port_sharing import PortSharing
    from kumadp.process.child import Child, Command, ExitStatus
    from kumadp.process.restart_policy import RestartPolicy
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.dns")

T = TypeVar("T")

CHECK_EVERY = 5.0
_ASK_AGAIN = 0.5
_FAILURES = 3
_ANSWER_WITHIN = 1.0
# What CoreDNS logs first when it was told to end, also with -quiet (1.9 to 1.14).
_ENDING = re.compile(r"SIG(?:TERM|INT|QUIT): (?:Shutting down|Quitting)")
_NO_PAST = PreviousDeaths()


class Fallback(Protocol):
    """Who answers on CoreDNS's port while CoreDNS does not; it shares the port (SO_REUSEPORT), as CoreDNS does."""

    steering: PortSharing

    async def open(self, coredns: Collection[str], also: Collection[str] = ()) -> None:
        """Answer, also on the addresses that CoreDNS has; raises OSError or KumadpError where that cannot be."""

    async def close(self) -> None:
        """Answer what has come and give the port up."""


class CoreDnsComponent:
    """Runs CoreDNS on ``port``; up once it answers by UDP and TCP, and watched by questions from then on.

    ``stand_in`` has sockets beside CoreDNS's, and the kernel is told whose get what comes: its own from the moment in
    which CoreDNS ends, says that it will or goes silent, until the next one has answered, and for good once it is given
    up. ``gave_up`` hears the story then, and whether somebody answers in its place. ``worry`` hears what is wrong
    with a CoreDNS that lives, in one line, empty once it is well. ``first`` is a CoreDNS that runs already.
    ``health_name`` is a name that its present Corefile answers without asking others, if there is one. ``past`` is what
    died before.
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
        stand_in: Fallback | None = None,
        first: Child | None = None,
        health_name: Callable[[], str] = lambda: "",
        check_every: float = CHECK_EVERY,
        past: PreviousDeaths = _NO_PAST,
    ) -> None:
        self._port = port
        self._changed = changed
        self._gave_up = gave_up
        self._worry = worry
        self._stand_in = stand_in
        self._open = self._stands_in = False
        self._moving = asyncio.Lock()
        self._health_name = health_name
        self._check_every = check_every
        self._answered = False
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
        return self._stands_in

    async def stand_in(self, also: Collection[str] = ()) -> None:
        """Have the stand-in answer until CoreDNS does, on these addresses too; there is no CoreDNS now."""
        await self._share((), also)
        self._take_over("")

    async def run(self, up: Callable[[], None]) -> None:
        """Keep CoreDNS running until cancelled; a spent budget is told and then waited on, not raised."""
        watch = asyncio.create_task(self._watch(), name="dns health")
        try:
            try:
                await self.supervisor.run(up)
            except KumadpError as error:
                await self.stand_in()
                self._gave_up(str(error), self._stands_in)
                if self._stands_in:
                    up()
                await asyncio.Event().wait()
        finally:
            watch.cancel()
            async with self._moving:
                if self._stand_in is not None and self._open:
                    self._open = self._stands_in = False
                    await self._stand_in.close()

    def reload(self) -> bool:
        """Have CoreDNS read its Corefile and resolv.conf again (SIGUSR1); False where none runs that could."""
        child = self.supervisor.child
        # Before it has set its signals up SIGUSR1 would end it.
        runs = self.supervisor.report.state is ChildState.RUNNING
        return runs and child is not None and child.send_signal(signal.SIGUSR1)

    def _note(self, report: ChildReport) -> None:
        if report.state is ChildState.EXITED and self._stand_in is not None and self._open:
            self._stand_in.steering.alone()
            self._take_over("CoreDNS has ended")
        self._changed(report)

    async def _share(self, coredns: Collection[str], also: Collection[str] = ()) -> None:
        """Have the stand-in open on all addresses that it should have; one that cannot is told and done without."""
        async with self._moving:
            if self._stand_in is None:
                return
            try:
                await self._stand_in.open(coredns, also)
            except (OSError, KumadpError) as error:
                log.warning("nobody answers in CoreDNS's place: %s", error)
                return
            self._open = True

    def _take_over(self, why: str) -> None:
        if self._stand_in is not None and self._open and not self._stands_in:
            self._stands_in = True
            self._stand_in.steering.prefer_stand_in()
            if why:
                log.info("the embedded resolver answers in CoreDNS's place: %s", why)

    def _give_back(self) -> None:
        if self._stand_in is not None and self._open:
            self._stand_in.steering.prefer_coredns()
        self._stands_in = False

    def _hear(self, line: str) -> None:
        # It stops reading then, and goes on to have its sockets for seconds.
        if _ENDING.search(line):
            self._take_over("it says that it ends")

    async def _bring_up(self, child: Child) -> None:
        child.hear(self._hear)
        while True:
            # Until then a stand-in that is alone answers our own questions.
            bound = await _until(lambda: asyncio.to_thread(_bound_by, child.pid, self._port))
            await _until(self._answers)
            # Where it has addresses to itself, they are its own already.
            await self._share(bound)
            self._give_back()
            if await self._answers():
                break
            self._take_over("it answers no more")
        self._answered = True
        self._worry("")

    async def _answers(self) -> bool:
        try:
            return not await self._missing()
        except OSError:
            return False

    async def _missing(self) -> str:
        return await missing_transports(self._port, self._health_name(), deadline=_ANSWER_WITHIN)

    async def _watch(self) -> None:
        """Ask now and then; one that lives and says nothing is killed, and started again as any that has ended."""
        failures = 0
        while True:
            await asyncio.sleep(_ASK_AGAIN if failures else self._check_every)
            child = self.supervisor.child
            if self.supervisor.report.state is not ChildState.RUNNING or child is None or child.ended:
                failures = 0
                continue
            try:
                missing = await self._missing()
            except OSError:
                # No query was sent, and it may well answer.
                continue
            if not missing or child is not self.supervisor.child or child.ended:
                failures = 0
                self._worry("")
                continue
            failures += 1
            if failures == _FAILURES:
                failures = 0
                self._worry(f"CoreDNS (pid {child.pid}) runs but does not answer by {missing}: it is killed")
                self._take_over("it is silent")
                child.kill_with_reason(f"it hung: no answer by {missing}")

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        if self._answered or status.code in {None, 0}:
            return None
        broken = next((line for line in lines if "Corefile:" in line or "Error during parsing" in line), None)
        return f"its Corefile cannot be loaded: {broken}" if broken else None


async def _until(there: Callable[[], Awaitable[T]]) -> T:
    """What is there once it is. Nothing tells of a port that another process binds, so it is asked for."""
    pause = 0.02
    while not (found := await there()):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return found


def _bound_by(pid: int, port: int) -> frozenset[str]:
    """The addresses on which this process has the port by UDP and TCP; none where we may not see it. May block."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.Error:
        return frozenset()
    udp, tcp = (
        {one.laddr[0] for one in connections if one.laddr[1:] == (port,) and one.type == kind and one.status == status}
        for kind, status in ((socket.SOCK_DGRAM, psutil.CONN_NONE), (socket.SOCK_STREAM, psutil.CONN_LISTEN))
    )
    return frozenset(udp & tcp)
