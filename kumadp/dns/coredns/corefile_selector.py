"""Which Corefile CoreDNS gets: the user's, the control plane's, or the built-in one that fits the binary."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV6
from kumadp.dns.coredns.corefile import Way, built_in, upstreams
from kumadp.dns.coredns.corefile_check import check_corefile, identity_of_binary
from kumadp.dns.coredns.template import render
from kumadp.dns.resolvconf import is_own, read
from kumadp.errors import KumadpError, Problem, SettingsError, SpawnError
from kumadp.host.net.ports import local_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.dns.coredns.corefile import CorefileFacts
    from kumadp.dns.coredns.corefile_check import BinaryIdentity, CorefileRejection
    from kumadp.dns.resolvconf import ResolvConf

log = logging.getLogger("kumadp.dns")

OWN = "--dns-coredns-config-template-path"
TOLD = "the control plane's corefileTemplate"
_SAMPLE = ("127.0.0.1",)


class CoreDnsUnfit(KumadpError):
    """This CoreDNS can neither go on to the resolvers nor is there a Corefile for it."""


@dataclass(frozen=True, slots=True)
class Corefile:
    """A Corefile that the binary loads; ``origin`` says in words where it is from."""

    text: str
    origin: str


class CorefileSelector:
    """Finds the Corefile, each time anew; what a binary said to a Corefile is remembered for the run.

    ``own`` is the path of the user's template, empty without one, and ``told`` the control plane's. With the built-in
    one CoreDNS listens on ``addresses``. ``worry`` hears what is wrong with templates, in one line, empty once nothing
    is.
    """

    def __init__(
        self,
        binary: Path,
        facts: CorefileFacts,
        folder: Path,
        environment: Mapping[str, str],
        *,
        own: str,
        told: str | None,
        resolv_conf: Path,
        suffixes: tuple[str, ...],
        addresses: tuple[str, ...] = (),
        worry: Callable[[str], None],
    ) -> None:
        self._binary = binary
        self._facts = facts
        self._folder = folder
        self._environment = environment
        self._own = own
        self.told = told
        self._resolv_conf = resolv_conf
        self._suffixes = suffixes
        self._addresses = addresses
        self._worry = worry
        self._tried: dict[tuple[BinaryIdentity, str], CorefileRejection | None] = {}
        self._kept: Corefile | None = None
        self._noted: tuple[str, ...] = ()

    async def find(self) -> Corefile:
        """The Corefile for now; raises CoreDnsUnfit where there is none, SpawnError where CoreDNS cannot be run.

        A template that cannot be used is told to ``worry``, and the last one that could be is kept, or the built-in one
        takes its place.
        """
        try:
            return await self._find()
        except OSError as error:
            raise SpawnError(f"{self._binary} cannot be run: {error.strerror}") from error

    async def check_own(self) -> None:
        """Raise SettingsError where the user's template cannot be used: at a start nothing takes its place.

        Raises SpawnError where CoreDNS cannot be run.
        """
        if not self._own:
            return
        wrong: list[str] = []
        try:
            template = await asyncio.to_thread(_read_text, self._own)
            used = await self._from_template(template, self._own, wrong)
        except OSError as error:
            raise SpawnError(f"{self._binary} cannot be run: {error.strerror}") from error
        if used is None:
            raise SettingsError([Problem(OWN, text) for text in wrong])

    async def _find(self) -> Corefile:
        wrong: list[str] = []
        for source, template in await self._templates(wrong):
            found = await self._from_template(template, source, wrong)
            if found is not None:
                self._kept = found
                self._worry(f"{'; '.join(wrong)}; going on with {source}" if wrong else "")
                return found
        used = self._kept if wrong and self._kept is not None else await self._built_in()
        self._worry(f"{'; '.join(wrong)}; going on with {used.origin}" if wrong else "")
        return used

    async def _templates(self, wrong: list[str]) -> list[tuple[str, str]]:
        found = []
        if self._own:
            try:
                found.append((self._own, await asyncio.to_thread(_read_text, self._own)))
            except SettingsError as error:
                wrong.append(str(error))
        if self.told:
            found.append((TOLD, self.told))
        return found

    async def _from_template(self, template: str, source: str, wrong: list[str]) -> Corefile | None:
        try:
            rendered = render(template, self._facts.variables(), source)
        except SettingsError as error:
            wrong.extend(str(problem) for problem in error.problems)
            return None
        if not rendered.text.strip():
            wrong.append(f"{source}: Corefile template: nothing is left of it (CoreDNS would answer on port 53)")
            return None
        refusal = await self._try(rendered.text)
        if refusal is None:
            return Corefile(rendered.text, source)
        line = rendered.line_in_template(refusal.line) if refusal.line else 0
        wrong.append(str(Problem("Corefile template", f"CoreDNS says: {refusal.message}", "", source, line)))
        return None

    async def _built_in(self) -> Corefile:
        way = await self._way()
        conf = await asyncio.to_thread(read, self._resolv_conf)
        local = await asyncio.to_thread(local_addresses)
        self._note(conf)
        own = [(host, self._facts.port) for host in self._addresses or (ANY_IPV6,)]
        others = tuple(server for server in conf.servers if not is_own(server, own, local))
        servers = upstreams(dataclasses.replace(conf, servers=others))
        corefile = built_in(self._facts, way, servers, self._suffixes, self._addresses)
        return Corefile(corefile, f"the built-in Corefile ({way.value})")

    def _note(self, conf: ResolvConf) -> None:
        """Log what is passed over in resolv.conf, once."""
        notes = conf.notes
        if conf.options:
            notes = (*notes, f"CoreDNS does not apply the options {', '.join(conf.options)}")
        if notes != self._noted:
            self._noted = notes
            for note in notes:
                log.warning("%s: %s", self._resolv_conf, note)

    async def _way(self) -> Way:
        """What this build can do, found out with a Corefile of each kind; raises CoreDnsUnfit."""
        refusals = []
        for way in Way:
            refusal = await self._try(built_in(self._facts, way, _SAMPLE, self._suffixes, self._addresses))
            if refusal is None:
                return way
            refusals.append(f"without {way.value}: {refusal.message}")
        raise CoreDnsUnfit(
            f"{self._binary} cannot go on to the resolvers where Envoy knows nothing ({'; '.join(refusals)})",
            "CoreDNS 1.11.4 and later can",
        )

    async def _try(self, text: str) -> CorefileRejection | None:
        identity = await asyncio.to_thread(identity_of_binary, self._binary)
        key = (identity, text)
        if key not in self._tried:
            self._tried[key] = await check_corefile(self._binary, text, self._folder, self._environment)
        return self._tried[key]


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise SettingsError([Problem(OWN, f"{path}: {reason}")]) from None
