"""CoreDNS as a component. It never ends the daemon: names may fail, traffic by address continues."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec import Struct

from kumadp.dns.coredns.health_check import missing_transports
from kumadp.errors import KumadpError
from kumadp.host.net.listening import hosts_by_both
from kumadp.process.restart_policy import ChildState
from kumadp.process.supervisor import PreviousDeaths, Supervisor, SupervisorOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from kumadp.dns.coredns.port_sharing import PortSharing
    from kumadp.process.child import Child, Command
    from kumadp.process.exit_status import ExitStatus
    from kumadp.process.restart_policy import RestartPolicy
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.dns")

T = TypeVar("T")

CHECK_EVERY = 5.0
_RETRY_AFTER = 0.5
_FAILURES = 3
_ANSWER_WITHIN = 1.0
# The first line that CoreDNS logs when a signal ends it, also with -quiet (1.9 to 1.14).
_ENDING = re.compile(r"SIG(?:TERM|INT|QUIT): (?:Shutting down|Quitting)")
_NO_DEATHS = PreviousDeaths()


class Fallback(Protocol):
    """Answers on CoreDNS's port while CoreDNS does not; it shares the port (SO_REUSEPORT), as CoreDNS does."""

    port_sharing: PortSharing

    async def open(self, coredns: Collection[str], also: Collection[str] = ()) -> None:
        """Listen, also on the addresses ``coredns`` that CoreDNS has; raises OSError or KumadpError."""

    async def close(self) -> None:
        """Answer the queries that have arrived, and close the port."""


class CoreDnsOptions(Struct, frozen=True, kw_only=True):
    """How CoreDNS is run and watched.

    ``port`` is where it answers, ``grace`` the time between SIGTERM and SIGKILL (seconds). ``adopted`` is a CoreDNS
    that runs already, ``past`` its deaths before this run. ``health_name`` returns a name that the present Corefile
    answers without querying other servers, empty if it has none. ``check_every`` is the time between two health checks
    (seconds).
    """

    port: int
    policy: RestartPolicy
    grace: float
    fallback: Fallback | None = None
    adopted: Child | None = None
    past: PreviousDeaths = _NO_DEATHS
    health_name: Callable[[], str] = lambda: ""
    check_every: float = CHECK_EVERY


