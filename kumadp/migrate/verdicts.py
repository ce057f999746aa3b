"""What becomes of each option of a kuma-dp, with the value that kumadp's settings file gets. Pure, but for lookups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from kumadp.errors import on_one_line
from kumadp.host.programs import find_program
from kumadp.host.systemd_units import is_hidden
from kumadp.migrate.source import effective, flags_of, variables_of
from kumadp.settings.display import MASK, show
from kumadp.settings.model import secret_variables
from kumadp.settings.values import BadValue, parse_assignments, read_value, split_addresses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kumadp.migrate.source import GivenOption, KumaDp
    from kumadp.settings.option import Option

Verdict = Literal["understood", "mapped", "ignored", "in the way"]
# What systemd gives to services (systemd.exec(5), PATH).
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
_DIRECTORIES = frozenset({"work_dir", "socket_dir", "dns_config_dir"})
_PROGRAMS = {"binary_path": "envoy", "coredns_path": "coredns"}
# Whole documents: they have line ends.
_DOCUMENTS = frozenset({"dataplane", "ca_cert"})
_WITHOUT_EFFECT = frozenset({"xds_transport_variant"})
# Variables of kuma-dp 2.8 to 2.14 that it does not use itself.
UNUSED = frozenset({"KUMA_CONTROL_PLANE_API_SERVER_URL", "KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION"})
_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy", "all_proxy"})
_PASSED_ON = ("OTEL_", "SSL_CERT_")
# The first that verifies the control plane without a CA, by those of the system, and has --skip-verify.
_VERIFIES_SINCE = (2, 14)


class OptionVerdict(Struct, frozen=True):
    """One option as it was given (``source``), with its value as it may be shown."""

    name: str
    source: Literal["flag", "variable", "default"]
    value: str
    verdict: Verdict
    text: str


class Judged(Struct):
    """All verdicts; ``values`` by field for the settings file, ``environ`` for the unit, and the token if it is inline.

    Values and environment may have secrets in them (`secrets`), which are never shown.
    """

    options: list[OptionVerdict]
    values: dict[str, object]
    environ: dict[str, str]
    token: str = ""

    def secrets(self) -> list[str]:
        """Return every secret in it."""
        addresses = split_addresses(str(self.values.get("cp_address", "")))
        headers = [text for name, text in self.environ.items() if name in secret_variables()]
        return [secret for secret in (self.token, *map(_password, addresses), *headers) if secret]


def judge(source: KumaDp, token_file: Path) -> Judged:
    """Judge every option of ``source``; ``token_file`` is where an inline token will be."""
    return _Judge(source, token_file).judge()


class _Judge:
    def __init__(self, source: KumaDp, token_file: Path) -> None:
        self._source = source
        self._token_file = token_file
        self._result = Judged([], {}, {})

    def judge(self) -> Judged:
        flags, variables = flags_of(self._source.arguments), variables_of(self._source.environ)
        chosen = effective(flags, variables)
        for given in (*flags, *variables):
            if given.option is None:
                self._unknown(given)
            elif given not in chosen[given.option.field]:
                used = chosen[given.option.field][0].name
                self._add(given, "ignored", f"kuma-dp uses {used}, and so does the settings file")
            else:
                self._known(given, given.option, chosen[given.option.field])
        self._others()
        self._programs()
        self._trust()
        return self._result

    def _add(self, given: GivenOption, verdict: Verdict, text: str, shown: str | None = None) -> None:
        value = _shown(given) if shown is None else shown
        self._result.options.append(OptionVerdict(on_one_line(given.name), given.source, value, verdict, text))

    def _unknown(self, given: GivenOption) -> None:
        if given.source == "flag":
            if given.name not in {"--help", "-h"}:
                text = "no option of kuma-dp 2.8 to 2.14, nor of kumadp: find out what it does"
                self._add(given, "in the way", text, MASK)
        elif given.name in UNUSED:
            self._add(given, "ignored", "kuma-dp reads it, and does not use it")
        else:
            self._add(given, "ignored", "neither kuma-dp 2.8 to 2.14 nor kumadp reads it", MASK)

    def _known(self, given: GivenOption, option: Option, several: list[GivenOption]) -> None:
        if not option.effective or option.field in _WITHOUT_EFFECT:
            return self._add(given, "ignored", "kumadp accepts it, without effect")
        if option.field == "token":
            self._result.token = given.text or ""
            self._result.values["token_path"] = str(self._token_file)
            return self._add(given, "mapped", f"a file: dataplaneRuntime.tokenPath is {self._token_file}")
        if option.field in _DIRECTORIES and not self._source.service:
            return self._add(given, "mapped", "the unit has its own private directory, in /run/kumadp")
        if not (given.text or "").isprintable() and option.field not in _DOCUMENTS:
            return self._add(given, "in the way", "it has a control character in it", MASK)
        try:
            value = _value(option, several)
        except BadValue as error:
            return self._add(given, "in the way", f"kuma-dp would not start with it: it {error}")
        if option.metavar == "PATH":
            return self._path(given, option, value)
        self._result.values[option.field] = value
        return self._add(given, "understood", option.key)

    def _path(self, given: GivenOption, option: Option, value: object) -> None:
        names = value if isinstance(value, tuple) else (value,)
        if "-" in names:
            return self._add(given, "in the way", "it reads standard input, which a unit has not: write it to a file")
        if option.field in _PROGRAMS and "/" not in str(value):
            found = self._find(str(value))
            self._result.values[option.field] = found or value
            where = f"found at {found}" if found else "not found on PATH of kuma-dp"
            return self._add(given, "mapped", f"{option.key}: {where}")
        paths = [self._source.folder / str(name) for name in names]
        texts = tuple(map(str, paths))
        self._result.values[option.field] = texts if isinstance(value, tuple) else texts[0]
        hidden = [text for path, text in zip(paths, texts, strict=True) if is_hidden(path)]
        if hidden and not self._source.service:
            text = f"the unit cannot see {hidden[0]}: move it, for example to /etc/kumadp"
            return self._add(given, "in the way", text)
        if texts != names:
            return self._add(given, "mapped", f"{option.key}: {', '.join(texts)}")
        return self._add(given, "understood", option.key)

    def _others(self) -> None:
        """Judge variables that are no options of kuma-dp, but change what it does."""
        secrets = secret_variables()
        for name, text in sorted(self._source.environ.items()):
            if name.startswith(_PASSED_ON):
                shown = MASK if name in secrets else on_one_line(text)
                verdict: Verdict = "understood" if text.isprintable() else "in the way"
                reason = "the same variable" if verdict == "understood" else "it has a control character in it"
                if verdict == "understood":
                    self._result.environ[name] = text
                row = OptionVerdict(name, "variable", shown, verdict, reason)
            elif name.lower() in _PROXIES and name.lower() != "no_proxy" and text:
                reason = "kumadp connects to the control plane itself, without a proxy"
                row = OptionVerdict(name, "variable", MASK, "ignored", reason)
            else:
                continue
            self._result.options.append(row)

    def _programs(self) -> None:
        """Have kumadp run the same Envoy and CoreDNS, where it would not find them by itself."""
        for field, name in _PROGRAMS.items():
            if field in self._result.values or self._source.service or (name == "coredns" and self._without_coredns()):
                continue
            found = self._find(name)
            if not found or found == _on_path(name, SERVICE_PATH):
                continue
            self._result.values[field] = found
            text = "beside kuma-dp, or on its PATH; without this key kumadp uses its own"
            flag = "--binary-path" if field == "binary_path" else "--dns-coredns-path"
            self._result.options.append(OptionVerdict(flag, "default", found, "mapped", text))

    def _without_coredns(self) -> bool:
        values = self._result.values
        return not values.get("dns_enabled", True) or bool(values.get("dns_proxy_port"))

    def _find(self, name: str) -> str:
        """Return where kuma-dp finds a program (Kuma 2.8): on PATH, in its folder, beside itself; empty if nowhere."""
        source = self._source
        if source.service:
            return ""
        path = source.environ.get("PATH", SERVICE_PATH)
        for folder in (str(source.folder), str(Path(source.program).parent)):
            path += f"{os.pathsep}{folder}"
        return _on_path(name, path)

    def _trust(self) -> None:
        """Judge a missing CA: kuma-dp before 2.14 then verifies nothing, kumadp by the system's."""
        values = self._result.values
        address = str(values.get("cp_address", "https://localhost:5678"))
        if any(values.get(field) for field in ("ca_cert", "ca_cert_file", "skip_verify")) or "https" not in address:
            return
        if _at_least(self._source.version, _VERIFIES_SINCE):
            verdict: Verdict = "understood"
            text = "not given: the control plane is verified by the system's CAs"
        else:
            verdict = "in the way"
            text = (
                "not given: kuma-dp before 2.14 verifies nothing then, kumadp by the system's CAs; give the control "
                "plane's CA to kuma-dp first"
            )
        self._result.options.append(OptionVerdict("--ca-cert-file", "default", "", verdict, text))


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:
        return ""


