"""kumadp as a user has it: a copy with compiled modules and its dependencies alone, not this checkout in place."""

from __future__ import annotations

import compileall
import re
import shutil
import sys
import tomllib
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import kumadp

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = re.compile(r"[A-Za-z0-9._-]+")


def required(requirements: list[str], seen: dict[str, Distribution]) -> dict[str, Distribution]:
    """Add what these requirements need here, without extras, to ``seen``."""
    for requirement in requirements:
        match = NAME.match(requirement)
        needed = match[0].lower().replace("_", "-") if match else ""
        if "extra ==" in requirement or needed in seen:
            continue
        try:
            seen[needed] = distribution(needed)
        except PackageNotFoundError:
            # For another Python or another system.
            continue
        required(seen[needed].requires or [], seen)
    return seen


def install(folder: Path) -> Path:
    """Create an environment in ``folder``, offline, with the releases that are installed here; return its command."""
    venv.create(folder, with_pip=False, symlinks=True)
    target = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for installed in required(project["dependencies"], {}).values():
        for file in installed.files or ():
            source = Path(str(installed.locate_file(file)))
            if ".." in file.parts or not source.is_file():
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / file)
    shutil.copytree(Path(kumadp.__file__).parent, target / "kumadp", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(target, quiet=2, workers=0)
    command = folder / "bin" / "kumadp"
    module, _, function = project["scripts"]["kumadp"].partition(":")
    command.write_text(
        f"#!{folder}/bin/python\nimport sys\nfrom {module} import {function}\nif __name__ == '__main__':\n"
        f"    sys.exit({function}())\n"
    )
    command.chmod(0o755)
    return command
