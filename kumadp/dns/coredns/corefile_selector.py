"""Selects the Corefile for CoreDNS: the user's, the control plane's, or the built-in one that fits the binary."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.addresses import ANY_IPV6
from kumadp.dns.coredns.corefile import ForwardMethod, built_in, upstreams
from kumadp.dns.coredns.corefile_check import check_corefile, identity_of_binary
from kumadp.dns.coredns.template import render
from kumadp.dns.resolvconf import is_own, read
from kumadp.errors import KumadpError, Problem, SettingsError, SpawnError
from kumadp.host.net.interfaces import local_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.dns.coredns.corefile import CorefileFacts
    from kumadp.dns.coredns.corefile_check import BinaryIdentity, CorefileRejection
    from kumadp.dns.resolvconf import ResolvConf

log = logging.getLogger("kumadp.dns")

TEMPLATE_OPTION = "--dns-coredns-config-template-path"
CONTROL_PLANE_TEMPLATE = "the control plane's corefileTemplate"
_SAMPLE_SERVERS = ("127.0.0.1",)


class CoreDnsUnfit(KumadpError):
    """This CoreDNS supports no built-in Corefile, and there is no template for it."""


class Corefile(Struct, frozen=True):
    """A Corefile that the binary loads; ``origin`` describes where it comes from."""

    text: str
    origin: str


class CorefileOptions(Struct, frozen=True, kw_only=True):
    """What a Corefile is made from.

    ``folder`` is where CoreDNS reads it, ``environment`` the one that CoreDNS has. ``user_template`` is the path of the
    user's template, empty if there is none. With a built-in Corefile CoreDNS listens on ``addresses``, on all if empty.
    """

    facts: CorefileFacts
    folder: Path
    environment: Mapping[str, str]
    resolv_conf: Path
    user_template: str
    suffixes: tuple[str, ...]
    addresses: tuple[str, ...] = ()


class CorefileSelector:
    """Selects the Corefile from the present templates and resolv.conf; results of `check_corefile` are cached.

    ``control_plane_template`` is the control plane's, None or empty if it sent none. ``on_warning`` is called with all
    problems of the templates in one line, empty if there are none.
    """

    def __init__(
        self,
        binary: Path,
        options: CorefileOptions,
        control_plane_template: str | None,
        on_warning: Callable[[str], None],
    ) -> None:
        self._binary = binary
        self._options = options
        self.control_plane_template = control_plane_template
        self._on_warning = on_warning
        self._checked: dict[tuple[BinaryIdentity, str], CorefileRejection | None] = {}
        self._last_good: Corefile | None = None
        self._logged_notes: tuple[str, ...] = ()

    async def select(self) -> Corefile:
        """Return the Corefile for now.

        If a template cannot be used, ``on_warning`` is called and the last usable template, or the built-in Corefile,
        takes its place.

        Raises CoreDnsUnfit if there is no Corefile for this binary, and SpawnError if CoreDNS cannot be run.
        """
        try:
            return await self._select()
        except OSError as error:
            raise SpawnError(f"{self._binary} cannot be run: {error.strerror}") from error

    async def check_user_template(self) -> None:
        """Raise SettingsError if the user's template cannot be used: at a start nothing takes its place.

        Raises SpawnError if CoreDNS cannot be run.
        """
        path = self._options.user_template
        if not path:
            return
        problems: list[str] = []
        try:
            template = await asyncio.to_thread(_read_text, path)
            corefile = await self._from_template(template, path, problems)
        except OSError as error:
            raise SpawnError(f"{self._binary} cannot be run: {error.strerror}") from error
        if corefile is None:
            raise SettingsError([Problem(TEMPLATE_OPTION, text) for text in problems])

    async def _select(self) -> Corefile:
        problems: list[str] = []
        for source, template in await self._templates(problems):
            corefile = await self._from_template(template, source, problems)
            if corefile is not None:
                self._last_good = corefile
                self._on_warning(f"{'; '.join(problems)}; using {source}" if problems else "")
                return corefile
        corefile = self._last_good if problems and self._last_good is not None else await self._built_in()
        self._on_warning(f"{'; '.join(problems)}; using {corefile.origin}" if problems else "")
        return corefile

    async def _templates(self, problems: list[str]) -> list[tuple[str, str]]:
        """Return source and text of each template, that of the user first."""
        templates = []
        path = self._options.user_template
        if path:
            try:
                templates.append((path, await asyncio.to_thread(_read_text, path)))
            except SettingsError as error:
                problems.append(str(error))
        if self.control_plane_template:
            templates.append((CONTROL_PLANE_TEMPLATE, self.control_plane_template))
        return templates

    async def _from_template(self, template: str, source: str, problems: list[str]) -> Corefile | None:
        try:
            rendered = render(template, self._options.facts.variables(), source)
        except SettingsError as error:
            problems.extend(str(problem) for problem in error.problems)
            return None
        if not rendered.text.strip():
            problems.append(f"{source}: Corefile template: the result is empty (CoreDNS would answer on port 53)")
            return None
        rejection = await self._check(rendered.text)
        if rejection is None:
            return Corefile(rendered.text, source)
        line = rendered.line_in_template(rejection.line) if rejection.line else 0
        message = f"rejected by CoreDNS: {rejection.message}"
        problems.append(str(Problem("Corefile template", message, "", source, line)))
        return None

    async def _built_in(self) -> Corefile:
        options = self._options
        method = await self._forward_method()
        conf = await asyncio.to_thread(read, options.resolv_conf)
        local = await asyncio.to_thread(local_addresses)
        self._log_notes(conf)
        own = [(host, options.facts.port) for host in options.addresses or (ANY_IPV6,)]
        others = tuple(server for server in conf.servers if not is_own(server, own, local))
        servers = upstreams(dataclasses.replace(conf, servers=others))
        corefile = built_in(options.facts, method, servers, options.suffixes, options.addresses)
        return Corefile(corefile, f"the built-in Corefile ({method.value})")

    def _log_notes(self, conf: ResolvConf) -> None:
        """Log the ignored lines and options of resolv.conf, once."""
        notes = conf.notes
        if conf.options:
            notes = (*notes, f"CoreDNS does not apply the options {', '.join(conf.options)}")
        if notes != self._logged_notes:
            self._logged_notes = notes
            for note in notes:
                log.warning("%s: %s", self._options.resolv_conf, note)

    async def _forward_method(self) -> ForwardMethod:
        """Return the best method that this binary supports, by a check of each; raises CoreDnsUnfit."""
        options = self._options
        reasons = []
        for method in ForwardMethod:
            text = built_in(options.facts, method, _SAMPLE_SERVERS, options.suffixes, options.addresses)
            rejection = await self._check(text)
            if rejection is None:
                return method
            reasons.append(f"without {method.value}: {rejection.message}")
        raise CoreDnsUnfit(
            f"{self._binary} cannot forward names that Envoy does not know to the resolvers ({'; '.join(reasons)})",
            "CoreDNS 1.11.4 and later can",
        )

    async def _check(self, text: str) -> CorefileRejection | None:
        identity = await asyncio.to_thread(identity_of_binary, self._binary)
        key = (identity, text)
        if key not in self._checked:
            options = self._options
            self._checked[key] = await check_corefile(self._binary, text, options.folder, options.environment)
        return self._checked[key]


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise SettingsError([Problem(TEMPLATE_OPTION, f"{path}: {reason}")]) from None
