"""Which Corefile a CoreDNS gets, by what the binary says to it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.coredns.corefile import CorefileFacts, Way, built_in
from kumadp.dns.coredns.corefile_check import CorefileRejection, check_corefile
from kumadp.dns.coredns.corefile_selector import CoreDnsUnfit, CorefileSelector
from kumadp.errors import SpawnError
from tests.support.needs import need_coredns, need_other_coredns
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

ENVIRONMENT = {"PATH": os.environ.get("PATH", "")}
GOOD = ".:{{ .CoreDNSPort }} {\n    whoami\n}\n"
# It says what CoreDNS 1.9.4 says.
OLD = """#!/bin/sh
echo run >> "$0.runs"
awk -v file="$2" '
  /^ *alternate / { print file ":" NR " - Error during parsing: Unknown directive '"'alternate'"'"; bad = 1; exit }
  /^ *next / { print "plugin/forward: " file ":" NR " - Error during parsing: unknown property '"'next'"'"
               bad = 1; exit }
  END { if (!bad) print "cannot serve dns://kumadp-trial.invalid.:1 - it is already defined" }' "$2"
exit 1
"""


@dataclass
class Choosing:
    """A choice, and what it worries about."""

    folder: Path
    binary: Path
    own: str = ""
    told: str | None = None
    worries: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        port, envoy, metrics = free_ports(3)
        self.facts = CorefileFacts(port, envoy, metrics, logging=False, binary=str(self.binary), config_dir="")
        self.resolv_conf = self.folder / "resolv.conf"
        if not self.resolv_conf.exists():
            self.resolv_conf.write_text("nameserver 192.0.2.53\n")
        self.choice = CorefileSelector(
            self.binary,
            self.facts,
            self.folder,
            ENVIRONMENT,
            own=self.own,
            told=self.told,
            resolv_conf=self.resolv_conf,
            suffixes=("mesh",),
            worry=self.worries.append,
        )


def script(folder: Path, text: str) -> Path:
    path = folder / "coredns"
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("corefile", "refusal"),
    [
        (".:{port} {{\n    whoami\n}}\n", None),
        (
            ".:{port} {{\n\n    nothing-like-it\n}}\n",
            CorefileRejection("Error during parsing: Unknown directive 'nothing-like-it'", 3),
        ),
        (
            ".:{port} {{\n    forward . 127.0.0.1 {{\n        nexto\n    }}\n}}\n",
            CorefileRejection("plugin/forward: Error during parsing: unknown property 'nexto'", 3),
        ),
        (".:{port} {{\n    whoami\n", CorefileRejection("a } too many, or a { that is missing", 2)),
        (".:{port} {{\n    whoami\n}}\n}}\n", CorefileRejection("a } too many, or a { that is missing", 4)),
        (
            ".:{port} {{\n}}\n.:{port} {{\n}}\n",
            CorefileRejection("cannot serve dns://.:{port} - it is already defined"),
        ),
    ],
)
async def test_coredns_says_what_is_wrong_and_where(
    tmp_path: Path, corefile: str, refusal: CorefileRejection | None
) -> None:
    (port,) = free_ports(1)
    text = corefile.format(port=port)
    found = await check_corefile(need_coredns(), text, tmp_path, ENVIRONMENT)
    expected = CorefileRejection(refusal.message.replace("{port}", str(port)), refusal.line) if refusal else None
    assert found == expected
    assert [*tmp_path.glob("*")] == []  # noqa: ASYNC240


async def test_a_trial_takes_no_port(tmp_path: Path) -> None:
    with_metrics = ".:1 {\n    bind 192.0.2.1\n    whoami\n    prometheus 192.0.2.1:1\n    health 192.0.2.1:2\n}\n"
    assert await check_corefile(need_coredns(), with_metrics, tmp_path, ENVIRONMENT) is None


async def test_what_is_imported_is_found_beside_the_corefile(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("whoami\n")
    corefile = ".:1 {\n    import more\n}\n"
    assert await check_corefile(need_coredns(), corefile, tmp_path, ENVIRONMENT) is None
    (tmp_path / "more").unlink()
    refusal = await check_corefile(need_coredns(), corefile, tmp_path, ENVIRONMENT)
    assert refusal is not None
    assert "File to import not found: more" in refusal.message
    assert refusal.line == 2


async def test_each_way_is_loaded_by_a_coredns_of_today_but_for_alternate(tmp_path: Path) -> None:
    facts = CorefileFacts(15053, 15054, 19153, logging=True, binary="", config_dir="")
    for way in Way:
        text = built_in(facts, way, ("192.0.2.53", "2001:db8::53", "fe80::1%lo"), ("mesh", "mesh.local"))
        refusal = await check_corefile(need_coredns(), text, tmp_path, ENVIRONMENT)
        assert (refusal is None) is (way is not Way.ALTERNATE)


async def test_the_binary_s_best_way_is_taken(tmp_path: Path) -> None:
    found = await Choosing(tmp_path, need_coredns()).choice.find()
    assert found.origin == f"the built-in Corefile ({Way.FAILOVER.value})"
    assert "192.0.2.53" in found.text


async def test_a_build_with_alternate_is_told_by_it(tmp_path: Path) -> None:
    found = await Choosing(tmp_path, need_other_coredns("ALTERNATE")).choice.find()
    assert found.origin == f"the built-in Corefile ({Way.ALTERNATE.value})"


@pytest.mark.parametrize("real", [False, True])
async def test_one_that_cannot_go_on_is_unfit_and_asked_once(tmp_path: Path, real: bool) -> None:
    binary = need_other_coredns("OLD") if real else script(tmp_path, OLD)
    choosing = Choosing(tmp_path, binary)
    for _ in range(2):
        with pytest.raises(CoreDnsUnfit) as unfit:
            await choosing.choice.find()
    assert "unknown property 'next'" in str(unfit.value)
    assert "CoreDNS 1.11.4 and later can" in str(unfit.value)
    if not real:
        assert len(binary.with_name("coredns.runs").read_text().split()) == len(Way)


async def test_an_unfit_one_still_serves_a_template_that_it_loads(tmp_path: Path) -> None:
    found = await Choosing(tmp_path, script(tmp_path, OLD), told=GOOD).choice.find()
    assert found.origin == "the control plane's corefileTemplate"


async def test_another_binary_in_its_place_is_asked_anew(tmp_path: Path) -> None:
    binary = script(tmp_path, OLD)
    choosing = Choosing(tmp_path, binary)
    with pytest.raises(CoreDnsUnfit):
        await choosing.choice.find()
    binary.unlink()
    binary.symlink_to(need_coredns())
    assert "forward with next" in (await choosing.choice.find()).origin


async def test_a_template_comes_before_the_built_in_one_and_the_user_s_before_the_control_plane_s(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    own.write_text(GOOD + "# mine\n")
    both = Choosing(tmp_path, need_coredns(), own=str(own), told=GOOD)
    found = await both.choice.find()
    assert found.text.endswith("# mine\n")
    assert found.text.startswith(f".:{both.facts.port} {{")
    assert found.origin == str(own)
    assert both.worries[-1] == ""


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{/* one\ntwo */}}\n.:1 {\n    no-such-plugin\n}\n", "own:4: Corefile template: CoreDNS says: Error during"),
        (".:1 {\n    whoami\n    {{ .Nothing }}\n}\n", "own:3: Corefile template: {{ .Nothing }} is not understood"),
        ("{{ if .CoreDNSLogging }}x{{ end }}\n", "own: Corefile template: nothing is left of it"),
        (None, "--dns-coredns-config-template-path: "),
    ],
)
async def test_a_template_that_cannot_be_used_is_told_and_the_next_one_serves(
    tmp_path: Path, template: str | None, told: str
) -> None:
    own = tmp_path / "own"
    if template is not None:
        own.write_text(template)
    choosing = Choosing(tmp_path, need_coredns(), own=str(own))
    assert (await choosing.choice.find()).origin.startswith("the built-in Corefile")
    assert told in choosing.worries[-1]
    assert "going on with the built-in Corefile" in choosing.worries[-1]
    with_both = Choosing(tmp_path, need_coredns(), own=str(own), told=GOOD)
    assert (await with_both.choice.find()).origin == "the control plane's corefileTemplate"
    assert told in with_both.worries[-1]


async def test_a_template_that_is_broken_later_does_not_replace_the_one_that_works(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(GOOD)
    choosing = Choosing(tmp_path, need_coredns(), own=str(own))
    good = await choosing.choice.find()
    own.write_text(GOOD.replace("whoami", "nobody"))
    assert await choosing.choice.find() == good
    assert "own:2" in choosing.worries[-1]
    assert "Unknown directive 'nobody'" in choosing.worries[-1]
    own.write_text(GOOD.replace("whoami", "errors"))
    assert "errors" in (await choosing.choice.find()).text
    assert choosing.worries[-1] == ""


async def test_resolv_conf_is_read_each_time_and_may_be_missing(tmp_path: Path) -> None:
    choosing = Choosing(tmp_path, need_coredns())
    assert "192.0.2.53" in (await choosing.choice.find()).text
    choosing.resolv_conf.write_text("nameserver 198.51.100.7\n")
    changed = (await choosing.choice.find()).text
    assert "198.51.100.7" in changed
    assert "192.0.2.53" not in changed
    choosing.resolv_conf.unlink()
    alone = (await choosing.choice.find()).text
    assert await check_corefile(need_coredns(), alone, tmp_path, ENVIRONMENT) is None


async def test_a_binary_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match="cannot be run"):
        await Choosing(tmp_path, tmp_path / "none").choice.find()