class CoreDnsComponent:
    """Runs CoreDNS; up once it answers by UDP and TCP, and watched by queries from then on.

    The fallback has sockets on the same port, and the kernel is instructed whose sockets get the queries: those of the
    fallback from the moment when CoreDNS exits, logs that it shuts down or stops answering, until the next CoreDNS has
    answered, and permanently once the restart budget is spent.

    ``on_give_up`` is called then, with the reason and whether the fallback answers. ``on_warning`` is called with one
    line about a CoreDNS that runs but does not answer, empty once it does.
    """

    name = "coredns"

    def __init__(
        self,
        command: Callable[[], Awaitable[Command]],
        options: CoreDnsOptions,
        *,
        on_report: Callable[[ChildReport], None],
        on_give_up: Callable[[str, bool], None],
        on_warning: Callable[[str], None] = lambda _warning: None,
    ) -> None:
        self._port = options.port
        self._on_report = on_report
        self._on_give_up = on_give_up
        self._on_warning = on_warning
        self._fallback = options.fallback
        self._is_fallback_open = self._uses_fallback = False
        self._opening = asyncio.Lock()
        self._health_name = options.health_name
        self._check_every = options.check_every
        self._has_answered = False
        self._retired = asyncio.Event()
        self.supervisor = Supervisor(
            self.name,
            command,
            options.policy,
            self._bring_up,
            SupervisorOptions(
                permanent_failure=self._permanent,
                on_change=self._note,
                grace=options.grace,
                adopted=options.adopted,
                previous_deaths=options.past,
            ),
        )

    @property
    def uses_fallback(self) -> bool:
        """Whether the fallback answers instead of CoreDNS."""
        return self._uses_fallback

    async def use_fallback(self, also: Collection[str] = ()) -> None:
        """Have the fallback answer, also on these addresses, until CoreDNS does; no CoreDNS runs now."""
        await self._open_fallback((), also)
        self._prefer_fallback("")

    async def run(self, up: Callable[[], None]) -> None:
        """Keep CoreDNS running until cancelled; a spent restart budget is reported and raises nothing."""
        watch = asyncio.create_task(self._watch(), name="dns health")
        try:
            try:
                await self._supervise(up)
            except KumadpError as error:
                await self.use_fallback()
                self._on_give_up(str(error), self._uses_fallback)
                if self._uses_fallback:
                    up()
            await asyncio.Event().wait()
        finally:
            watch.cancel()
            async with self._opening:
                if self._fallback is not None and self._is_fallback_open:
                    self._is_fallback_open = self._uses_fallback = False
                    await self._fallback.close()

    async def _supervise(self, up: Callable[[], None]) -> None:
        """Keep CoreDNS running until it is to be retired; raises KumadpError if it is given up."""
        supervising = asyncio.ensure_future(self.supervisor.run(up))
        retired = asyncio.ensure_future(self._retired.wait())
        try:
            await asyncio.wait({supervising, retired}, return_when=asyncio.FIRST_COMPLETED)
            if supervising.done():
                supervising.result()
        finally:
            retired.cancel()
            supervising.cancel()
            await asyncio.wait({supervising})
        # Its sockets are closed: those of the fallback are the first ones now.
        if self._fallback is not None and self._is_fallback_open:
            self._fallback.port_sharing.coredns_ended()
        await self.use_fallback()
        up()

    def retire(self) -> None:
        """Have the fallback answer from now on, and stop CoreDNS, which is not started again in this run."""
        if self.supervisor.report.state is ChildState.RUNNING:
            self._prefer_fallback("CoreDNS is not used with this control plane")
        self._retired.set()

    def reload(self) -> bool:
        """Have CoreDNS read its Corefile and resolv.conf again (SIGUSR1); False if it does not run yet."""
        child = self.supervisor.child
        # SIGUSR1 would end a CoreDNS that has not set up its signal handlers.
        runs = self.supervisor.report.state is ChildState.RUNNING
        return runs and child is not None and child.send_signal(signal.SIGUSR1)

    def _note(self, report: ChildReport) -> None:
        if report.state is ChildState.EXITED and self._fallback is not None and self._is_fallback_open:
            self._fallback.port_sharing.coredns_ended()
            self._prefer_fallback("CoreDNS has ended")
        self._on_report(report)

    async def _open_fallback(self, coredns: Collection[str], also: Collection[str] = ()) -> None:
        """Open the fallback on all addresses that it needs; if that fails, log it and continue without."""
        async with self._opening:
            if self._fallback is None:
                return
            try:
                await self._fallback.open(coredns, also)
            except (OSError, KumadpError) as error:
                log.warning("the embedded resolver cannot answer in CoreDNS's place: %s", error)
                return
            self._is_fallback_open = True

    def _prefer_fallback(self, reason: str) -> None:
        if self._fallback is not None and self._is_fallback_open and not self._uses_fallback:
            self._uses_fallback = True
            self._fallback.port_sharing.prefer_fallback()
            if reason:
                log.info("the embedded resolver answers in CoreDNS's place: %s", reason)

    def _prefer_coredns(self) -> None:
        if self._fallback is not None and self._is_fallback_open:
            self._fallback.port_sharing.prefer_coredns()
        self._uses_fallback = False

    def _on_output(self, line: str) -> None:
        # It stops reading queries then, but keeps its sockets for seconds.
        if _ENDING.search(line):
            self._prefer_fallback("it shuts down")

    async def _bring_up(self, child: Child) -> None:
        child.watch_output(self._on_output)
        while True:
            # Before CoreDNS has bound the port, the fallback would answer our health check.
            bound = await _poll(lambda: asyncio.to_thread(hosts_by_both, child.pid, self._port))
            await _poll(self._answers)
            # On addresses that CoreDNS has bound alone, the fallback opens sockets only now.
            await self._open_fallback(bound)
            self._prefer_coredns()
            if await self._answers():
                break
            self._prefer_fallback("it does not answer any more")
        self._has_answered = True
        self._on_warning("")

    async def _answers(self) -> bool:
        try:
            return not await self._missing()
        except OSError:
            return False

    async def _missing(self) -> str:
        return await missing_transports(self._port, self._health_name(), deadline=_ANSWER_WITHIN)

    async def _watch(self) -> None:
        """Check CoreDNS periodically; one that runs but does not answer is killed, and restarted by the supervisor."""
        failures = 0
        while True:
            await asyncio.sleep(_RETRY_AFTER if failures else self._check_every)
            child = self.supervisor.child
            if self.supervisor.report.state is not ChildState.RUNNING or child is None or child.ended:
                failures = 0
                continue
            try:
                missing = await self._missing()
            except OSError:
                # No query was sent: CoreDNS may well answer.
                continue
            if not missing or child is not self.supervisor.child or child.ended:
                failures = 0
                self._on_warning("")
                continue
            failures += 1
            if failures == _FAILURES:
                failures = 0
                self._on_warning(f"CoreDNS (pid {child.pid}) runs but does not answer by {missing}; killing it")
                self._prefer_fallback("it does not answer")
                child.kill_with_reason(f"it hung: no answer by {missing}")

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        if self._has_answered or status.code in {None, 0}:
            return None
        error = next((line for line in lines if "Corefile:" in line or "Error during parsing" in line), None)
        return f"its Corefile cannot be loaded: {error}" if error else None


async def _poll(check: Callable[[], Awaitable[T]]) -> T:
    """Return the first true result of ``check``. The kernel does not report ports that another process binds."""
    pause = 0.02
    while not (result := await check()):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return result
