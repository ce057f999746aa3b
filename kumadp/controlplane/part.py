"""The control plane in a run: the bootstrap request, the last good bootstrap while it is unreachable, the watch."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kumadp.bootstrap.generation import generation_of
from kumadp.bootstrap.prepare import Target, prepare_fetched
from kumadp.controlplane.bootstrap_client import KumaClient
from kumadp.controlplane.bootstrap_condition import BootstrapCondition
from kumadp.controlplane.source_file import Source, read_source, write_source
from kumadp.controlplane.token_expiry import TokenWatch
from kumadp.core.events import Requested
from kumadp.core.part import Handed, Part
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable, KumadpError, host_error
from kumadp.host.work_dir import BOOTSTRAP_FILE, bootstrap_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ssl import SSLContext

    import msgspec

    from kumadp.bootstrap.prepare import Fetched, Prepared
    from kumadp.controlplane.bootstrap_client import Sidecar, Versions
    from kumadp.controlplane.bootstrap_watch import BootstrapWatch
    from kumadp.controlplane.configuration_relay import ConfigurationRelay
    from kumadp.core.context import Context
    from kumadp.core.previous import Previous
    from kumadp.host.net.ports import BindAddress
    from kumadp.resources.resource import Resource

log = logging.getLogger("kumadp.controlplane")

# How long the control plane is waited for before the last good configuration serves (seconds): traffic within 5.
WARM_AFTER = 2.0
# How long other parts wait for the bootstrap request to be sent (seconds): each of them has something to import first.
SENT_WITHIN = 0.1
# How long a query for the bootstrap may take (seconds) while a stream waits for it.
QUERY_WITHIN = 10.0
# How long a reload waits for a control plane that may be unreachable (seconds): then Envoy gets the bootstrap it has.
RELOAD_WITHIN = 5.0
# Settings of the connection: they hold for the Envoy that runs too if a reload fails.
_OF_CONNECTION = ("cp_address", "ca_cert_file", "ca_cert", "skip_verify", "retry_backoff", "token", "token_path")


class ControlPlanePart(Part):
    """Requests the bootstrap, which `kumadp.controlplane.bootstrap_part` waits for.

    ``versions`` and ``sidecar`` are what the request reports, ``taken`` the addresses that no admin may have; they are
    called when it starts.
    """

    name = "control plane"
    client: KumaClient

    def __init__(
        self,
        context: Context,
        versions: Callable[[], Versions],
        sidecar: Callable[[], Sidecar],
        taken: Callable[[], Sequence[BindAddress]],
    ) -> None:
        self._context = context
        self._versions = versions
        self._sidecar = sidecar
        self._taken = taken
        self._relay: ConfigurationRelay | None = None
        self._handed: Fetched | None = None
        self._last_good: Fetched | None = None
        self._unreachable = asyncio.Event()
        self._condition = BootstrapCondition(context.status)
        self._started_early = False
        self._sent = asyncio.Event()
        self._awaited: asyncio.Task[Fetched] | None = None
        self._first_request: asyncio.Task[Fetched] | None = None
        self._newer: Fetched | None = None
        self._renewed_client: KumaClient | None = None
        self._watch: BootstrapWatch | None = None
        self._files = 0

    def connect(self, relay: ConfigurationRelay) -> None:
        """Have Envoy's xDS go through this relay."""
        self._relay = relay

    # What the relay's connection needs

    @property
    def urls(self) -> Sequence[str]:
        """The addresses of the control plane that the settings name."""
        return self._context.settings.cp_addresses

    @property
    def pending(self) -> bool:
        """Whether Envoy has a bootstrap that is not the control plane's of this run, which has sent none yet."""
        return self._started_early and not self.client.counted["answered"]

    async def query_bootstrap(self, *, renewed: bool) -> Fetched | None:
        """Request the bootstrap, once of each address; None if there is none, with the reason in the status.

        ``renewed``: that of the Envoy that a reload starts.
        """
        client = self._renewed_client if renewed and self._renewed_client is not None else self.client
        try:
            async with asyncio.timeout(QUERY_WITHIN):
                fetched = await client.fetch(self._condition.log_failure, None, once=True)
        except (KumadpError, OSError, TimeoutError) as error:
            self._condition.note_rejection(_as_kumadp_error(error))
            return None
        self._condition.note_answer()
        return fetched

    def token(self) -> str:
        """Return the data plane token, empty without one. May block. Raises ControlPlaneRefused."""
        return self.client.token()

    def tls(self, ca_inline: bytes | None) -> SSLContext:
        """Return the context by the CA as it is now, else by the bootstrap's. May block. Raises ControlPlaneRefused."""
        from kumadp.controlplane.trust import Trust, make_context

        trust = self.client.trust()
        if not trust.ca and ca_inline is not None:
            trust = Trust(ca_inline.decode("utf-8", "surrogateescape"), verify=trust.verify)
        return make_context(trust)

    def advise(self, text: str) -> str:
        """Return what to change after the control plane refused the stream with this text; empty if not known."""
        return self.client.advise(0, text)

    # The start

    @classmethod
    def section_type(cls) -> type[msgspec.Struct]:
        """Return the type of its section of a handover."""
        return Source

    def adopt(self, previous: Previous) -> None:
        """Take the bootstrap that was handed over, or that a killed kumadp kept for the Envoy that it left."""
        section = previous.section(self.name, Source)
        if section is not None:
            self._handed = section.fetched()
        elif previous.children and not previous.reexecuted:
            self._handed = read_source(self._context.work.path)

    async def start(self) -> None:
        """Request the bootstrap; returns when the request is sent, or soon: the rest starts while it is answered."""
        context, settings = self._context, self._context.settings
        versions = self._versions()
        tokens, loop = TokenWatch(context.status, lambda: self.client.read_token()), asyncio.get_running_loop()
        self.client = KumaClient(
            settings,
            context.resource,
            context.work,
            versions,
            self._sidecar(),
            lambda token: loop.call_soon_threadsafe(tokens.note, token),
        )
        self.client.on_answer(self._note_generation)
        self.client.on_connected = self._on_connected
        context.status.counters["bootstrap"] = self.client.counted
        if settings.xds_transport_variant == "DELTA_GRPC":
            log.info("DELTA_GRPC is not announced: kumadp chooses what the control plane speaks")
        if self._handed is None:
            context.status.set_not_ready("bootstrap", f"requesting it from {settings.cp_address}")
            self._awaited = self._request()
            await _wait(self._awaited, self._sent, SENT_WITHIN)

    async def get_bootstrap(self) -> None:
        """Have every part use the bootstrap; it is waited for as long as it takes.

        From the last good one on disk if the control plane does not answer; the request then goes on.
        """
        relay, envoy = self._relay, self.client.versions.envoy
        self._last_good = await relay.load(envoy) if relay is not None else None
        await self._context.use_bootstrap(await self._first())

    async def _first(self) -> Prepared:
        if self._awaited is None:
            assert self._handed is not None  # noqa: S101 - else `start` has requested it
            self._note_generation(self._handed)
            self._started_early = True
            self._first_request = self._request()
            return await self._prepare(self._handed, self.client)
        fetched = await self._fetched_or_last_good(self._awaited)
        self._awaited = None
        self._context.status.set_not_ready("bootstrap", "")
        return await self._prepare(fetched, self.client)

    def _on_connected(self) -> None:
        self._sent.set()
        if self._relay is not None:
            self._relay.preload()

    def _request(self) -> asyncio.Task[Fetched]:
        request = asyncio.create_task(
            self.client.fetch(self._on_failure, self._context.settings.retry_max_duration), name="bootstrap request"
        )
        # A start that fails for another reason leaves nobody to look at how it ended.
        request.add_done_callback(lambda task: task.cancelled() or task.exception())
        return request

    async def _fetched_or_last_good(self, request: asyncio.Task[Fetched]) -> Fetched:
        if self._last_good is None:
            return await request
        await _wait(request, self._unreachable, WARM_AFTER)
        error = request.exception() if request.done() else None
        if request.done() and not (_leaves_last_good(error) and await self._is_of_this_dataplane(error)):
            return request.result()
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._last_good.at))
        reason = "rejects the request" if isinstance(error, ControlPlaneRefused) else "is unreachable"
        log.warning("the control plane %s: starting with the last good configuration, of %s", reason, since)
        self._context.status.facts["stale_since"] = self._last_good.at
        self._context.status.set_warning("configuration", f"stale since {since}")
        self._started_early = True
        self._first_request = request
        self._note_generation(self._last_good)
        return self._last_good

    async def _is_of_this_dataplane(self, error: BaseException | None) -> bool:
        """Return whether the control plane rejects what it took before; the user who edited it is to know at once."""
        if not isinstance(error, ControlPlaneRefused) or self._last_good is None or not self._last_good.dataplane:
            return True
        from kumadp.resources.wire import digest

        return self._last_good.dataplane == await asyncio.to_thread(digest, self._context.resource)

    def _note_generation(self, fetched: Fetched) -> None:
        self._context.note_generation(generation_of(fetched.tree))

    def _on_failure(self, error: ControlPlaneUnavailable) -> None:
        address = self._context.settings.cp_address
        if self._started_early and error.hint:
            self._condition.note_failure(error)
            return
        log.warning("no bootstrap from %s: %s", address, error)
        if not self._started_early:
            self._context.status.set_not_ready("bootstrap", f"control plane {address}: {error}")
        self._unreachable.set()

    async def _prepare(self, fetched: Fetched, client: KumaClient, file: str = BOOTSTRAP_FILE) -> Prepared:
        """Write a bootstrap that passed the guard, rewritten for the relay; raises KumadpError."""
        context, resource = self._context, client.resource
        relay = self._relay.path if self._relay is not None else None
        if relay is None and fetched is self._handed:
            fetched = await self._with_token(fetched)
        admin = resource.spec.networking.admin if resource is not None else None
        return await prepare_fetched(
            fetched,
            context.settings,
            Target(context.work, self._taken()),
            relay=relay,
            admin_port=admin.port if admin is not None else 0,
            file=file,
        )

    async def _with_token(self, fetched: Fetched) -> Fetched:
        """A bootstrap that was handed over has no token, but an Envoy that connects by itself needs one."""
        from kumadp.bootstrap.secrets import with_token

        try:
            return replace(fetched, tree=with_token(fetched.tree, await asyncio.to_thread(self.client.token)))
        except (ControlPlaneRefused, OSError) as error:
            log.warning("the bootstrap is without a token: %s", error)
            return fetched

    async def on_bootstrap(self, prepared: Prepared) -> None:
        """Keep the bootstrap for a kumadp that follows this one."""
        if self._context.keeps_children and prepared.fetched is not None:
            await asyncio.to_thread(write_source, self._context.work.path, prepared.fetched)

    def hand_over(self) -> Handed | None:
        """Return the bootstrap without its token."""
        fetched = self._context.bootstrap.fetched
        return Handed(Source.of(fetched)) if fetched is not None else None

    async def close(self) -> None:
        """End the first request."""
        for request in (self.take_first_request(), self._awaited):
            if request is not None:
                request.cancel()

    # Changes of the bootstrap

    async def started(self) -> None:
        """Check from now on whether the bootstrap has changed."""
        from kumadp.controlplane.bootstrap_watch import BootstrapWatch

        self._watch = BootstrapWatch(self._context, self._condition, self)
        self._context.stack.start(self._watch)

    def on_stream_opened(self) -> None:
        """Check now: the control plane is reachable."""
        if self._watch is not None:
            self._watch.wake()

    def take_first_request(self) -> asyncio.Task[Fetched] | None:
        """Return the request for the bootstrap that goes on while Envoy runs with an earlier one; None after that."""
        request, self._first_request = self._first_request, None
        return request

    async def fetch(self, within: float | None) -> Fetched:
        """Request the bootstrap for so many seconds, None: until there is an answer. Raises KumadpError."""
        return await self.client.fetch(self._condition.note_failure, within)

    def on_changed(self, fetched: Fetched, reasons: tuple[str, ...], *, first: bool) -> None:
        """Handle a bootstrap that takes a restart; ``first``: it is the first answer in this run."""
        context = self._context
        if not first and context.settings.on_bootstrap_change == "report":
            text = "it has changed, a restart is required: " + "; ".join(reasons)
            self._condition.note_change(text)
            return
        self._newer = fetched
        context.post(Requested("reload", "the bootstrap has changed"))

    async def on_confirmed(self) -> None:
        """Handle that the control plane stands by what Envoy runs with."""
        status = self._context.status
        if status.facts.pop("stale_since", None) is not None:
            log.info("the control plane is reachable again: the configuration is its present one")
        status.set_warning("configuration", "")
        if self._relay is not None:
            await self._relay.confirm()

    # A reload

    def check_resource(self, resource: Resource | None) -> None:
        """Raise KumadpError if this Dataplane is another one than the present."""
        present = self.client.resource
        if resource is None or present is None:
            return
        if (resource.mesh, resource.name) != (present.mesh, present.name):
            raise KumadpError("the Dataplane has another mesh or name: restart kumadp for it")

    async def renew(self, resource: Resource | None, versions: Versions, notes: list[str]) -> Prepared:
        """Return the bootstrap as the control plane makes it now, in a file of its own; raises KumadpError.

        Settings are the context's. If the control plane does not answer, it is the present one, with a note.
        """
        present, settings = self.client, self._context.settings
        self._renewed_client = client = present.with_facts(settings, resource or present.resource, versions)
        present.settings = replace(present.settings, **{name: getattr(settings, name) for name in _OF_CONNECTION})
        newer, self._newer = self._newer, None
        self._files += 1
        return await self._prepare(newer or await self._fetch(client, notes), client, bootstrap_file(self._files))

    def go_back(self) -> None:
        """Continue to report what runs: the reload failed."""
        self._renewed_client = None

    async def _fetch(self, client: KumaClient, notes: list[str]) -> Fetched:
        reasons: list[ControlPlaneUnavailable] = []
        try:
            async with asyncio.timeout(RELOAD_WITHIN):
                return await client.fetch(reasons.append, RELOAD_WITHIN)
        except (TimeoutError, ControlPlaneUnavailable):
            pass
        present = self._context.bootstrap.fetched
        assert present is not None  # noqa: S101 - a control plane's always has one
        why = f": {reasons[-1]}" if reasons else ""
        notes.append(f"with the present bootstrap, as the control plane gave none{why}")
        return present

    async def renewed(self) -> None:
        """Note that Envoy runs with the bootstrap of `renew`."""
        if self._renewed_client is not None:
            self.client, self._renewed_client = self._renewed_client, None
        if self._watch is not None:
            self._watch.restart_interval()
        self._context.status.facts.pop("restart_required", None)
        self._condition.note_change("")
        await self.on_confirmed()


async def _wait(request: asyncio.Task[Fetched], event: asyncio.Event, within: float) -> None:
    """Return once the request has ended or the event is set, after ``within`` seconds at the latest."""
    happened = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({request, happened}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happened.cancel()


def _leaves_last_good(error: BaseException | None) -> bool:
    """Return whether what served before may serve after a request that ended so."""
    # The time limit of the request can end together with its first failure.
    return isinstance(error, ControlPlaneUnavailable) or (isinstance(error, ControlPlaneRefused) and error.content)


def _as_kumadp_error(error: Exception) -> KumadpError:
    if isinstance(error, KumadpError):
        return error
    reason = host_error(error) if isinstance(error, OSError) else ""
    return ControlPlaneUnavailable(reason or str(error) or "nothing answers in time")
