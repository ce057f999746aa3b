"""The shape of the project: imports point one way, features do not know each other, files stay small."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from kumadp.host import work_dir
from tests.support.readmes import NAMES, anchors, links, text_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kumadp"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Where recorded exchanges come from: for those who write tests, without commands.
CAPTURES = ROOT / "tests" / "data" / "captures" / "README.md"

# What each package may import of ours; the lowest first.
PURE = {
    "addresses",
    "decoding",
    "durations",
    "errors",
    "records",
    "yamltext",
    "exposition",
    "resources",
    "bootstrap",
    "settings",
}
PRIMITIVES = {"host", "process", "grpc"}
FEATURES = {"accesslog", "controlplane", "envoy", "dns", "dynconf", "metrics", "otel", "probes", "relay", "standalone"}
ALLOWED: dict[str, set[str]] = {
    "addresses": set(),
    "decoding": set(),
    "durations": set(),
    "errors": set(),
    "exposition": set(),
    "records": set(),
    "yamltext": set(),
    "resources": {"addresses", "decoding", "durations", "errors", "yamltext"},
    "settings": {"addresses", "durations", "errors", "yamltext"},
    # Pure, but for the way to Envoy's file (`kumadp.bootstrap.prepare`).
    "bootstrap": {"addresses", "decoding", "errors", "host", "settings", "yamltext"},
    "host": PURE - {"bootstrap"},
    "process": PURE | {"host"},
    # Its server accepts as all others do.
    "grpc": PURE | {"host"},
    "core": PURE | PRIMITIVES,
    **dict.fromkeys(FEATURES, PURE | PRIMITIVES | {"core"}),
    "daemon": PURE | PRIMITIVES | FEATURES | {"core"},
    "doctor": PURE | PRIMITIVES | FEATURES | {"core", "daemon"},
    "migrate": PURE | PRIMITIVES | FEATURES | {"core", "daemon", "doctor"},
    "cli": PURE | PRIMITIVES | FEATURES | {"core", "daemon", "doctor", "migrate"},
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


# What puts features together.
WIRING = {
    "start.py",
    "run.py",
    "reload.py",
    "program_versions.py",
    "sidecar_facts.py",
    "ports.py",
    "sweep.py",
    "status_schema.py",
}


def test_only_the_wiring_of_the_daemon_knows_more_than_one_feature() -> None:
    knowing = {path.name for path in (PACKAGE / "daemon").glob("*.py") if len(imported(path) & FEATURES) > 1}
    assert knowing <= WIRING


def module_of(path: Path) -> str:
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def files_imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, for types alone too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names & modules.keys() if modules[name].name != "__init__.py"}


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): path for path in MODULES}
    imports = {name: files_imported(path, modules) - {name} for name, path in modules.items()}
    # Whatever imports nothing that is left can be taken away; a circle stays.
    while leaves := {name for name, needs in imports.items() if not needs & imports.keys()}:
        imports = {name: needs for name, needs in imports.items() if name not in leaves}
    # What is left are circles, and files that lead to one.
    while roots := imports.keys() - set().union(*imports.values()):
        imports = {name: needs for name, needs in imports.items() if name not in roots}
    assert sorted(imports) == []


def identifiers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        found |= {value for key in ("id", "attr", "arg", "name") if isinstance(value := getattr(node, key, None), str)}
    return found


def test_what_all_parts_stand_on_knows_no_program() -> None:
    low = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in {"core", "host"}]
    naming = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in low
        for name in identifiers(path)
        if re.search("envoy|coredns", name, re.IGNORECASE)
    }
    assert naming == set()


# This table may only shrink; `Child` is made by its class methods alone.
MANY_PARAMETERS = {"Child", "FallbackResolver"}


def test_constructors_take_at_most_six_parameters() -> None:
    many = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or node.name in MANY_PARAMETERS:
                continue
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    count = len(function.args.args) + len(function.args.kwonlyargs) - 1
                    if count > 6:
                        many[node.name] = count
    assert many == {}


def test_no_callable_is_assigned_from_outside_its_class() -> None:
    """A callback is given to a constructor, or registered by a method."""
    assigned = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            for target in targets:
                outside = isinstance(target, ast.Attribute) and not (
                    isinstance(target.value, ast.Name) and target.value.id in {"self", "cls"}
                )
                if outside and isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                    assigned[f"{path.relative_to(PACKAGE)}:{node.lineno}"] = ast.unparse(target)
    assert assigned == {}


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 200


def test_every_readme_is_tested() -> None:
    folders = ("configs", "kumadp", "systemd", "tests")
    there = {path for folder in folders for path in (ROOT / folder).rglob("README.md")} - {CAPTURES}
    assert {ROOT / name for name in NAMES} == there | {ROOT / "README.md"}


@pytest.mark.parametrize("name", [*NAMES, str(CAPTURES.relative_to(ROOT)), "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(name: str) -> None:
    dead = []
    for link in links(name):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    assert dead == []


PATH_IN_TEXT = re.compile(r"(?<![\w./-])((?:kumadp|tests|configs|systemd|\.ci)/[\w./@-]*\w/?)(?![\w<*])")


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_readmes_exist(name: str) -> None:
    assert [path for path in PATH_IN_TEXT.findall(text_of(name)) if not (ROOT / path).exists()] == []


def test_only_the_command_line_ends_the_process() -> None:
    ending = [
        path
        for path in MODULES
        if "cli" not in path.relative_to(PACKAGE).parts
        and ("sys.exit(" in path.read_text())
        and path.name != "exec_helper.py"
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


# HTTP requests are sent by `kumadp.host.net.http1`, and where streams or TLS of scrapes need more by aiohttp.
OTHER_HTTP_LIBRARIES = {"httpx", "httpcore", "anyio", "h11", "requests", "urllib3"}


def imports_of(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_the_daemon_has_one_http_library() -> None:
    importing = {str(path.relative_to(PACKAGE)) for path in MODULES if imports_of(path) & OTHER_HTTP_LIBRARIES}
    assert importing == set()


def strings_of(path: Path) -> list[str]:
    """Every string constant of a module but its docstrings, parts of f-strings among them."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_file_names_of_the_work_directory_are_in_one_module() -> None:
    constants = (
        work_dir.LOCK_FILE,
        work_dir.STATE_FILE,
        work_dir.SOURCE_FILE,
        work_dir.BOOTSTRAP_FILE,
        work_dir.TOKEN_FILE,
        work_dir.RELAY_SOCKET,
        work_dir.COREFILE,
        work_dir.TRIAL_SUFFIX,
        work_dir.XDS_FOLDER,
        work_dir.CLUSTERS_FILE,
        work_dir.LISTENERS_FILE,
        work_dir.OUTPUT_SUFFIX,
        work_dir.BASE_ID_SUFFIX,
    )
    # With a folder before it, or as the first part of an f-string.
    names = re.compile(rf"(?:.*/)?(?:{'|'.join(map(re.escape, constants))}|bootstrap\.|Corefile\.)")
    elsewhere = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in MODULES
        if path != PACKAGE / "host" / "work_dir.py"
        for text in strings_of(path)
        if names.fullmatch(text)
    }
    assert elsewhere == set()


def public_classes() -> dict[str, list[str]]:
    """The modules of each public class by its name."""
    modules: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    return modules


def test_public_class_names_are_unique() -> None:
    shared = {name: paths for name, paths in public_classes().items() if len(paths) > 1}
    assert shared == {}
