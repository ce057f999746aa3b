"""What is completed at the prompt, in a real bash, and in other shells where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.cli.main import COMMANDS
from tests.support.command import ROOT, kumadp

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.instances import Host


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a program `kumadp`, whose name is part of the variable for completions."""
    file = tmp_path / "bin/kumadp"
    file.parent.mkdir()
    code = "from tests.support.isolated_kumadp import isolate; isolate(); from kumadp.cli.main import main; main()"
    file.write_text(f"#!{sys.executable}\n{code}\n")
    file.chmod(0o755)
    return file.parent


def completed(program: Path, *words: str, runtime: Path | None = None) -> list[str]:
    """What bash offers for the last of these words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    script = kumadp("completion", "bash").stdout
    line = " ".join(f"'{word}'" for word in words)
    # Outside of a prompt there is nothing that the handler could set.
    code = f"complete() {{ :; }}; compopt() {{ :; }}\n{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n"
    code += "_kumadp_completion kumadp\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    environment = {
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **({"XDG_RUNTIME_DIR": str(runtime)} if runtime is not None else {}),
    }
    done = subprocess.run([bash, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


def test_commands(program: Path) -> None:
    assert completed(program, "kumadp", "re") == [name for name in COMMANDS if name.startswith("re")]


def test_options_and_their_values(program: Path) -> None:
    assert completed(program, "kumadp", "run", "--dns-mo") == ["--dns-mode"]
    assert completed(program, "kumadp", "run", "--dns-mode", "e") == ["embedded"]
    assert completed(program, "kumadp", "run", "--dns-enabled", "") == ["true", "false"]
    assert completed(program, "kumadp", "run", "--name", "") == []


@pytest.mark.parametrize("command", ["status", "wait", "reload", "reexec", "drain", "doctor", "log-level"])
def test_names_of_data_planes_that_run(program: Path, host: Host, command: str) -> None:
    with host.instance("web-1"), host.instance("web-2"), host.instance("db"):
        words = ("kumadp", command, "--name", "w")
        assert completed(program, *words, runtime=host.folder.parent) == ["web-1", "web-2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, tmp_path: Path) -> None:
    done = kumadp("completion", shell)
    assert done.returncode == 0
    assert f"_KUMADP_COMPLETE={shell}_complete" in done.stdout
    assert kumadp("completion", environment={"SHELL": f"/usr/bin/{shell}"}).stdout == done.stdout
    if (path := shutil.which(shell)) is not None:
        file = tmp_path / "script"
        file.write_text(done.stdout)
        subprocess.run([path, "-n", file], check=True)


def test_another_shell() -> None:
    done = kumadp("completion", environment={"SHELL": "/bin/dash"})
    assert (done.returncode, done.stderr) == (64, "Error: no completion for the shell dash (bash, zsh or fish)\n")
