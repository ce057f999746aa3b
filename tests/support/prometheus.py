"""A real Prometheus, and its promtool, on the metrics of a running kumadp over its control socket."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.needs import missing
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.unix_http import UnixConnection

if TYPE_CHECKING:
    from collections.abc import Iterator


def need_prometheus(program: str = "prometheus") -> Path:
    """Path of a real Prometheus, or of promtool, which comes with it."""
    path = shutil.which(program)
    if path is None:
        missing(f"no {program} here: apt-get install prometheus")
    return Path(path)


def lint(text: bytes) -> str:
    """Return the complaints of promtool about an exposition, empty if none."""
    tool = need_prometheus("promtool")
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode() + (f"exit code {done.returncode}" if done.returncode else "")


def promtool(*arguments: str) -> str:
    """Return its output; AssertionError if it fails."""
    done = subprocess.run([need_prometheus("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Bridge(ThreadingHTTPServer):
    """Serve ``/metrics`` of a control socket on a port of loopback, since Prometheus scrapes only ports."""

    daemon_threads = True

    def __init__(self, socket: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.socket_path = socket
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Pass(BaseHTTPRequestHandler):
    server: Bridge

    def do_GET(self) -> None:
        connection = UnixConnection(self.server.socket_path, 5)
        try:
            connection.request("GET", self.path, headers={"Accept": self.headers.get("Accept", "*/*")})
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            self.send_error(502)
            return
        finally:
            connection.close()
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers["content-type"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


class Prometheus:
    """A Prometheus that scrapes these ports each 0.5 s."""

    def __init__(self, folder: Path, *ports: int, rules: Path | None = None, features: str = "") -> None:
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(rules)] if rules is not None else [],
            "scrape_configs": [
                {"job_name": "kumadp", "static_configs": [{"targets": [f"127.0.0.1:{number}" for number in ports]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    need_prometheus(),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    *([f"--enable-feature={features}"] if features else []),
                ],
                stdout=out,
                stderr=out,
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression now; AssertionError if it is invalid, with the error."""
        result: list[dict[str, Any]] = self._api("query", query=expression)["result"]
        return result

    def firing(self) -> dict[str, dict[str, str]]:
        """Labels of alerts that fire, by name."""
        return {
            alert["labels"]["alertname"]: alert["labels"]
            for alert in self._api("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def is_up(self) -> bool:
        """Whether it has scraped."""
        with contextlib.suppress(OSError):
            return bool(self.query("up == 1"))
        assert self._process.poll() is None, self.log.read_text()
        return False

    def _api(self, what: str, **query: str) -> Any:
        try:
            with urllib.request.urlopen(
                f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(query)}", timeout=10
            ) as got:
                return json.load(got)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise OSError("not ready yet") from None
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@contextlib.contextmanager
def scraped(folder: Path, socket: Path, rules: Path | None = None, features: str = "") -> Iterator[Prometheus]:
    """A Prometheus that scrapes what is behind this socket."""
    need_prometheus()
    bridge = Bridge(socket)
    try:
        prometheus = Prometheus(folder, bridge.port, rules=rules, features=features)
        try:
            poll(prometheus.is_up, what="a first scrape", deadline=40)
            yield prometheus
        finally:
            prometheus.close()
    finally:
        bridge.close()
