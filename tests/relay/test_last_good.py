"""The last good configuration: the content of the file, what is never in it, and which files are ignored."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.basic_auth.v3 import basic_auth_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.host.log import secrets
from kumadp.host.private_file import write_private
from kumadp.relay import last_good
from kumadp.relay.last_good import Binding, LastGood, LastGoodContent, LastGoodStore
from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, SECRET, encode_response
from kumadp.relay.secret_scan import why_secret
from kumadp.relay.snapshot import RelaySnapshot, TypeSnapshot
from tests.relay.test_secret_scan import CERTIFICATE, KEY, der, packed, raw, source
from tests.relay.test_secret_scan import PKCS8 as FORM
from tests.relay.test_secret_scan import RSA as OTHER_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

CAPTURE = Path(__file__).resolve().parents[1] / "data" / "captures" / "kuma-2.13.5" / "full" / "bootstrap.yaml"
BINDING = Binding("default", "backend-01", "https://cp.example:5678", "1.40.0")
DAY = 86400.0
NOW = 1_800_000_000.0


def bootstrap() -> dict[str, Any]:
    return parse_bootstrap(CAPTURE.read_bytes())


def response(type_url: str, *resources: bytes) -> bytes:
    return encode_response(type_url, "v1", resources, "1")


def plain_cluster(name: str = "backend") -> bytes:
    return raw(cluster_pb2.Cluster(name=name))


CLEAN = response(CLUSTER, plain_cluster())


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def memory(**accepted: bytes) -> RelaySnapshot:
    urls = {"clusters": CLUSTER, "listeners": LISTENER, "endpoints": ENDPOINTS, "secrets": SECRET}
    return RelaySnapshot(tuple(TypeSnapshot(urls[kind], ("a",), data) for kind, data in accepted.items()))


class StoreWithClock:
    """A store with a clock that the test sets."""

    def __init__(self, directory: Path, binding: Binding = BINDING, max_age: float = DAY) -> None:
        self.now = NOW
        self.content: LastGoodContent | None = LastGoodContent(bootstrap(), ".:15053 {}", memory(clusters=CLEAN))
        self.store = LastGoodStore(directory, binding, lambda: self.content, max_age=max_age, clock=lambda: self.now)

    async def write(self, content: LastGoodContent | None = None) -> None:
        """Write at once and be done."""
        if content is not None:
            self.content = content
        self.store.schedule_write()
        async with asyncio.timeout(30):
            await self.store.close()


async def written(directory: Path, snapshot: RelaySnapshot | None = None) -> bytes:
    stored = StoreWithClock(directory)
    await stored.write(LastGoodContent(bootstrap(), None, snapshot) if snapshot is not None else None)
    assert stored.store.status()["error"] == ""
    return stored.store.path.read_bytes()


async def loaded(directory: Path, now: float = NOW, binding: Binding = BINDING) -> LastGood | None:
    stored = StoreWithClock(directory, binding)
    stored.now = now
    return await stored.store.load()


@pytest.fixture
def caplog_relay(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="kumadp.relay")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_secrets", ())


async def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    endpoints = response(ENDPOINTS)
    await written(tmp_path, memory(clusters=CLEAN, endpoints=endpoints))
    snapshot = await loaded(tmp_path, NOW + 60)
    assert snapshot is not None
    assert snapshot.memory == memory(clusters=CLEAN, endpoints=endpoints)
    assert snapshot.left_out == {}
    assert snapshot.confirmed == NOW
    # The relay makes the same of it.
    ours, theirs = (rewrite_for_relay(tree, "/run/x.sock") for tree in (snapshot.bootstrap, bootstrap()))
    assert ours == theirs


async def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        await written(tmp_path)
    finally:
        os.umask(earlier)
    assert files(tmp_path) == [last_good.FILE]
    assert stat.S_IMODE((tmp_path / last_good.FILE).stat().st_mode) == 0o600


async def test_a_missing_file_is_no_warning(tmp_path: Path, caplog_relay: Callable[[], list[str]]) -> None:
    assert await loaded(tmp_path) is None
    assert caplog_relay() == []


def planted() -> dict[str, tuple[str, bytes, bytes]]:
    """By name: the type it stands in, the response, and the bytes that must be nowhere."""
    certificate = common_pb2.TlsCertificate(certificate_chain=source(CERTIFICATE), private_key=source(KEY))
    der_key = der(OTHER_KEY, FORM)
    inner = common_pb2.TlsCertificate(certificate_chain=source(CERTIFICATE), private_key=source(der_key))

    def external(one: common_pb2.TlsCertificate) -> bytes:
        made = cluster_pb2.Cluster(name="external")
        context = tls_pb2.UpstreamTlsContext(common_tls_context=tls_pb2.CommonTlsContext(tls_certificates=[one]))
        made.transport_socket.typed_config.CopyFrom(packed(context))
        return response(CLUSTER, plain_cluster(), raw(made))

    manager = hcm_pb2.HttpConnectionManager()
    users = basic_auth_pb2.BasicAuth(users=source("user:{SHA}t0pS3cr3tUser="))
    manager.http_filters.add(name="auth").typed_config.CopyFrom(packed(users))
    protected = listener_pb2.Listener(name="inbound")
    protected.filter_chains.add().filters.add(name="hcm").typed_config.CopyFrom(packed(manager))
    hmac = secret_pb2.Secret(name="hmac", generic_secret=secret_pb2.GenericSecret(secret=source("t0pS3cr3tHmac")))
    identity = secret_pb2.Secret(name="identity", tls_certificate=certificate)
    ticket = cluster_pb2.Cluster(name="external")
    ticket.metadata.filter_metadata["oauth"].update({"client_secret": "t0pS3cr3tClient"})
    return {
        "client key of an external service": (CLUSTER, external(certificate), KEY.splitlines()[1]),
        "the same in DER": (CLUSTER, external(inner), der_key[40:80]),
        "users of basic auth": (LISTENER, response(LISTENER, raw(protected)), b"t0pS3cr3tUser"),
        "identity": (SECRET, response(SECRET, raw(identity)), KEY.splitlines()[1]),
        "HMAC of OAuth": (SECRET, response(SECRET, raw(hmac)), b"t0pS3cr3tHmac"),
        "a client secret in metadata": (CLUSTER, response(CLUSTER, raw(ticket)), b"t0pS3cr3tClient"),
    }


PLANTED = planted()


@pytest.mark.parametrize("name", PLANTED)
async def test_a_planted_secret_is_not_in_the_file(tmp_path: Path, name: str) -> None:
    type_url, data, needle = PLANTED[name]
    assert needle in data
    other = next(url for url in (CLUSTER, LISTENER) if url != type_url)
    stored = StoreWithClock(tmp_path)
    snapshot = RelaySnapshot((TypeSnapshot(type_url, ("a",), data, data), TypeSnapshot(other, (), response(other))))
    await stored.write(LastGoodContent(bootstrap(), None, snapshot))
    content = stored.store.path.read_bytes()
    assert needle not in content
    assert data not in content
    assert set(stored.store.status()["left_out"]) == {type_url}  # type: ignore[call-overload]
    again = await loaded(tmp_path)
    assert again is not None
    assert set(again.left_out) == {type_url}
    # Its names stay, so that they are requested at once.
    assert again.memory.types == (TypeSnapshot(type_url, ("a",)), TypeSnapshot(other, (), response(other)))


async def test_what_was_not_accepted_is_not_written(tmp_path: Path) -> None:
    newer = response(CLUSTER, plain_cluster("newer-but-rejected"))
    snapshot = RelaySnapshot((TypeSnapshot(CLUSTER, (), CLEAN, newer, (b"digest",)),))
    assert b"newer-but-rejected" not in await written(tmp_path, snapshot)
    again = await loaded(tmp_path)
    assert again is not None
    assert again.memory.types == (TypeSnapshot(CLUSTER, (), CLEAN, None, (b"digest",)),)


async def test_the_token_is_not_in_the_file_and_the_ca_is(tmp_path: Path) -> None:
    tree = bootstrap()
    for config in (tree["dynamicResources"]["adsConfig"], tree["hdsConfig"]):
        config["grpcServices"][0]["initialMetadata"][0]["value"] = "eyJt0k3n"
    stored = StoreWithClock(tmp_path)
    await stored.write(LastGoodContent(tree, None, memory(clusters=CLEAN)))
    content = stored.store.path.read_bytes()
    assert b"eyJt0k3n" not in content
    assert b"authorization" not in content
    assert tree["staticResources"]["secrets"][0]["validationContext"]["trustedCa"]["inlineBytes"].encode() in content


async def test_a_response_with_a_secret_that_was_read_elsewhere_is_left_out(tmp_path: Path) -> None:
    secrets.register("known-to-us-alone")
    stored = StoreWithClock(tmp_path)
    await stored.write(
        LastGoodContent(bootstrap(), None, memory(clusters=response(CLUSTER, plain_cluster("known-to-us-alone"))))
    )
    assert b"known-to-us-alone" not in stored.store.path.read_bytes()
    assert stored.store.status()["left_out"] == {CLUSTER: "it holds a secret that was read elsewhere"}


async def test_a_bootstrap_with_a_secret_is_not_written_at_all(
    tmp_path: Path, caplog_relay: Callable[[], list[str]]
) -> None:
    secrets.register("known-to-us-alone")
    with_key, with_token = bootstrap(), bootstrap()
    with_key["staticResources"]["secrets"].append({"tlsCertificate": {"privateKey": {"inlineString": KEY.decode()}}})
    with_token["node"]["metadata"]["x"] = "known-to-us-alone"
    for tree, reason in ((with_key, "privateKey"), (with_token, "read elsewhere")):
        stored = StoreWithClock(tmp_path)
        await stored.write(LastGoodContent(tree, None, memory(clusters=CLEAN)))
        assert files(tmp_path) == []
        assert reason in str(stored.store.status()["error"])
    assert len(caplog_relay()) == 2
    assert "known-to-us-alone" not in "".join(caplog_relay())


Spoil = dict[str, "Callable[[Path], object]"]
SPOILED: Spoil = {
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
    "cut short is damaged": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a head alone is damaged": lambda path: os.truncate(path, len(last_good.MAGIC) + 5),
    "empty was not written by this version": lambda path: path.write_bytes(b""),
    "text was not written by this version": lambda path: path.write_bytes(b"bootstrap: {}\n" * 100),
    "others could read": lambda path: path.chmod(0o640),
    "others could change": lambda path: path.chmod(0o602),
}


@pytest.mark.parametrize("name", SPOILED)
async def test_a_damaged_file_is_ignored(tmp_path: Path, name: str, caplog_relay: Callable[[], list[str]]) -> None:
    await written(tmp_path)
    path = tmp_path / last_good.FILE
    mtime = path.stat().st_mtime
    SPOILED[name](path)
    os.utime(path, (mtime, mtime))
    assert await loaded(tmp_path) is None
    (warning,) = caplog_relay()
    assert str(path) in warning
    reason = "others could read or change it" if "others" in name else name[name.find("damaged") :]
    assert (reason if "damaged" in name or "others" in name else "was not written by this version") in warning


async def test_an_intact_file_with_another_format_is_ignored(
    tmp_path: Path, caplog_relay: Callable[[], list[str]]
) -> None:
    import hashlib

    import msgspec

    for body in (msgspec.msgpack.encode({"bootstrap": {}}), b"\xc1", b""):
        path = tmp_path / last_good.FILE
        path.write_bytes(last_good.MAGIC + hashlib.sha256(body).digest() + body)
        path.chmod(0o600)
        os.utime(path, (NOW, NOW))
        assert await loaded(tmp_path) is None
    assert [warning.rpartition(": ")[2] for warning in caplog_relay()] == ["it has another format"] * 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("mesh", "other"), ("name", "backend-02"), ("control_plane", "https://other:5678"), ("envoy", "1.41.0")],
)
async def test_a_file_of_another_data_plane_is_ignored(
    tmp_path: Path, field: str, value: str, caplog_relay: Callable[[], list[str]]
) -> None:
    await written(tmp_path)
    theirs = {name: getattr(BINDING, name) for name in Binding.__struct_fields__} | {field: value}
    assert await loaded(tmp_path, binding=Binding(**theirs)) is None
    (warning,) = caplog_relay()
    assert f"it is for {field.replace('_', ' ')} {getattr(BINDING, field)!r}, not {value!r}" in warning


async def test_an_old_file_is_ignored(tmp_path: Path, caplog_relay: Callable[[], list[str]]) -> None:
    await written(tmp_path)
    assert await loaded(tmp_path, NOW + DAY - 1) is not None
    assert await loaded(tmp_path, NOW + DAY + 1800) is None
    (warning,) = caplog_relay()
    assert "it is 24.5 hours old (--last-good-max-age)" in warning


async def test_a_clock_that_is_behind_by_a_time_zone_costs_a_warning(
    tmp_path: Path, caplog_relay: Callable[[], list[str]]
) -> None:
    await written(tmp_path)
    assert await loaded(tmp_path, NOW - 3600) is not None
    (warning,) = caplog_relay()
    assert "1.0 hours in the future (is this host's clock right?)" in warning


async def test_a_file_of_the_future_is_ignored(tmp_path: Path, caplog_relay: Callable[[], list[str]]) -> None:
    await written(tmp_path)
    assert await loaded(tmp_path, NOW - 60) is not None
    assert await loaded(tmp_path, NOW - DAY) is None
    (warning,) = caplog_relay()
    assert "clock" in warning


async def test_anything_but_a_regular_file_is_ignored(tmp_path: Path, caplog_relay: Callable[[], list[str]]) -> None:
    path = tmp_path / last_good.FILE
    path.mkdir()
    assert await loaded(tmp_path) is None
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert await loaded(tmp_path) is None
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert await loaded(tmp_path) is None
    assert len(caplog_relay()) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_file_of_another_user_is_ignored(tmp_path: Path, caplog_relay: Callable[[], list[str]]) -> None:
    await written(tmp_path)
    os.chown(tmp_path / last_good.FILE, 12345, -1)
    assert await loaded(tmp_path) is None
    assert "another user" in caplog_relay()[0]


async def test_its_age_counts_from_the_last_confirmation(tmp_path: Path) -> None:
    stored = StoreWithClock(tmp_path)
    await stored.write()
    earlier = stored.store.path.read_bytes()
    stored.now += 10 * DAY
    await stored.store.confirm()
    assert stored.store.path.read_bytes() == earlier
    snapshot = await loaded(tmp_path, stored.now + 3600)
    assert snapshot is not None
    assert snapshot.confirmed == stored.now


async def test_a_file_that_was_only_read_is_not_confirmed(tmp_path: Path) -> None:
    await written(tmp_path)
    stored = StoreWithClock(tmp_path)
    stored.now += 3600
    assert await stored.store.load() is not None
    await stored.store.confirm()
    assert stored.store.path.stat().st_mtime == NOW


async def test_a_file_that_could_not_be_replaced_is_not_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = StoreWithClock(tmp_path)
    stored.store.schedule_write()
    async with asyncio.timeout(30):
        while stored.store.status()["written"] is None:
            await asyncio.sleep(0.01)

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kumadp.relay.last_good.write_private", full)
    await stored.write()
    stored.now += 3600
    await stored.store.confirm()
    assert stored.store.path.stat().st_mtime == NOW


async def test_changes_within_the_pause_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0
    real = last_good.write_copy

    def count(*arguments: Any) -> None:
        nonlocal writes
        writes += 1
        real(*arguments)

    monkeypatch.setattr(last_good, "write_copy", count)
    stored = StoreWithClock(tmp_path)
    # Made before: it takes longer than a busy host may spend between two changes that come together.
    tree = bootstrap()
    contents = [
        LastGoodContent(tree, None, memory(clusters=response(CLUSTER, plain_cluster(f"c-{number}"))))
        for number in range(100)
    ]
    for stored.content in contents:
        stored.store.schedule_write()
        await asyncio.sleep(0)
    await stored.store.close()
    assert writes == 1
    assert b"c-99" in stored.store.path.read_bytes()


async def test_a_change_during_a_write_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_good, "DEBOUNCE", 0.0)
    stored = StoreWithClock(tmp_path)
    real = last_good.write_copy
    loop = asyncio.get_running_loop()
    numbers = iter(range(1, 3))

    def change(*arguments: Any) -> None:
        if (number := next(numbers, None)) is not None:
            stored.content = LastGoodContent(
                bootstrap(), None, memory(clusters=response(CLUSTER, plain_cluster(f"c-{number}")))
            )
            loop.call_soon_threadsafe(stored.store.schedule_write)
        real(*arguments)

    monkeypatch.setattr(last_good, "write_copy", change)
    stored.store.schedule_write()
    async with asyncio.timeout(30):
        while not stored.store.path.exists() or b"c-2" not in stored.store.path.read_bytes():
            await asyncio.sleep(0.01)
    await stored.store.close()


async def test_without_content_nothing_is_written(tmp_path: Path) -> None:
    stored = StoreWithClock(tmp_path)
    stored.content = None
    await stored.write()
    assert files(tmp_path) == []


async def test_a_full_disk_is_one_warning_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog_relay: Callable[[], list[str]]
) -> None:
    earlier = await written(tmp_path)

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    stored = StoreWithClock(tmp_path)
    monkeypatch.setattr(last_good, "DEBOUNCE", 0.0)
    stored.store._pause = 0.0
    monkeypatch.setattr("kumadp.relay.last_good.write_private", full)
    for _ in range(3):
        stored.store.schedule_write()
        await stored.store.flush()
    assert stored.store.status()["error"] == "No space left on device"
    assert stored.store.path.read_bytes() == earlier
    assert len(caplog_relay()) == 1
    monkeypatch.setattr("kumadp.relay.last_good.write_private", write_private)
    await stored.write(LastGoodContent(bootstrap(), None, memory(clusters=response(CLUSTER, plain_cluster("after")))))
    assert stored.store.status()["error"] == ""
    assert b"after" in stored.store.path.read_bytes()


async def test_a_real_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    import resource
    import signal

    earlier = await written(tmp_path)
    big = memory(clusters=response(CLUSTER, *(plain_cluster(f"cluster-{number}") for number in range(2000))))
    stored = StoreWithClock(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(earlier) + 1000, hard))
    try:
        await stored.write(LastGoodContent(bootstrap(), None, big))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert stored.store.status()["error"] == "File too large"
    assert files(tmp_path) == [last_good.FILE]
    assert stored.store.path.read_bytes() == earlier


async def test_unchanged_responses_are_not_scanned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[bytes] = []

    def count(one: bytes) -> str:
        searched.append(one)
        return why_secret(one)

    monkeypatch.setattr("kumadp.relay.last_good.why_secret", count)
    monkeypatch.setattr(last_good, "DEBOUNCE", 0.0)
    stored = StoreWithClock(tmp_path)
    stored.store._pause = 0.0
    listeners = response(LISTENER, raw(listener_pb2.Listener(name="one")))
    for name in ("a", "b"):
        clusters = response(CLUSTER, plain_cluster(name))
        stored.content = LastGoodContent(bootstrap(), None, memory(clusters=clusters, listeners=listeners))
        stored.store.schedule_write()
        async with asyncio.timeout(30):
            while stored.store._task is not None:
                await asyncio.sleep(0.01)
    assert searched == [plain_cluster("a"), raw(listener_pb2.Listener(name="one")), plain_cluster("b")]


def test_a_file_name_is_no_secret() -> None:
    one = common_pb2.TlsCertificate(private_key=base_pb2.DataSource(filename="/etc/key.pem"))
    made = cluster_pb2.Cluster(name="external")
    context = tls_pb2.UpstreamTlsContext(common_tls_context=tls_pb2.CommonTlsContext(tls_certificates=[one]))
    made.transport_socket.typed_config.CopyFrom(packed(context))
    assert last_good.why_left_out(TypeSnapshot(CLUSTER, (), response(CLUSTER, raw(made)))) == ""


async def test_a_write_that_failed_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further change may come once there is room again."""
    monkeypatch.setattr(last_good, "RETRY_AFTER", 0.01)
    directory = tmp_path / "state"
    stored = StoreWithClock(directory)
    stored.store.schedule_write()
    async with asyncio.timeout(30):
        while not stored.store.status()["error"]:
            await asyncio.sleep(0.01)
        directory.mkdir(mode=0o700)
        while stored.store.status()["error"]:
            await asyncio.sleep(0.01)
    await stored.store.close()
    assert await loaded(directory) is not None


async def test_what_holds_a_secret_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_secrets", ("backend-01",))
    stored = StoreWithClock(tmp_path)
    stored.store.schedule_write()
    task = stored.store._task
    assert task is not None
    async with asyncio.timeout(30):
        await task
    assert stored.store.status()["error"] != ""
