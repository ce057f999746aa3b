"""An admin of Envoy that applies or rejects the files of standalone mode as it is configured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SCOPES = {"clusters.json": "cluster_manager.cds", "listeners.json": "listener_manager.lds"}


class FakeAdmin:
    """Reads a file of ``folder`` at each request for statistics, as Envoy does when it changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers = True
        self.applies = True
        self.rejected: dict[str, str] = {}
        """Names of clusters and listeners that it rejects, and the reasons."""
        self.warming = 0
        self.applied: list[tuple[str, list[str]]] = []
        """Each file that it has applied, with the names in it."""
        self._seen: dict[str, str] = {}
        self._version: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._rejections: dict[str, int] = {}
        self._errors: dict[str, str] = {}

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        if not self.answers:
            raise OSError("down")
        if path.startswith("/config_dump"):
            configs = [
                {"name": name, "error_state": {"details": f"{reason}\n twice"}} for name, reason in self._errors.items()
            ]
            return 200, json.dumps({"configs": [*configs, {"name": "other"}]}).encode()
        if self.applies:
            for file in SCOPES:
                self._read(file)
        return 200, json.dumps({"stats": self._stats()}).encode()

    def _read(self, file: str) -> None:
        content: dict[str, Any] = json.loads((self.folder / file).read_text())
        version = content["versionInfo"]
        if self._seen.get(file) == version:
            return
        self._seen[file] = version
        names = [resource["name"] for resource in content["resources"]]
        self._attempts[file] = self._attempts.get(file, 0) + 1
        failed = [name for name in names if name in self.rejected]
        if file == "listeners.json":
            self._errors = {name: self.rejected[name] for name in failed}
        if failed:
            self._rejections[file] = self._rejections.get(file, 0) + 1
            return
        self._version[file] = version
        self.applied.append((file, names))

    def _stats(self) -> list[dict[str, Any]]:
        values: dict[str, Any] = {"cluster_manager.warming_clusters": self.warming}
        for file, scope in SCOPES.items():
            values[f"{scope}.version_text"] = self._version.get(file, "")
            values[f"{scope}.update_attempt"] = self._attempts.get(file, 0)
            values[f"{scope}.update_rejected"] = self._rejections.get(file, 0)
        return [{"name": name, "value": value} for name, value in values.items()] + [{"histograms": {}}]
