"""CoreDNS is killed, stopped, wrong, or robbed of its port."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.faults import Row, end_by, fault_rows
from tests.support.flawed_programs import failing_program
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.rig import SOON

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

    from tests.support.faults import FaultRig

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

GROUP = "CoreDNS"
SHORT = 5.0
# Answers every name with an address that is not the one of the mesh.
WRONG = """
.:{port} {{
    bind 127.0.0.1
    template IN A . {{
        answer "{{{{ .Name }}}} 60 IN A 192.0.2.1"
    }}
}}
"""


def _coredns(rig: FaultRig) -> psutil.Process:
    return poll(lambda: found[0] if len(found := rig.corednses()) == 1 else None, what="a single CoreDNS")


def _answers_again(rig: FaultRig, former: psutil.Process) -> None:
    """Wait for another CoreDNS that answers."""
    daemon = rig.last

    def answers() -> bool:
        status = rig.status(daemon)
        running = status["children"]["coredns"]["state"] == "RUNNING"
        return running and former not in rig.corednses() and status["dns"]["answered_by"] == "CoreDNS"

    poll(answers, what="another CoreDNS", deadline=SOON)


def _ends_by(number: int) -> Callable[[FaultRig], None]:
    def act(rig: FaultRig) -> None:
        coredns = _coredns(rig)
        end_by(coredns, number)
        _answers_again(rig, coredns)

    return act


def _hangs(rig: FaultRig) -> None:
    coredns = _coredns(rig)
    coredns.suspend()
    _answers_again(rig, coredns)


def _stopped_for_a_while(rig: FaultRig) -> None:
    coredns = _coredns(rig)
    coredns.suspend()
    time.sleep(2.0)
    coredns.resume()


def _given_up(rig: FaultRig) -> None:
    daemon = rig.last

    def killed() -> bool:
        for coredns in rig.corednses():
            coredns.kill()
        return bool(rig.status(daemon)["children"]["coredns"]["state"] == "FATAL")

    poll(killed, what="CoreDNS given up", deadline=90.0)


def _wrong_program(rig: FaultRig) -> tuple[str, ...]:
    corefile = rig.folder / "wrong"
    corefile.write_text(WRONG.format(port=rig.ports.dns))
    real, flag = need_coredns(), rig.folder / "flag"
    program = failing_program(real, rig.folder / "coredns", flag, f"exec {real} -conf {corefile} -quiet")
    return (f"--dns-coredns-path={program}",)


def _answers_wrongly(rig: FaultRig) -> None:
    (rig.folder / "flag").touch()
    coredns = _coredns(rig)
    end_by(coredns, signal.SIGKILL)
    time.sleep(2 * SHORT)
    (rig.folder / "flag").unlink()
    for wrong in rig.corednses():
        end_by(wrong, signal.SIGKILL)


def _port_shared(rig: FaultRig) -> None:
    """Bind the port beside CoreDNS, as a process of the same user can (SO_REUSEPORT), and answer nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        thief.bind(("127.0.0.1", rig.ports.dns))
        time.sleep(2 * SHORT)


def _port_taken_while_down(rig: FaultRig) -> None:
    """Try to bind the port alone as soon as CoreDNS has ended."""
    coredns = _coredns(rig)
    end_by(coredns, signal.SIGKILL)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        try:
            thief.bind(("127.0.0.1", rig.ports.dns))
        except OSError:
            # The embedded resolver has it.
            pass
        else:
            time.sleep(SHORT)
    _answers_again(rig, coredns)


NAMES = ("names",)
ROWS = (
    Row("killed", _ends_by(signal.SIGKILL), r"coredns ended with signal 9", NAMES, often=True),
    Row("stopped (SIGSTOP) for 2 s", _stopped_for_a_while, loses=NAMES),
    Row("stopped until kumadp kills it", _hangs, r"runs but does not answer by UDP and TCP; killing it", NAMES),
    Row("killed again and again", _given_up, r"the embedded resolver answers in its place", NAMES),
    Row("answers wrongly for 10 s", _answers_wrongly, loses=NAMES, flags=_wrong_program),
    Row("another socket on its port for 10 s", _port_shared, loses=NAMES),
    Row("killed, and its port bound by another process", _port_taken_while_down, r"coredns ended", NAMES),
)


@fault_rows(ROWS)
def test_coredns(fault_rig: FaultRig, row: Row) -> None:
    need_coredns()
    row.run(fault_rig)
