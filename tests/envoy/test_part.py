"""What is written down of Envoy, so that a kumadp after this one can go on with it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.core import context
from kumadp.core.context import Run
from kumadp.daemon.configuration import Configuration
from kumadp.envoy import part as running
from kumadp.envoy.part import Running
from kumadp.envoy.reload import AdoptedEnvoy, EnvoyState
from kumadp.host.state_file import read_state
from kumadp.host.work_dir import WorkDir
from kumadp.settings.resolve import resolve
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from kumadp.host.state_file import SavedState


def state_of(generation: int) -> EnvoyState:
    return EnvoyState(serial=0, epoch=1, blind=False, current=17, generation=generation)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(context, "find_container_sign", lambda _environ: "")
    made = Run(resolve("run", {"name": "web", "mesh": "default"}, {}).settings, None, None, {})
    made.take(WorkDir(tmp_path, tmp_path, tmp_path, temporary=False))
    return made


def made_of(run: Run) -> Running:
    return Running(run, Path("/bin/true"), Configuration(run), None)


class Component:
    children = ()
    generation = 1

    def export(self, *, starting: bool) -> EnvoyState:
        assert starting
        return state_of(self.generation)


async def test_what_was_noted_last_is_what_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, looked = threading.Event(), list[int]()

    def records(*_: object) -> list[Any]:
        looked.append(1)
        if len(looked) == 1:
            slow.wait(20)
        return []

    monkeypatch.setattr(running, "records", records)
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor()
    loop.set_default_executor(threads)
    made, component = made_of(run), Component()
    made.component = component  # type: ignore[assignment]

    async def began() -> bool:
        return bool(looked)

    async def known() -> SavedState | None:
        return read_state(run.work.path)

    made._started(1, 17)
    await poll_async(began, what="the first look")
    component.generation = 2
    made.note()
    await poll_async(known, what="the state file")
    slow.set()
    threads.shutdown(wait=True)
    loop.set_default_executor(ThreadPoolExecutor())
    await asyncio.sleep(0)
    await made.written()
    found = await known()
    assert found is not None
    assert found.parts["envoy"]["generation"] == 2


async def test_what_is_noted_when_all_is_over_leaves_nothing(run: Run) -> None:
    made = made_of(run)
    made.component = Component()  # type: ignore[assignment]
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    loop.set_default_executor(threads)
    made._started(1, 17)
    await made.forget()
    threads.shutdown(wait=True)
    loop.set_default_executor(ThreadPoolExecutor())
    await asyncio.sleep(0)
    await made.written()
    assert [path.name for path in run.work.path.iterdir()] == []


async def test_while_an_adopted_envoy_is_looked_at_the_file_of_before_goes_on_naming_it(run: Run) -> None:
    run.before.envoy = AdoptedEnvoy(state_of(4), SimpleNamespace(pid=17), None)  # type: ignore[arg-type]
    made = made_of(run)
    made.component = Component()  # type: ignore[assignment]
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    loop.set_default_executor(threads)
    made.note()
    threads.shutdown(wait=True)
    loop.set_default_executor(ThreadPoolExecutor())
    await asyncio.sleep(0)
    await made.written()
    assert read_state(run.work.path) is None


async def test_an_envoy_that_was_left_is_known_before_it_is_gone_on_with(run: Run) -> None:
    current, retiring = SimpleNamespace(pid=17), SimpleNamespace(pid=16)
    run.before.envoy = AdoptedEnvoy(state_of(4), current, retiring)  # type: ignore[arg-type]
    made = made_of(run)
    assert [made.epoch_of(pid) for pid in (17, 16, 15)] == [4, 3, 0]
