"""The demo's applications, and the expectations that its check has of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from kumadp.cli.demo.check import CheckError, expect_address, expect_http, expect_unknown, expectations, http_get
from kumadp.cli.demo.stage import DemoPorts
from kumadp.cli.demo.workload import WorkloadServer, serve
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def port() -> Iterator[int]:
    """Port of a workload named web."""
    server = WorkloadServer("web", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_its_paths(port: int) -> None:
    assert http_get(port, "/")[1].startswith("hello from web (pid ")
    assert http_get(port, "/healthz?verbose=1") == (200, "ok\n")
    assert http_get(port, "/other") == (404, "web has only /, /healthz and /slow\n")


def test_an_expectation_that_is_met(port: int) -> None:
    expect_http(port, "/", 200, "hello from web")
    expect_http(port, "/other", 404)


def test_an_expectation_that_is_not_met(port: int) -> None:
    with pytest.raises(
        CheckError, match=rf"GET 127.0.0.1:{port}/ returned 200 'hello from .*', not 200 'hello from db'"
    ):
        expect_http(port, "/", 200, "hello from db")
    with pytest.raises(CheckError, match=r"returned 404 .*, not 200"):
        expect_http(port, "/other", 200)


def test_nothing_listens() -> None:
    port = free_port()
    with pytest.raises(CheckError, match=f"no answer from 127.0.0.1:{port}: "):
        http_get(port, "/")
    with pytest.raises(CheckError, match=f"no answer about backend.mesh from 127.0.0.1:{port}: "):
        expect_address(port, "backend.mesh", "127.0.0.1")
    with pytest.raises(CheckError, match=r"no answer about nobody\.mesh"):
        expect_unknown(port, "nobody.mesh")


def test_a_port_that_is_taken(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve([f"web={port}"]) == 1
    assert capsys.readouterr().err == f"workload web cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_names_of_expectations_are_unique() -> None:
    names = [name for name, _ in expectations(DemoPorts())]
    assert len(set(names)) == len(names) == 11
