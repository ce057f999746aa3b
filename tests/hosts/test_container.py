"""The image of the Dockerfile, built and run for real, with every right taken away and no network but its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kumadp import __version__
from kumadp.errors import ExitCode
from tests.support.containers import Container, Podman, podman
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.readmes import NAMES, files, lines_of, one_block, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
# An image takes a while: made once, and not on each worker.
pytestmark = [pytest.mark.process, pytest.mark.timeout(900), pytest.mark.xdist_group("container")]

BASE, IMAGE = "localhost/python:slim", "localhost/kumadp:test"
LARGEST = 350 * 10**6
MEMORY = 256 << 20
HARDENED = (
    "--network=none",
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    f"--memory={MEMORY}",
    "--pids-limit=200",
)
DATAPLANE = """
type: Dataplane
mesh: default
name: web
networking:
  address: 127.0.0.1
  inbound:
    - port: 18080
      servicePort: 8080
      serviceAddress: 127.0.0.1
      tags: {kuma.io/service: web, kuma.io/protocol: http}
  outbound:
    - port: 20001
      tags: {kuma.io/service: web}
  admin: {port: 9901}
"""
# Leaves an orphan that ends at once, then serves until SIGTERM and exits with its own code.
APPLICATION = """
import http.server, os, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"yes")
    def log_message(self, *arguments): pass
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    os._exit(0)
os.wait()
def stopped(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    os._exit(7)
signal.signal(signal.SIGTERM, stopped)
print("serving", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""
# RFC 1035: one question for the address of web.mesh; prints what is answered.
QUERIES = """
import socket
question = b"\\x12\\x34\\x01\\x00\\x00\\x01" + b"\\x00" * 6 + b"\\x03web\\x04mesh\\x00\\x00\\x01\\x00\\x01"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(10)
    client.sendto(question, ("127.0.0.1", 15053))
    answer = client.recv(512)
assert answer[:2] == b"\\x12\\x34" and answer[3] & 15 == 0 and answer[7] == 1, answer
print(socket.inet_ntoa(answer[-4:]))
"""
ENTRYPOINT = f"""
FROM {IMAGE}
COPY web.yaml application.py /srv/
ENV KUMA_DATAPLANE_DRAIN_TIME=5s
CMD ["run", "--standalone=/srv/web.yaml", "--min-drain-time=0s", "--", "python3", "/srv/application.py"]
"""


def build_arguments(coredns: Path) -> list[str]:
    """Arguments of a build here: a base from no registry, and the CoreDNS that was built for the other tests."""
    if os.environ.get("KUMADP_TEST_WHOLE_IMAGE"):
        return ["--pull=never", f"--build-arg=PYTHON_IMAGE={BASE}"]
    return ["--pull=never", f"--build-arg=PYTHON_IMAGE={BASE}", f"--build-context=coredns={coredns}"]


@pytest.fixture(scope="module")
def coredns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coredns")
    shutil.copy(need_coredns(), folder / "coredns")
    return folder


@pytest.fixture(scope="module")
def host(coredns: Path) -> Iterator[Podman]:
    with podman() as running:
        running.make_base(BASE)
        yield running


@pytest.fixture(scope="module")
def image(host: Podman, coredns: Path) -> dict[str, Any]:
    """What podman knows of the image."""
    version = f"--build-arg=VERSION={__version__}"
    host.run("build", "--format=docker", version, *build_arguments(coredns), "--tag", IMAGE, ".", timeout=900, cwd=ROOT)
    return host.inspect(IMAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is given to a container."""
    # Its user is another one than ours.
    tmp_path.chmod(0o755)
    (tmp_path / "web.yaml").write_text(DATAPLANE)
    (tmp_path / "application.py").write_text(APPLICATION)
    return tmp_path


def start(host: Podman, folder: Path, *command: str, image: str = IMAGE, more: str = "--init=false") -> Container:
    given = f"--volume={folder}:/etc/kumadp:ro"
    return Container(host, host.run("run", "--detach", *HARDENED, given, more, image, *command))


def run_standalone(host: Podman, folder: Path, *more: str) -> Container:
    flags = ("--standalone=/etc/kumadp/web.yaml", "--drain-time=5s", "--min-drain-time=0s")
    return start(host, folder, "run", *flags, *more)


@pytest.fixture
def container(host: Podman, image: dict[str, Any], folder: Path) -> Iterator[Container]:
    """One in standalone mode, READY."""
    started = run_standalone(host, folder)
    started.run("kumadp", "wait", "--timeout=60s")
    yield started
    host.run("rm", "--force", "--time=0", started.name)


def test_the_image_names_what_it_is(image: dict[str, Any]) -> None:
    config = image["Config"]
    assert config["User"] == "5678:5678"
    assert config["Entrypoint"] == ["/usr/bin/tini", "-s", "--", "kuma-dp"]
    assert config["StopSignal"] == "SIGTERM"
    assert "kumadp wait --once" in " ".join(image["Healthcheck"]["Test"])
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "kumadp"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_is_as_small_as_the_readme_promises(host: Podman, image: dict[str, Any]) -> None:
    assert image["Size"] < LARGEST
    added = image["Size"] - host.inspect(BASE)["Size"]
    (megabytes,) = re.findall(r"adds (\d+) MB", "".join(map(text_of, NAMES)))
    assert added < int(megabytes) * 10**6


def test_the_image_has_no_build_files(host: Podman, image: dict[str, Any]) -> None:
    tools = "gcc cc ld as strip make go git"
    places = "/tmp /root /source /opt/kumadp/bin/pip* /var/lib/apt/lists /var/cache/apt"
    script = f"command -v {tools}; ls -A {places} 2>/dev/null"
    listing = host.start("run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", IMAGE, "-c", script).stdout
    leftovers = {line for line in listing.split() if not line.endswith(":")} - {".bashrc", ".profile", ".wget-hsts"}
    assert leftovers == set()


def test_the_list_of_what_is_installed_is_in_the_image(host: Podman, image: dict[str, Any]) -> None:
    script = """
import json, re
from importlib.metadata import distributions
name = lambda text: re.sub(r"[-_.]+", "-", text).lower()
document = json.load(open("/opt/kumadp/share/sbom/kumadp.cdx.json"))
listed = [document["metadata"]["component"], *document["components"]]
print(json.dumps([
    sorted(f"{each['name']} {each['version']}" for each in listed if each["purl"].startswith("pkg:pypi/")),
    sorted(f"{name(each.metadata['Name'])} {each.version}" for each in distributions()),
    sorted(each["name"] for each in listed),
]))
"""
    done = host.run("run", "--rm", "--network=none", "--entrypoint=/opt/kumadp/bin/python3", IMAGE, "-c", script)
    listed, installed, names = json.loads(done)
    assert listed == installed
    assert "setuptools" not in str(installed)
    assert {"kumadp", "envoy", "github.com/coredns/coredns"} <= set(names)


def test_it_serves_with_no_right_at_all(container: Container) -> None:
    assert container.run("cat", "/proc/1/comm") == "tini"
    status = container.run("cat", "/proc/self/status")
    assert re.search(r"^Uid:\s+5678\s+5678", status, re.MULTILINE)
    assert set(re.findall(r"^Cap\w+:\s+(\w+)$", status, re.MULTILINE)) == {"0" * 16}
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    for place in ("/", "/etc", "/run", "/opt/kumadp", "/var/lib/kumadp"):
        assert container.try_run("touch", f"{place}/written") != 0
    assert container.health() == 0
    assert json.loads(container.run("kumadp", "status", "--output=json"))["ready"]
    assert container.fetch("http://127.0.0.1:9902/ready") == "READY"


def test_coredns_answers_names_of_the_mesh(container: Container) -> None:
    report = json.loads(container.run("kumadp", "status", "--output=json"))
    assert report["children"]["coredns"]["state"] == "RUNNING"
    assert len(container.run("python3", "-c", QUERIES).split()) == 1


def test_the_memory_limit_reaches_envoy(container: Container) -> None:
    dump = container.fetch("http://127.0.0.1:9901/config_dump")
    (limit,) = re.findall(r'"max_heap_size_bytes": "(\d+)"', dump)
    assert int(limit) == MEMORY * 4 // 5


def test_an_envoy_that_dies_is_started_again_and_its_record_outlives_the_container(
    host: Podman, image: dict[str, Any], folder: Path
) -> None:
    state = folder / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 5678, 5678)
    more = f"--volume={state}:/var/lib/kumadp"
    started = start(host, folder, "run", "--standalone=/etc/kumadp/web.yaml", "--min-drain-time=0s", more=more)
    started.run("kumadp", "wait", "--timeout=60s")

    def envoy() -> dict[str, Any]:
        section: dict[str, Any] = json.loads(started.run("kumadp", "status", "--output=json"))["children"]["envoy"]
        return section

    started.run("sh", "-c", f"kill -9 {envoy()['pid']}")
    poll(lambda: envoy()["restarts"] == 1, what="the next Envoy")
    started.run("kumadp", "wait", "--timeout=60s")
    assert started.stop() == 0
    (record,) = (state / "web" / "crashes").glob("*.json")
    assert json.loads(record.read_text())


def test_kubernetes_pre_stop_finds_it(container: Container) -> None:
    manifest = yaml.safe_load((ROOT / "configs" / "kubernetes-sidecar.yaml").read_text())
    (sidecar,) = manifest["spec"]["template"]["spec"]["initContainers"]
    container.run(*sidecar["lifecycle"]["preStop"]["exec"]["command"])
    container.logged("SIGUSR2: draining inbound listeners")
    assert container.stop() == 0


def test_a_stop_drains_and_is_a_clean_end(container: Container) -> None:
    assert container.stop() == 0
    log = container.log()
    assert "READY -> DRAINING" in log
    assert "exit code 0: " in log


def test_what_is_not_ready_is_not_healthy(host: Podman, image: dict[str, Any], folder: Path) -> None:
    away = start(host, folder, "run", "--name=web", "--mesh=default", "--cp-address=http://127.0.0.1:1")
    away.logged("waiting: bootstrap")
    assert away.health() == 1
    assert away.stop() == 0


def test_what_is_wrong_is_its_exit_code(host: Podman, image: dict[str, Any], folder: Path) -> None:
    wrong = start(host, folder, "run", "--standalone=/etc/kumadp/none.yaml")
    assert wrong.wait() == ExitCode.RESOURCE
    assert "none.yaml" in wrong.log()


def test_as_the_entrypoint_of_an_application(host: Podman, image: dict[str, Any], folder: Path) -> None:
    (folder / "Dockerfile").write_text(ENTRYPOINT)
    host.run("build", "--format=docker", "--pull=never", "--tag=localhost/web", str(folder))
    started = start(host, folder, image="localhost/web")
    started.logged("serving")
    assert started.fetch("http://127.0.0.1:18080/") == "yes"
    assert started.fetch("http://127.0.0.1:20001/") == "yes"
    states = "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | cut -c1"
    assert "Z" not in started.run("sh", "-c", states).split()
    assert started.stop() == 7
    assert "got SIGTERM" in started.log()


def test_an_application_that_ends_ends_the_container(host: Podman, image: dict[str, Any], folder: Path) -> None:
    started = run_standalone(host, folder, "--", "sh", "-c", "exit 9")
    assert started.wait() == 9


def test_the_commands_of_readme_work(host: Podman, image: dict[str, Any], coredns: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    for line in lines_of(one_block("sh container")):
        program, command, *rest = shlex.split(line)
        assert program == "podman"
        ours = "--tag=kumadp" in rest
        more = {"build": build_arguments(coredns) if ours else ["--pull=never"], "run": ["--network=none"]}
        host.run(command, *more.get(command, []), *rest, timeout=300, cwd=ROOT if ours else tmp_path)
    assert host.run("ps", "--format={{.Names}}") == ""


def test_the_build_context_has_only_what_the_image_needs() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert {"kumadp", "pyproject.toml", ".ci/build-coredns", ".ci/install-image", ".ci/locks", ".ci/sbom"} <= allowed
    assert not any(name.startswith((".git", "tests", ".venv", ".cache")) for name in allowed)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert not tracked or all(any(file.startswith(name) for file in tracked) for name in allowed)
    assert ".ci/build-coredns" in dockerfile
