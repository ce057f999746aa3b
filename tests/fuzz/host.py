"""What other processes can influence: /proc, the kernel's log, Envoy's output and the answers of its admin."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.daemon.instances import _is_kumadp, _paths
from kumadp.envoy.admin_exposure import exposing_listeners
from kumadp.envoy.admin_proof import listening_paths
from kumadp.envoy.server_state import ServerState, configuration_error
from kumadp.envoy.version import is_supported
from kumadp.host.cgroup import OomKills, cgroups
from kumadp.host.log.secrets import redact
from kumadp.host.process_identity import stat_fields
from kumadp.process.crash_records import kernel_lines
from tests.fuzz.structure import json_trees
from tests.fuzz.target import Scratch, Target, captured

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_cgroup, _oom, _comm, _cmdline, _kmsg = map(Scratch, ("cgroup", "memory.events", "comm", "cmdline", "kmsg"))
_HEADER = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
_REAL = b"ffff0000: 00000002 00000000 00010000 0001 01 4242 /run/kumadp/admin.sock\n"
_WORDS = (
    b"\n",
    b" ",
    b")",
    b" (",
    b"0::/",
    b"memory:",
    b"/",
    b"@",
    b"00010000",
    b"\x85",
    b"\x1c",
    b"\xff",
    b"\0",
    b"4242",
)


def _unix_table(data: bytes) -> None:
    """The path of a socket may be any bytes: another process can add whole lines to the table."""
    table = _HEADER + b"ffff0001: 00000002 00000000 00010000 0001 01 4343 " + data + b"\n" + _REAL
    assert "/run/kumadp/admin.sock" in listening_paths(table, {"4242"})
    list(_paths(table.splitlines()))


def _stat(data: bytes) -> None:
    """The name of a process may be any bytes, in brackets that it may hold too."""
    fields = stat_fields(b"12 (" + data + b") S 1 " + b"7 " * 17 + b"99 0 0\n")
    assert fields[0] == b"S"
    assert fields[19] == b"99"


def _control_group(data: bytes) -> None:
    cgroups(_cgroup.write(data))
    OomKills(_oom.write(data)).new_kills()


def _process(data: bytes) -> None:
    name, _, words = data.partition(b"\n")
    _comm.write(name)
    place = _comm.path.parent
    (place / "cmdline").write_bytes(words)
    _is_kumadp(place)


def _kernel_log(data: bytes) -> None:
    assert len(kernel_lines(12, str(_kmsg.write(data)))) <= 5


def _output(data: bytes) -> None:
    lines = data.decode("utf-8", "replace").split("\n")
    reason = configuration_error(lines)
    assert reason is None or "\n" not in reason
    redact(lines[0])
    is_supported(lines[0])


def _run(work: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that never waits."""
    with contextlib.suppress(StopIteration):
        while True:
            work.send(None)


def _answering(data: bytes) -> Any:
    """An admin whose every answer is this."""

    async def get(_target: str, **_options: object) -> tuple[int, bytes]:
        return 200, data

    return SimpleNamespace(get=get, address=TcpAdmin("127.0.0.1", 9901))


def _admin(data: bytes) -> None:
    state = ServerState(_answering(data), lambda _reason: None)
    _run(state.info())
    _run(state.addresses())
    _run(state.listener_addresses({"a"}))


def _dump(data: bytes) -> None:
    _run(exposing_listeners(_answering(data), {("10.0.0.1", 80)}, {"0.0.0.0"}))


def _dumps() -> list[bytes]:
    def route(depth: int) -> object:
        return {"cluster": "x"} if not depth else [{"typed_config": route(depth - 1)}]

    listener = {"name": "l", "filterChains": [{"filters": [{"typed_config": {"cluster": "x", "route": route(20)}}]}]}
    address = {"socket_address": {"address": "10.0.0.1", "port_value": 80}}
    every = {
        "listener_statuses": [{"name": "l", "local_address": address, "additional_local_addresses": [address]}],
        "configs": [
            {"activeState": {"listener": listener}, "routeConfig": {"name": "r"}, "cluster": {"name": "x"}},
        ],
        "cluster_statuses": [
            {"name": "x", "hostStatuses": [{"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 9901}}}]}
        ],
        "command_line_options": {"restart_epoch": 0, "concurrency": 2},
        "state": "LIVE",
        "hot_restart_version": "11.104",
    }
    return [json.dumps(every).encode(), *(capture[:3000] for capture in captured("*/*/config_dump.json")[:1])]


def _json() -> st.SearchStrategy[bytes]:
    key = st.sampled_from(
        ["listener_statuses", "name", "local_address", "additional_local_addresses", "socket_address", "address",
        "configs",
         "port_value", "activeState", "listener", "filterChains", "cluster", "cluster_header", "route",
         "cluster_statuses",
         "hostStatuses", "socketAddress", "command_line_options", "restart_epoch", "concurrency", "weighted_clusters"]
    )  # fmt: skip
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["l", "10.0.0.1", "9901", "x", ""]))
    tree = st.recursive(
        leaf,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(key, inner, max_size=5)),
        max_leaves=25,
    )
    return tree.map(lambda value: json.dumps(value).encode())


def _seeds(*seeds: bytes) -> Callable[[], list[bytes]]:
    return lambda: list(seeds)


TARGETS = (
    Target("proc-net-unix", _unix_table, _seeds(b"/run/a", b"/run/a\nx y z 00010000 1 1 4242 /tmp"), words=_WORDS),
    Target("proc-stat", _stat, _seeds(b"envoy", b"a) S 1 2 (b"), words=_WORDS, largest=64),
    Target(
        "proc-cgroup", _control_group,
        _seeds(b"0::/system.slice/kumadp.service\n", b"5:cpu,memory:/a\n1:name=systemd:/b\n", b"low 0\noom_kill 3\n"),
        words=_WORDS,
    ),
    Target(
        "proc-process", _process,
        _seeds(b"kumadp\n/usr/bin/python3\0/usr/bin/kumadp\0run\0", b"python3\npython3\0-m\0kumadp\0run"), words=_WORDS,
    ),
    Target(
        "kernel-log", _kernel_log, _seeds(b"6,12,34,-;Killed process 12 (envoy) total\n SUBSYSTEM=x\n"),
        words=(*_WORDS, b";", b"process 12 (", b"[12]"),
    ),
    Target(
        "envoy-output", _output,
        _seeds(b"[critical] error `Proto constraint goo.gle/debugx failed`  initializing config 'a' '' ''\n",
        b"1.40.0-dev"),
        words=(b"error `", b"` initializing config", b"error initializing configuration 'a': ", b"goo.gle/debug", b" "),
    ),
    Target(
        "envoy-admin", _admin, _dumps, (), (b'"state":', b"null", b"[]", b"{}", b"1e999", b'"9901"', b"[[[[[[[["),
        _json,
        lines=60, lines_base=5000, memory=300, structure=json_trees,
    ),
    Target(
        "envoy-config-dump", _dump, _dumps, (ValueError,),
        (b'"cluster":', b'"configs":', b"null", b"[]", b"{}", b"[" * 300, b"]" * 300, b'"route":'), _json,
        lines=300, lines_base=12_000, memory=600, memory_base=100_000, structure=json_trees,
    ),
)  # fmt: skip
