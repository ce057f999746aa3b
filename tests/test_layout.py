"""The shape of the project: imports point one way, features do not know each other, files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kumadp"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each package may import of ours; the lowest first.
PURE = {"addresses", "decoding", "durations", "errors", "yamltext", "resources", "bootstrap", "settings"}
PRIMITIVES = {"host", "process", "grpc"}
FEATURES = {"accesslog", "controlplane", "envoy", "dns", "dynconf", "metrics", "otel", "probes", "relay", "standalone"}
ALLOWED: dict[str, set[str]] = {
    "addresses": set(),
    "decoding": set(),
    "durations": set(),
    "errors": set(),
    "yamltext": set(),
    "resources": {"addresses", "durations", "errors", "yamltext"},
    "settings": {"addresses", "durations", "errors", "yamltext"},
    "bootstrap": {"addresses", "decoding", "errors", "yamltext"},
    "host": PURE,
    "process": PURE | {"host"},
    # Its server accepts as all others do.
    "grpc": PURE | {"host"},
    **dict.fromkeys(FEATURES, PURE | PRIMITIVES),
    "lifecycle": PURE | PRIMITIVES | FEATURES,
    "doctor": PURE | PRIMITIVES | FEATURES | {"lifecycle"},
    "cli": PURE | PRIMITIVES | FEATURES | {"lifecycle", "doctor"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kumadp."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "kumadp":
            found |= {alias.name for alias in node.names} - {"__version__"}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kumadp.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    owner = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if owner in {"__init__", "__main__"}:
        return
    assert imported(path) - {owner} <= ALLOWED[owner]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_passes_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_each_file_of_the_lifecycle_knows_what_it_puts_together() -> None:
    known = {path.name: imported(path) & FEATURES for path in (PACKAGE / "lifecycle").glob("*.py")}
    several = {name for name, features in known.items() if len(features) > 1}
    assert several <= {
        "assemble.py",
        "configuration.py",
        "context.py",
        "continuity.py",
        "exporting.py",
        "kuma.py",
        "metering.py",
        "relaying.py",
        "resolving.py",
        "sources.py",
    }


def test_only_the_command_line_ends_the_process() -> None:
    ending = [
        path
        for path in MODULES
        if path.parent.name != "cli" and ("sys.exit(" in path.read_text()) and path.name != "exec_helper.py"
    ]
    assert ending == []


# Whose exceptions differ by release and by fault: `kumadp.decoding` and `kumadp.yamltext` make one of them.
DECODERS = (
    "json.loads(",
    "json.load(",
    "json.Decoder(",
    "msgpack.decode(",
    "json.decode(",
    "yaml.load(",
    "yaml.compose(",
)
# An access log has its own rules for what cannot be decoded.
DECODE = {"decoding.py", "yamltext.py", "accesslog/records.py"}


def test_one_place_decodes_what_comes_from_outside() -> None:
    by_themselves = {
        str(path.relative_to(PACKAGE)): call
        for path in MODULES
        for call in DECODERS
        if call in path.read_text() and str(path.relative_to(PACKAGE)) not in DECODE
    }
    assert by_themselves == {}
