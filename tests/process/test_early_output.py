"""A run for its output that begins before the event loop: bounded in time and size, leaving nothing behind."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.coredns.binary import coredns_version
from kumadp.envoy.version import envoy_version
from kumadp.process.early_output import MAX_OUTPUT, EarlyOutput, begin_early, end_early, take_early
from tests.support.poll import poll_async
from tests.support.processes import is_alive, pid_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

ENVIRONMENT = {"PATH": os.defpath}


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    end_early()


def run(script: str, *, with_errors: bool = False) -> EarlyOutput:
    return EarlyOutput(("/bin/sh", "-c", script), ENVIRONMENT, with_errors=with_errors)


def script_of(folder: Path, text: str) -> Path:
    script = folder / "program"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return script


async def test_output_with_and_without_errors() -> None:
    script = "echo out; echo err >&2; env | grep KUMA; exit 3"
    assert await run(script).text(20.0) == "out\n"
    assert await run(script, with_errors=True).text(20.0) == "out\nerr\n"


async def test_a_flood_is_cut_and_ended() -> None:
    assert len(await run("yes").text(20.0)) == MAX_OUTPUT


@pytest.mark.parametrize("how", ["deadline", "cancelled", "closed"])
async def test_what_hangs_is_ended_with_what_it_started(tmp_path: Path, how: str) -> None:
    file = tmp_path / "pid"
    early = run(f"sleep 60 & echo $! > {file}.new; mv {file}.new {file}; wait")
    pid = pid_in(file)
    if how == "closed":
        early.close()
    elif how == "deadline":
        with pytest.raises(TimeoutError):
            await early.text(0.1)
    else:
        reading = asyncio.create_task(early.text(60.0))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await poll_async(lambda: _ended_now(pid), what="the end of what it started")


async def _ended_now(pid: int) -> bool:
    return not is_alive(pid)


async def test_the_first_query_for_the_version_takes_it_and_the_next_runs_the_program_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    version = "echo 'envoy  version: 0123/1.40.0/Clean/RELEASE/BoringSSL'"
    envoy = script_of(tmp_path, f"echo run >> {runs}; {version}")
    begin_early(envoy, "--version", environment=ENVIRONMENT)
    begin_early(envoy, "--version", environment=ENVIRONMENT)
    for count in (1, 2):
        assert (await envoy_version(envoy, ENVIRONMENT)).version == "1.40.0"
        assert runs.read_text().count("run") == count


async def test_the_version_of_coredns(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    coredns = script_of(tmp_path, f"echo run >>{runs}\necho CoreDNS-1.14.7 >&2")
    begin_early(coredns, "--version", environment=ENVIRONMENT, with_errors=True)
    assert await coredns_version(coredns, ENVIRONMENT) == "1.14.7"
    assert runs.read_text().count("run") == 1


def test_what_cannot_be_run_is_left_to_the_query(tmp_path: Path) -> None:
    begin_early(tmp_path / "none", "--version", environment=ENVIRONMENT)
    assert take_early(tmp_path / "none", "--version") is None
