"""Command lines of epochs, their files, the hang watch and the fallback for a dead epoch."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from kumadp.envoy.argv import EpochArguments, envoy_argv, epoch_argv, workers_of
from kumadp.envoy.base_id import BaseIdFiles, SharedMemory, sweep
from kumadp.envoy.hang_watch import HangWatch
from kumadp.envoy.options import HotRestart
from kumadp.envoy.parent_fallback import answer_as_parent
from kumadp.envoy.reload import command_of
from kumadp.envoy.retirement import begin_fallback
from kumadp.errors import WorkDirError
from kumadp.process.child import Child, Command
from tests.support.poll import poll_async


def argv_of(concurrency: int) -> tuple[str, ...]:
    return envoy_argv(
        Path("/bin/envoy"),
        Path("/w/bootstrap.yaml"),
        drain_time=30.0,
        log_level="info",
        component_log_level="",
        concurrency=concurrency,
    )


def epoch(number: int, base_id: int | None, concurrency: int | None = None) -> EpochArguments:
    return EpochArguments(number, base_id, Path("/w/h0.base"), Path("/w/h0"), 32.0, concurrency)


def test_envoy_chooses_the_base_id_at_epoch_0_and_later_epochs_name_it() -> None:
    common = ("--socket-path", "/w/h0", "--socket-mode", "600", "--parent-shutdown-time-s", "32")
    first = " ".join(epoch_argv(argv_of(2), epoch(0, None)))
    assert " ".join(("--use-dynamic-base-id", "--base-id-path", "/w/h0.base", *common)) in first
    later = " ".join(epoch_argv(argv_of(2), epoch(3, 77)))
    assert " ".join(("--base-id", "77", "--restart-epoch", "3", *common)) in later
    for files in (first, later):
        assert "--disable-hot-restart" not in files
        assert "--drain-time-s 30 --drain-strategy immediate" in files


def test_workers_that_envoy_would_count_are_as_many_as_run() -> None:
    assert workers_of(argv_of(2)) == 2
    assert workers_of(argv_of(0)) is None
    assert workers_of(epoch_argv(argv_of(0), epoch(1, 77, concurrency=4))) == 4
    assert workers_of(epoch_argv(argv_of(2), epoch(1, 77, concurrency=4))) == 2
    assert "--cpuset-threads" in epoch_argv(argv_of(0), epoch(0, None))


def test_an_old_epoch_ends_a_little_after_its_drain_time() -> None:
    assert HotRestart(Path("/w"), 30.0).parent_shutdown() == 32.0
    assert HotRestart(Path("/w"), 0.5).parent_shutdown() == 2.0


def test_each_epoch_has_its_own_fifo() -> None:
    command = Command(("/bin/envoy",), "envoy", {}, "keep", Path("/w/envoy.out"))
    assert command_of(command, ("/bin/envoy", "x"), "0.1").fifo == Path("/w/envoy.out.0.1")
    assert command_of(Command(("/bin/envoy",), "envoy", {}), (), "0.1").fifo is None


@pytest.mark.parametrize(
    ("base", "name"), [(19848069, "h0_parent_198480691"), (217121474, "h0_parent_18446744071585799061")]
)
def test_the_socket_is_named_as_envoy_names_it(tmp_path: Path, base: int, name: str) -> None:
    files = BaseIdFiles(tmp_path, 0)
    assert files.parent_socket(1) is None
    files.base_id_file.write_text(str(base))
    assert files.parent_socket(1) == tmp_path / name
    assert files.parent_socket(4) == tmp_path / name


def test_a_folder_that_is_too_long_for_envoys_sockets_is_refused() -> None:
    with pytest.raises(WorkDirError, match="hot restart sockets"):
        BaseIdFiles(Path("/" + "x" * 80), 0)


@pytest.mark.parametrize("content", [b"", b"x" * 104, struct.pack("=QQ", 104, 12) + b"\1" * 88])
def test_shared_memory_of_another_layout_is_not_touched(tmp_path: Path, content: bytes) -> None:
    files = BaseIdFiles(tmp_path, 0, SharedMemory(tmp_path))
    assert not files.unlock()
    files.base_id_file.write_text("7")
    shared = tmp_path / "envoy_shared_memory_70"
    shared.write_bytes(content)
    assert not files.unlock()
    assert shared.read_bytes() == content


def test_only_the_initializing_flag_is_cleared(tmp_path: Path) -> None:
    files = BaseIdFiles(tmp_path, 0, SharedMemory(tmp_path))
    files.base_id_file.write_text("7")
    head = struct.pack("=QQ", 104, 11) + b"\xff" * 80
    shared = tmp_path / "envoy_shared_memory_70"
    shared.write_bytes(head + struct.pack("=Q", 5))
    assert files.unlock()
    assert shared.read_bytes() == head + struct.pack("=Q", 4)
    files.clean()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("socket_name", "shared"),
    [
        ("h0_parent_198480690", "envoy_shared_memory_198480690"),
        ("h0_parent_18446744071585799061", "envoy_shared_memory_2171214740"),
    ],
)
def test_an_envoy_that_was_killed_before_it_wrote_its_base_id_leaves_nothing(
    tmp_path: Path, socket_name: str, shared: str
) -> None:
    files = BaseIdFiles(tmp_path, 0, SharedMemory(tmp_path))
    files.base_id_file.touch()
    for name in (socket_name, shared, "envoy_shared_memory_70", "h0_parent_x"):
        (tmp_path / name).touch()
    files.clean()
    assert {path.name for path in tmp_path.iterdir()} == {"envoy_shared_memory_70"}


def test_a_sweep_leaves_an_envoy_that_listens_unless_it_was_killed(tmp_path: Path) -> None:
    memory = SharedMemory(tmp_path)
    files = BaseIdFiles(tmp_path, 0, memory)
    files.base_id_file.write_text("7")
    (tmp_path / "envoy_shared_memory_70").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as parent:
        parent.bind(str(tmp_path / "h0_parent_70"))
        assert sweep(tmp_path, memory) == 1
        assert len(list(tmp_path.iterdir())) == 3
        assert sweep(tmp_path, memory, killed=True) == 0
    assert list(tmp_path.iterdir()) == []


async def test_the_fallback_answers_for_a_dead_parent_until_the_order_to_end(tmp_path: Path) -> None:
    path = tmp_path / "parent"
    path.write_text("stale")
    fallback = asyncio.create_task(answer_as_parent(path, 20.0))

    async def bound() -> bool:
        return path.is_socket()

    await poll_async(bound, what="the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
        child.bind(str(tmp_path / "child"))
        child.settimeout(20.0)
        # As Envoy 1.40 sends them: garbage is ignored, statistics are requested, the end is ordered.
        for message in (b"", b"xx", bytes.fromhex("00000000000000040a021a00")):
            child.sendto(message, str(path))
        assert await asyncio.to_thread(child.recv, 100) == bytes.fromhex("000000000000000412021a00")
        assert not fallback.done()
        child.sendto(bytes.fromhex("00000000000000040a022a00"), str(path))
        assert await fallback
    assert not await answer_as_parent(path, 0.05)


async def test_the_fallback_is_begun_without_a_component(tmp_path: Path) -> None:
    files, due = BaseIdFiles(tmp_path, 0), time.monotonic() + 20.0
    assert begin_fallback(files, 0, due) is None
    files.base_id_file.write_text("7")
    fallback = begin_fallback(files, 0, due)
    assert fallback is not None
    path = files.parent_socket(0)
    assert path is not None
    await poll_async(lambda: asyncio.sleep(0, path.is_socket()), what="the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
        child.sendto(bytes.fromhex("00000000000000040a022a00"), str(path))
    async with asyncio.timeout(20.0):
        await fallback


def spinning(code: str) -> Command:
    return Command((sys.executable, "-c", code), "spinning", {})


@pytest.mark.process
async def test_a_busy_process_does_not_hang() -> None:
    requests = 0

    async def silent() -> bool:
        nonlocal requests
        requests += 1
        return False

    busy = await Child.spawn(spinning("while True: pass"))
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await HangWatch(interval=0.2, limit=0.4).hangs(busy.pid, silent)
        assert requests == 0
    finally:
        await busy.stop(0.0)
    assert not await HangWatch(interval=0.01, limit=0.1).hangs(busy.pid, silent)


@pytest.mark.process
async def test_a_process_without_cpu_use_gets_a_request_before_it_counts_as_hanging() -> None:
    answers = [True, True, False]

    async def answer() -> bool:
        return answers.pop(0)

    idle = await Child.spawn(spinning("import time; time.sleep(600)"))
    try:
        async with asyncio.timeout(20.0):
            assert await HangWatch(interval=0.02, limit=0.1).hangs(idle.pid, answer)
        assert answers == []
    finally:
        await idle.stop(0.0)


def test_shared_memory_is_removed_although_the_directory_was_taken_away(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    files = BaseIdFiles(work, 0, SharedMemory(tmp_path))
    files.base_id_file.write_text("7")
    shared = SharedMemory(tmp_path).of(7)
    shared.write_bytes(b"")
    assert files.base_id() == 7
    files.base_id_file.unlink()
    work.rmdir()
    files.clean()
    assert not shared.exists()
