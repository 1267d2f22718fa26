"""Who may do what, and TLS: against Debian's redis-server, which can do both."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from stream.config import RedisSinkConfig
from stream.errors import ConfigError
from stream.publish.redis_stream import RedisSink
from stream.subscribe import Subscription

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(
        not (shutil.which("redis-server") and shutil.which("openssl")),
        reason="needs redis-server and openssl: apt-get install redis-server openssl",
    ),
]

DOCS = Path(__file__).parents[3] / "docs" / "messages.md"
PASSWORD = "S3cret/word"
KEYS = ("alerts", "feeds", "sources", "tracks", "status:*")


class Server(NamedTuple):
    folder: Path
    tls_port: int
    admin: redis.Redis

    @property
    def socket(self) -> str:
        return f"{self.folder}/redis.sock"


def _openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, cwd=cwd, capture_output=True)


def _make_certificates(folder: Path) -> None:
    """Write two CAs, ca.pem and another-ca.pem, and server.pem: for localhost, by the first."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "another-ca"):
        # fmt: off
        _openssl("req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}",
                 "-addext", "keyUsage=critical,keyCertSign",
                 "-keyout", f"{name}.key", "-out", f"{name}.pem", cwd=folder)
        # fmt: on
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    # fmt: off
    _openssl("req", *key, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr",
             cwd=folder)
    _openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
             "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem", cwd=folder)
    # fmt: on


