"""`kumadp reload` and `kumadp reexec`: which data plane, output and exit code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.core.status import Status
from kumadp.daemon.instances import Running, Search
from kumadp.errors import HandoverFailed
from kumadp.host.net.socket_paths import RUN

if TYPE_CHECKING:
    from tests.support.instances import Host


async def reloaded() -> dict[str, object]:
    return {"said": "epoch 1 serves, epoch 0 drains"}


async def refused() -> dict[str, object]:
    raise HandoverFailed("the new program does not start: ImportError: no module x")


def test_a_reload_prints_its_result(host: Host) -> None:
    with host.instance("web", reload=reloaded):
        done = host.run("reload")
    assert (done.returncode, done.stdout) == (0, "web: epoch 1 serves, epoch 0 drains\n")


def test_a_refusal_has_its_exit_code_and_reason(host: Host) -> None:
    with host.instance("web", reexec=refused):
        done = host.run("reexec", "--name=web")
        unknown = host.run("reload")
    assert done.returncode == unknown.returncode == 79
    assert done.stderr == "Error: web: reexec: the new program does not start: ImportError: no module x\n"
    assert "does not support it" in unknown.stderr


def test_a_reexec_is_done_when_the_next_program_answers(host: Host) -> None:
    status = Status("web", "standalone")
    status.facts["reexec"] = {"count": 4, "failed": ""}

    async def accepted() -> dict[str, object]:
        asyncio.get_running_loop().call_later(
            0.3, lambda: status.facts.update(reexec={"count": 5, "failed": ""}, version="9.9")
        )
        return {"count": 4}

    with host.instance("web", status, reexec=accepted):
        done = host.run("reexec")
    assert done.returncode == 0, done.stderr
    assert "kumadp 9.9 is running" in done.stdout


def test_a_reexec_that_fails_after_its_check(host: Host) -> None:
    status = Status("web", "standalone")

    async def accepted() -> dict[str, object]:
        status.facts["reexec"] = {"count": 0, "failed": "/none/python cannot be run: No such file or directory"}
        return {"count": 0}

    with host.instance("web", status, reexec=accepted):
        done = host.run("reexec")
    assert done.returncode == 79
    assert done.stderr == "Error: web: reexec: /none/python cannot be run: No such file or directory\n"


def test_a_reexec_that_never_ends_has_a_timeout(host: Host) -> None:
    async def accepted() -> dict[str, object]:
        return {"count": 0}

    with host.instance("web", reexec=accepted):
        done = host.run("reexec", "--timeout=300ms")
    assert (done.returncode, done.stderr) == (79, "Error: web: reexec: not done within 300ms\n")


def test_one_of_several_must_be_named(host: Host) -> None:
    with host.instance("web", reload=reloaded), host.instance("db", reload=reloaded):
        several = host.run("reload")
        named = host.run("reload", "--name=db")
        none = host.run("reload", "--name=cache")
    assert several.returncode == none.returncode == 79
    assert several.stderr == "Error: several data planes run here: db, web (choose one with --name)\n"
    assert named.stdout == "db: epoch 1 serves, epoch 0 drains\n"
    assert "no kumadp named cache runs here" in none.stderr
    assert "running: db, web" in none.stderr


def test_a_timeout_that_is_not_a_duration(host: Host) -> None:
    done = host.run("reload", "--timeout=5")
    assert done.returncode == 64
    assert "--timeout: '5' is not a duration" in done.stderr


def test_a_unit_s_name_is_taken_if_no_data_plane_has_it() -> None:
    of_unit = Running(RUN / "web" / "web-1.control", 995, 1)
    other = Running(RUN / "api" / "api-1.control", 995, 2)
    search = Search([of_unit, other])
    assert search.nearest("web-1") == search.nearest("web") == [of_unit]
    assert search.nearest("api-1") == [other]
    assert search.nearest("..") == search.nearest("/run/kumadp") == []
    named = Running(RUN / "x" / "web.control", 995, 3)
    assert Search([of_unit, named]).nearest("web") == [named]
