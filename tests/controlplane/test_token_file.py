"""The file for a token that was given itself: written where it is not there yet, gone at the end."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from kumadp.controlplane.bootstrap_client import KumaClient, Sidecar, Versions
from kumadp.errors import WorkDirError
from kumadp.host.work_dir import TOKEN_FILE, open_work_dir
from kumadp.settings.model import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_it_needs_no_room_where_it_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = open_work_dir("web", str(tmp_path / "work"), "", "", {})
    client = KumaClient(Settings(token="one"), None, work, Versions("1.40.0"), Sidecar())
    file = work.path / TOKEN_FILE
    assert client._token_file("one") == str(file)
    assert file.read_text() == "one"

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kumadp.controlplane.bootstrap_client.write_private", full)
    assert client._token_file("one") == str(file)
    with pytest.raises(WorkDirError, match=f"{file} cannot be written: No space left on device"):
        client._token_file("two")
    handed = work.handed()
    assert handed.removed_at_end == (str(file),)
    work.close()
    assert not file.exists()