def _at_least(version: str, least: tuple[int, int]) -> bool:
    try:
        major, minor = map(int, version.split(".")[:2])
    except ValueError:
        return False
    return (major, minor) >= least


def _on_path(name: str, path: str) -> str:
    """Return where a program is on ``path``, of absolute folders; empty if nowhere."""
    found = find_program(name, os.pathsep.join(filter(os.path.isabs, path.split(os.pathsep))))
    return str(Path(found)) if found else ""


def _value(option: Option, several: Sequence[GivenOption]) -> object:
    """Return the value of an option, merged if it was repeated; raises BadValue."""
    texts = [given.text for given in several]
    if option.kind == "boolean":
        return read_value("boolean", "true" if texts[-1] is None else texts[-1])
    if None in texts:
        raise BadValue("has no value")
    given = [text for text in texts if text is not None]
    if several[0].source == "flag" and option.kind == "pairs":
        pairs: dict[str, str] = {}
        for text in given:
            pairs.update(parse_assignments(text))
        return pairs
    if option.kind == "texts":
        return tuple(part for text in given for part in text.split(",") if part)
    return read_value(option.kind, given[-1])


def _shown(given: GivenOption) -> str:
    if given.text is None:
        return ""
    if given.option is None:
        return MASK
    return on_one_line(show(given.option, given.text))
