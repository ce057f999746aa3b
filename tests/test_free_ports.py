"""Ports given to tests are nobody else's: not the kernel's for connections, not another test process's."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.ports import LOWEST, free_ports

QUERY = """
import json, sys
from tests.support.ports import free_ports
print(json.dumps(free_ports(100)), flush=True)
sys.stdin.read()
"""


def test_neither_the_kernel_nor_a_neighbour_gives_out_our_ports() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    root = Path(__file__).parent.parent
    ours = free_ports(100)
    command = [sys.executable, "-c", QUERY]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = json.loads(other.stdout.readline())
        assert other.stdin is not None
        other.stdin.close()
    assert len({*ours, *theirs}) == 200
    assert low <= LOWEST or not any(low <= port <= high for port in [*ours, *theirs])


def test_a_port_in_use_is_not_given_out_and_each_comes_once() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        (last,) = free_ports(1)
        with socket.socket(socket.AF_INET, kind) as held:
            held.bind(("127.0.0.1", last + 1))
            requests = free_ports(50)
        assert len({last, *requests}) == 51
        assert last + 1 not in requests
