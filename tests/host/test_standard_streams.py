"""Descriptors 0 to 2 that the parent closed are open on /dev/null, with Python's streams on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys
from kumadp.host.standard_streams import fill_standard_descriptors
report = int(os.environ["REPORT"])
fill_standard_descriptors()
targets = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
inheritable = [os.get_inheritable(number) for number in (0, 1, 2)]
for stream in (sys.stdout, sys.stderr):
    stream.write("text")
    stream.flush()
os.write(report, json.dumps([targets, inheritable, sys.stdin.read()]).encode())
"""


@pytest.mark.parametrize("closed", [(), (0,), (2,), (0, 1, 2)])
def test_closed_descriptors_are_opened(closed: tuple[int, ...]) -> None:
    read, write = os.pipe()
    closing = "".join(f" {number}>&-" for number in closed)
    command = ["/bin/sh", "-c", f'exec "$0" -c "$1"{closing}', sys.executable, PROGRAM]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "REPORT": str(write)},
        pass_fds=(write,),
        check=True,
    )
    os.close(write)
    with os.fdopen(read, "rb") as report:
        targets, inheritable, text = json.loads(report.read())
    assert all((targets[number] == "/dev/null") is (number in {0, *closed}) for number in (0, 1, 2))
    assert inheritable == [True] * 3
    assert text == ""
    assert (done.stdout, done.stderr) == tuple(b"" if number in closed else b"text" for number in (1, 2))