@pytest.fixture(scope="module")
def server():
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    _make_certificates(folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = {
        "port": "0",
        "tls-port": str(port),
        "bind": "127.0.0.1",
        "unixsocket": f"{folder}/redis.sock",
        "tls-cert-file": f"{folder}/server.pem",
        "tls-key-file": f"{folder}/server.key",
        "tls-ca-cert-file": f"{folder}/ca.pem",
        "tls-auth-clients": "no",
        "save": "",
        "dir": str(folder),
        "logfile": f"{folder}/log",
    }
    command = ["redis-server", *(part for k, v in options.items() for part in (f"--{k}", v))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        admin = redis.Redis(unix_socket_path=options["unixsocket"])
        try:
            deadline = time.monotonic() + 20
            while not Path(options["unixsocket"]).exists():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.02)
            yield Server(folder, port, admin)
        finally:
            admin.close()
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _empty(server):
    server.admin.flushall()


def _documented_rule(user: str) -> list[str]:
    rules = DOCS.read_text().split("\n")
    (line,) = (rule for rule in rules if rule.startswith(f"ACL SETUSER {user} "))
    return line.replace(">PASSWORD", f">{PASSWORD}").split()


def _permissions(user: str) -> list[str]:
    return [word for word in _documented_rule(user) if word.startswith("+")]


@pytest.fixture
def open_sink(tmp_path):
    sinks = []

    def open_one(url, **options):
        config = RedisSinkConfig(url=url, spool=tmp_path / "spool", timeout_s=5, **options)
        sinks.append(RedisSink(config, run="0a1b2c3d", heartbeat_s=5))
        return sinks[-1]

    yield open_one
    for sink in sinks:
        sink.close()


def _url(server: Server, user: str = "facewarden", password: str = "S3cret%2Fword") -> str:
    return f"unix://{user}:{password}@{server.socket}"


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_documented_rule_is_enough_for_a_producer(
    server, redis_server, open_sink, messages, caplog, kind
):
    admin = {"redis": server.admin, "valkey": redis_server.client}[kind]
    url = {"redis": f"unix://{server.socket}", "valkey": redis_server.url}[kind]
    admin.execute_command(*_documented_rule("facewarden"))
    admin.acl_log_reset()
    with caplog.at_level(logging.WARNING):
        sink = open_sink(url.replace("unix://", "unix://facewarden:S3cret%2Fword@"))
        step = [messages.alert(), messages.feed_alert(), messages.source_alert()]
        sink.publish([*step, messages.score(), messages.status()])
    keys = {key.decode() for key in admin.scan_iter()}
    kinds = ("alerts", "feeds", "sources", "tracks", "status:cam1")
    assert keys == {f"facewarden:{kind}" for kind in kinds}
    assert not caplog.records
    assert admin.acl_log() == []


@pytest.mark.parametrize("permission", _permissions("facewarden"))
def test_documented_rule_is_the_least_for_a_producer(server, open_sink, permission):
    server.admin.execute_command(*_documented_rule("facewarden"))
    server.admin.execute_command("ACL SETUSER facewarden", permission.replace("+", "-"))
    with pytest.raises(ConfigError, match=r"refuses us: .*no permissions.*; see docs/messages.md"):
        open_sink(_url(server))


@pytest.mark.parametrize(
    "narrower",
    [
        "resetchannels",
        *(
            f"resetkeys {' '.join(f'~facewarden:{key}' for key in KEYS if key != denied)}"
            for denied in KEYS
        ),
    ],
)
def test_key_or_channel_that_is_denied_is_found_at_the_start(server, open_sink, narrower):
    server.admin.execute_command(*_documented_rule("facewarden"))
    server.admin.execute_command("ACL SETUSER facewarden", *narrower.split())
    with pytest.raises(ConfigError, match=r"refuses us: .*no permissions to access"):
        open_sink(_url(server))


def test_documented_rule_is_enough_for_a_consumer(server, open_sink, messages):
    server.admin.execute_command(*_documented_rule("facewarden"))
    server.admin.execute_command(*_documented_rule("siem"))
    server.admin.acl_log_reset()
    with Subscription(_url(server, "siem"), group="siem", reclaim_s=0.05) as alerts:
        for stream in ("alerts", "feeds", "sources"):  # go to the dead letters
            server.admin.xadd(f"facewarden:{stream}", {"metadata": "no JSON"})
        step = [messages.alert(ordinal=1), messages.feed_alert(), messages.source_alert()]
        open_sink(_url(server)).publish(step)
        types = {next(alerts)["event"]["type"] for _ in step}
        assert types == {"track.verdict", "feed.looped", "source.lost"}
        alerts._reclaim_at = 0  # takes over its own, to ask how often it was delivered
        time.sleep(0.06)
        assert alerts._left_behind()
    for stream in ("alerts", "feeds", "sources"):
        assert server.admin.xlen(f"facewarden:{stream}:dlq") == 1
    assert server.admin.acl_log() == []


@pytest.mark.parametrize(
    ("user", "password"), [("facewarden", "S3cret-but-wrong"), ("nobody", "S3cret%2Fword")]
)
def test_wrong_password_ends_the_start_without_being_told(
    server, open_sink, caplog, user, password
):
    server.admin.execute_command(*_documented_rule("facewarden"))
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as caught:
        open_sink(_url(server, user, password))
    assert "refuses us: invalid username-password pair" in str(caught.value)
    assert "S3cret" not in str(caught.value) + caplog.text


def test_missing_password_ends_the_start(server, open_sink):
    server.admin.execute_command("ACL SETUSER default resetpass >other")
    try:
        with pytest.raises(ConfigError, match="refuses us: Authentication required"):
            open_sink(f"unix://{server.socket}")
    finally:
        server.admin.execute_command("ACL SETUSER default nopass")


def test_database_that_does_not_exist_ends_the_start(server, open_sink):
    with pytest.raises(ConfigError, match="refuses us: DB index is out of range"):
        open_sink(f"unix://{server.socket}?db=99")


def test_messages_go_over_tls_when_the_certificate_is_right(server, open_sink, messages):
    sink = open_sink(f"rediss://localhost:{server.tls_port}", ca_file=server.folder / "ca.pem")
    sink.publish([messages.alert()])
    assert server.admin.xlen("facewarden:alerts") == 1


@pytest.mark.parametrize(
    ("host", "ca", "says"),
    [
        ("localhost", "another-ca.pem", "certificate verify failed"),
        ("localhost", None, "certificate verify failed"),
        ("127.0.0.1", "ca.pem", "IP address mismatch"),
        ("localhost", "ca.key", "no certificate or crl found"),
    ],
    ids=["signed by another CA", "CA not named", "other host name", "no certificate in the file"],
)
def test_server_that_cannot_prove_who_it_is_ends_the_start(
    server, open_sink, messages, host, ca, says
):
    with pytest.raises(ConfigError, match=f"(?i)refuses us: .*{says}"):
        open_sink(
            f"rediss://fw:{PASSWORD.replace('/', '%2F')}@{host}:{server.tls_port}",
            ca_file=ca and server.folder / ca,
        )


def test_consumer_reads_over_tls(server, open_sink, messages):
    url, ca_file = f"rediss://localhost:{server.tls_port}", server.folder / "ca.pem"
    with Subscription(url, group="siem", ca_file=ca_file) as alerts:
        open_sink(url, ca_file=ca_file).publish([messages.alert()])
        assert next(alerts)["event"]["type"] == "track.verdict"
