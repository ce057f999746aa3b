"""Which Corefile a CoreDNS gets, depending on what the binary loads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.coredns.corefile import CorefileFacts, ForwardMethod, built_in
from kumadp.dns.coredns.corefile_check import CorefileRejection, check_corefile
from kumadp.dns.coredns.corefile_selector import CoreDnsUnfit, CorefileOptions, CorefileSelector
from kumadp.errors import SpawnError
from tests.support.needs import need_coredns, need_other_coredns
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

ENVIRONMENT = {"PATH": os.environ.get("PATH", "")}
GOOD = ".:{{ .CoreDNSPort }} {\n    whoami\n}\n"
# It prints what CoreDNS 1.9.4 prints.
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
class Selection:
    """A selector, and its warnings."""

    folder: Path
    binary: Path
    user_template: str = ""
    control_plane_template: str | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        port, envoy, metrics = free_ports(3)
        self.facts = CorefileFacts(port, envoy, metrics, logging=False, binary=str(self.binary), config_dir="")
        self.resolv_conf = self.folder / "resolv.conf"
        if not self.resolv_conf.exists():
            self.resolv_conf.write_text("nameserver 192.0.2.53\n")
        self.selector = CorefileSelector(
            self.binary,
            CorefileOptions(
                facts=self.facts,
                folder=self.folder,
                environment=ENVIRONMENT,
                resolv_conf=self.resolv_conf,
                user_template=self.user_template,
                suffixes=("mesh",),
            ),
            self.control_plane_template,
            self.warnings.append,
        )


def script(folder: Path, text: str) -> Path:
    path = folder / "coredns"
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("corefile", "rejection"),
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
        (".:{port} {{\n    whoami\n", CorefileRejection("a } is superfluous, or a { is missing", 2)),
        (".:{port} {{\n    whoami\n}}\n}}\n", CorefileRejection("a } is superfluous, or a { is missing", 4)),
        (
            ".:{port} {{\n}}\n.:{port} {{\n}}\n",
            CorefileRejection("cannot serve dns://.:{port} - it is already defined"),
        ),
    ],
)
async def test_coredns_reports_the_problem_and_its_line(
    tmp_path: Path, corefile: str, rejection: CorefileRejection | None
) -> None:
    (port,) = free_ports(1)
    text = corefile.format(port=port)
    result = await check_corefile(need_coredns(), text, tmp_path, ENVIRONMENT)
    expected = CorefileRejection(rejection.message.replace("{port}", str(port)), rejection.line) if rejection else None
    assert result == expected
    assert [*tmp_path.glob("*")] == []  # noqa: ASYNC240


async def test_a_trial_takes_no_port(tmp_path: Path) -> None:
    with_metrics = ".:1 {\n    bind 192.0.2.1\n    whoami\n    prometheus 192.0.2.1:1\n    health 192.0.2.1:2\n}\n"
    assert await check_corefile(need_coredns(), with_metrics, tmp_path, ENVIRONMENT) is None


async def test_imports_are_relative_to_the_corefile(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("whoami\n")
    corefile = ".:1 {\n    import more\n}\n"
    assert await check_corefile(need_coredns(), corefile, tmp_path, ENVIRONMENT) is None
    (tmp_path / "more").unlink()
    rejection = await check_corefile(need_coredns(), corefile, tmp_path, ENVIRONMENT)
    assert rejection is not None
    assert "File to import not found: more" in rejection.message
    assert rejection.line == 2


async def test_each_method_but_alternate_is_loaded_by_a_coredns_of_today(tmp_path: Path) -> None:
    facts = CorefileFacts(15053, 15054, 19153, logging=True, binary="", config_dir="")
    for method in ForwardMethod:
        text = built_in(facts, method, ("192.0.2.53", "2001:db8::53", "fe80::1%lo"), ("mesh", "mesh.local"))
        rejection = await check_corefile(need_coredns(), text, tmp_path, ENVIRONMENT)
        assert (rejection is None) is (method is not ForwardMethod.ALTERNATE)


async def test_the_best_method_of_the_binary_is_selected(tmp_path: Path) -> None:
    corefile = await Selection(tmp_path, need_coredns()).selector.select()
    assert corefile.origin == f"the built-in Corefile ({ForwardMethod.FAILOVER.value})"
    assert "192.0.2.53" in corefile.text


async def test_a_build_with_alternate_is_detected(tmp_path: Path) -> None:
    corefile = await Selection(tmp_path, need_other_coredns("ALTERNATE")).selector.select()
    assert corefile.origin == f"the built-in Corefile ({ForwardMethod.ALTERNATE.value})"


@pytest.mark.parametrize("real", [False, True])
async def test_a_binary_without_any_method_is_unfit_and_run_once(tmp_path: Path, real: bool) -> None:
    binary = need_other_coredns("OLD") if real else script(tmp_path, OLD)
    selection = Selection(tmp_path, binary)
    for _ in range(2):
        with pytest.raises(CoreDnsUnfit) as unfit:
            await selection.selector.select()
    assert "unknown property 'next'" in str(unfit.value)
    assert "CoreDNS 1.11.4 and later can" in str(unfit.value)
    if not real:
        assert len(binary.with_name("coredns.runs").read_text().split()) == len(ForwardMethod)


async def test_an_unfit_binary_still_serves_a_template_that_it_loads(tmp_path: Path) -> None:
    corefile = await Selection(tmp_path, script(tmp_path, OLD), control_plane_template=GOOD).selector.select()
    assert corefile.origin == "the control plane's corefileTemplate"


async def test_another_binary_in_its_place_is_checked_again(tmp_path: Path) -> None:
    binary = script(tmp_path, OLD)
    selection = Selection(tmp_path, binary)
    with pytest.raises(CoreDnsUnfit):
        await selection.selector.select()
    binary.unlink()
    binary.symlink_to(need_coredns())
    assert "forward with next" in (await selection.selector.select()).origin


async def test_a_template_comes_before_the_built_in_one_and_the_user_s_before_the_control_plane_s(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    own.write_text(GOOD + "# mine\n")
    both = Selection(tmp_path, need_coredns(), user_template=str(own), control_plane_template=GOOD)
    corefile = await both.selector.select()
    assert corefile.text.endswith("# mine\n")
    assert corefile.text.startswith(f".:{both.facts.port} {{")
    assert corefile.origin == str(own)
    assert both.warnings[-1] == ""


@pytest.mark.parametrize(
    ("template", "warning"),
    [
        ("{{/* one\ntwo */}}\n.:1 {\n    no-such-plugin\n}\n", "own:4: Corefile template: rejected by CoreDNS: Error"),
        (".:1 {\n    whoami\n    {{ .Nothing }}\n}\n", "own:3: Corefile template: {{ .Nothing }} is not supported"),
        ("{{ if .CoreDNSLogging }}x{{ end }}\n", "own: Corefile template: the result is empty"),
        (None, "--dns-coredns-config-template-path: "),
    ],
)
async def test_a_template_that_cannot_be_used_is_reported_and_the_next_one_serves(
    tmp_path: Path, template: str | None, warning: str
) -> None:
    own = tmp_path / "own"
    if template is not None:
        own.write_text(template)
    selection = Selection(tmp_path, need_coredns(), user_template=str(own))
    assert (await selection.selector.select()).origin.startswith("the built-in Corefile")
    assert warning in selection.warnings[-1]
    assert "using the built-in Corefile" in selection.warnings[-1]
    with_both = Selection(tmp_path, need_coredns(), user_template=str(own), control_plane_template=GOOD)
    assert (await with_both.selector.select()).origin == "the control plane's corefileTemplate"
    assert warning in with_both.warnings[-1]


async def test_a_template_that_is_broken_later_does_not_replace_the_one_that_works(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(GOOD)
    selection = Selection(tmp_path, need_coredns(), user_template=str(own))
    good = await selection.selector.select()
    own.write_text(GOOD.replace("whoami", "nobody"))
    assert await selection.selector.select() == good
    assert "own:2" in selection.warnings[-1]
    assert "Unknown directive 'nobody'" in selection.warnings[-1]
    own.write_text(GOOD.replace("whoami", "errors"))
    assert "errors" in (await selection.selector.select()).text
    assert selection.warnings[-1] == ""


async def test_resolv_conf_is_read_each_time_and_may_be_missing(tmp_path: Path) -> None:
    selection = Selection(tmp_path, need_coredns())
    assert "192.0.2.53" in (await selection.selector.select()).text
    selection.resolv_conf.write_text("nameserver 198.51.100.7\n")
    changed = (await selection.selector.select()).text
    assert "198.51.100.7" in changed
    assert "192.0.2.53" not in changed
    selection.resolv_conf.unlink()
    alone = (await selection.selector.select()).text
    assert await check_corefile(need_coredns(), alone, tmp_path, ENVIRONMENT) is None


async def test_a_binary_that_cannot_be_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match="cannot be run"):
        await Selection(tmp_path, tmp_path / "none").selector.select()
