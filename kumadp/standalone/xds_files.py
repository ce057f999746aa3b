"""The files that Envoy watches, in a private directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kumadp.host.private_file import write_private

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.standalone.config_fragments import Json


class XdsFiles:
    """Writes changed files, each time with a new version, which Envoy reports once it has applied it.

    May be used before Envoy runs. Methods raise OSError if the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._written: dict[str, bytes] = {}
        self._versions: dict[str, int] = {}
        self._confirmed: set[str] = set()

    def write(self, name: str, content: Json) -> bool:
        """Write a file unless it has this content; True if it was written. May block."""
        data = json.dumps(content).encode()
        if self._written.get(name) == data:
            return False
        version = self._versions.get(name, 0) + 1
        self._replace(name, json.dumps({"versionInfo": str(version), **content}).encode())
        self._written[name], self._versions[name] = data, version
        self._confirmed.discard(name)
        return True

    def version(self, name: str) -> str:
        """Return the version that was written last."""
        return str(self._versions.get(name, 0))

    def is_confirmed(self, name: str) -> bool:
        """Return whether Envoy has applied or rejected the version that was written last."""
        return name in self._confirmed

    def confirm(self, name: str) -> None:
        """Note that Envoy has applied or rejected the version that was written last."""
        self._confirmed.add(name)

    def _replace(self, name: str, data: bytes) -> None:
        # Not synced to the disk, unlike the bootstrap: the files are written again at each start.
        write_private(self.directory / name, data, sync=False)
