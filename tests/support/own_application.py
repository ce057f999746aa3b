"""An application that kumadp starts (``kumadp run ... -- CMD``) and that records what happens to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.support.poll import poll

if TYPE_CHECKING:
    from pathlib import Path

# Serves on a port: `/` at once, `/slow` once the file `go` is there. Each signal is a line in `signals`; the first one
# that stops it calls the outbound, writes the answer to `called`, and exits with 3 when the file `end` is there.
_PROGRAM = """
import http.server, os, pathlib, signal, sys, threading, time, urllib.request
folder, port, outbound = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def until(name):
    while not (folder / name).exists():
        time.sleep(0.02)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            (folder / "entered").touch()
            until("go")
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"app")
    def log_message(self, *arguments): pass
def call():
    try:
        answer = urllib.request.urlopen(outbound, timeout=5).read().decode()
    except OSError as error:
        answer = str(error)
    (folder / "called").write_text(answer)
    until("end")
    os._exit(3)
ending = []
def on_signal(number, frame):
    with (folder / "signals").open("a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if number != signal.SIGHUP and not ending:
        ending.append(threading.Thread(target=call))
        ending[0].start()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, on_signal)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
(folder / "environ").write_text("\\n".join(f"{name}={value}" for name, value in os.environ.items()))
(folder / "pid.new").write_text(str(os.getpid()))
(folder / "pid.new").rename(folder / "pid")
server.serve_forever()
"""


class OwnApplication:
    """The application's folder; ``command`` starts it."""

    def __init__(self, folder: Path, port: int, outbound: int) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "program.py").write_text(_PROGRAM)
        self.command = (
            "--",
            sys.executable,
            str(folder / "program.py"),
            str(folder),
            str(port),
            f"http://127.0.0.1:{outbound}/",
        )

    def read(self, name: str) -> str:
        """A file of it; empty while it is not there."""
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def touch(self, name: str) -> None:
        """Make a file that it waits for."""
        (self.folder / name).touch()

    @property
    def pid(self) -> int:
        """Its pid, once it serves."""
        return int(poll(lambda: self.read("pid"), what="the application"))

    @property
    def signals(self) -> list[str]:
        """Return the signals that it got."""
        return self.read("signals").split()
