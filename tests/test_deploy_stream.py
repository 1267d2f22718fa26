"""What deploy/ has for live streams: compose files, their Redis, a systemd unit, a StatefulSet.

Docker and Kubernetes can't run here; what they would be given is looked at, and what runs in the
containers is run without them.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from demo.clip import write_clip
from stream.config import RedisSinkConfig
from stream.errors import ConfigError
from stream.publish.consumer_groups import ConsumerGroups
from stream.subscribe import Subscription
from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
UNIT = DEPLOY / "facewarden.service"
FILES = [COMPOSE / "compose.yaml", COMPOSE / "compose.gpu.yaml"]
LIMIT_S = 60.0

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl"
)
needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None,
    reason="needs redis-server and openssl: apt-get install redis-server openssl",
)


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts("stream.analyse", "stream.decode.pyav_packets", "stream.metrics.monitor")
    yield starts
    starts.close()


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """What prepare.sh makes."""
    folder = tmp_path_factory.mktemp("compose") / "private"
    prepare(folder)
    return folder


def prepare(folder):
    clip = folder.parent / "any.mp4"
    clip.write_bytes(b"a clip")
    command = ["sh", COMPOSE / "prepare.sh", clip]
    subprocess.run(command, env={"PRIVATE": str(folder), "PATH": "/usr/bin:/bin"}, check=True)


def services(path):
    return yaml.safe_load(path.read_text("utf-8"))["services"]


def checked(warm, arguments):
    """Return the configuration that a run with these arguments would have."""
    with warm.start("run_stream.py", *arguments, "--check", env={"REDIS_URL": ""}) as process:
        out, log = process.communicate()
    assert process.wait() == 0, log
    return yaml.safe_load(out)


@needs_openssl
def test_every_file_that_the_compose_files_mount_is_there(private):
    compose = yaml.safe_load(FILES[0].read_text("utf-8"))
    mounted = [s["file"] for s in compose["secrets"].values()]
    for service in compose["services"].values():
        mounted += [v.split(":")[0] for v in service.get("volumes", ()) if v[0] == "."]
        mounted += [service["env_file"]] if "env_file" in service else []
        named = {v.split(":")[0] for v in service.get("volumes", ()) if v[0] != "."}
        assert named <= compose["volumes"].keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        assert set(service.get("depends_on", ())) <= compose["services"].keys()
    for name in mounted:
        inside = name.removeprefix("./")
        if inside.startswith("private/"):
            assert (private / inside.removeprefix("private/")).is_file(), name
        else:
            assert (COMPOSE / name).exists(), name


def test_what_is_built_has_a_dockerfile_and_what_listens_is_for_this_machine_alone():
    for path in FILES:
        for service in services(path).values():
            if "build" in service:
                assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_no_secret_of_the_compose_files_is_in_the_repository():
    listed = subprocess.run(
        ["git", "check-ignore", COMPOSE / "private" / "users.acl"], cwd=ROOT, check=False
    )
    assert listed.returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_program_takes_the_options_that_compose_gives_it(warm, path):
    command = services(path)["facewarden"]["command"]
    config = checked(warm, [part.replace("/etc/facewarden", str(COMPOSE)) for part in command])
    assert config["metrics"] == {"host": "0.0.0.0", "port": 9464}
    assert config["backend"]["kind"] == ("auto" if "gpu" in path.name else "onnxruntime")
    (sink,) = config["sinks"]
    secrets = services(FILES[0])["facewarden"]["secrets"]
    assert sink["ca_file"].removeprefix("/run/secrets/") in secrets
    (job,) = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"facewarden:{config['metrics']['port']}"]}]


@needs_openssl
def test_preparing_again_keeps_passwords_and_certificates(private):
    names = ["ca.pem", "server.pem", "users.acl", "facewarden.env", "grafana-password"]
    before = [(private / name).read_bytes() for name in names]
    prepare(private)
    assert [(private / name).read_bytes() for name in names] == before
    assert private.stat().st_mode & 0o777 == 0o700
    assert (private / "facewarden.env").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def redis_of_compose(private, tmp_path):
    """Debian's redis-server with the configuration, users and certificates of the compose files."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = (COMPOSE / "valkey.conf").read_text("utf-8")
    settings = settings.replace("/run/secrets", str(private)).replace(
        "dir /data", f"dir {tmp_path}"
    )
    settings = settings.replace("tls-port 6379", f"tls-port {port}\nbind 127.0.0.1")
    (tmp_path / "redis.conf").write_text(settings)
    command = ["redis-server", tmp_path / "redis.conf"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + LIMIT_S
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield port
        process.kill()


def url_of(private, user, port):
    line = (private / f"{user}.env").read_text().strip()
    return line.removeprefix("REDIS_URL=").replace("valkey:6379", f"localhost:{port}")


@needs_openssl
@needs_redis
@pytest.mark.redis
def test_a_stream_goes_through_the_redis_of_the_compose_files_to_a_consumer(
    warm, private, redis_of_compose, tmp_path
):
    write_clip(tmp_path / "clip.mp4", 2)
    config = yaml.safe_load((COMPOSE / "cameras.yaml").read_text("utf-8"))
    config["sources"][0]["uri"] = str(tmp_path / "clip.mp4")
    config["sinks"][0] |= {"ca_file": str(private / "ca.pem"), "spool": str(tmp_path / "spool")}
    config["metrics"] = {"port": 0}
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump(config))
    environment = {"REDIS_URL": url_of(private, "facewarden", redis_of_compose)}
    with Subscription(
        url_of(private, "siem", redis_of_compose),
        group="siem",
        from_start=True,
        ca_file=private / "ca.pem",
    ) as alerts:
        with warm.start(
            ROOT / "run_stream.py", "--config", tmp_path / "cameras.yaml", env=environment
        ) as process:
            _, log = process.communicate()
            assert process.wait() == 0, log
        assert "refuses" not in log
        assert "PUBLISH fails" not in log
        assert next(alerts)["source"]["id"] == "camera"
    options = RedisSinkConfig(
        url=url_of(private, "facewarden", redis_of_compose), ca_file=private / "ca.pem"
    )
    groups = ConsumerGroups(options)
    assert {lag.group for lag in groups.lags()} == {"siem"}
    groups.close()
    for who, why in (("siem:wrong@", "invalid username-password"), ("", "Authentication required")):
        url = f"rediss://{who}localhost:{redis_of_compose}"
        with pytest.raises(ConfigError, match=why):
            Subscription(url, group="siem", ca_file=private / "ca.pem").__enter__()


# --- systemd ---


def unit_command():
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
    return line.split()


def test_the_unit_gives_the_program_options_that_it_has(warm):
    _, program, *arguments = unit_command()
    assert program.endswith("/run_stream.py")
    config = checked(
        warm, [a.replace("/etc/facewarden", str(ROOT / "configs" / "stream")) for a in arguments]
    )
    stop_s = int(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text("utf-8"), re.MULTILINE)[0])
    assert stop_s > config["shutdown_s"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd"
)
def test_systemd_takes_the_unit_and_finds_it_confined(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace(unit_command()[0], shutil.which("true")))
    verified = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    # fmt: off
    subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
                   check=True, capture_output=True)
    # fmt: on


# --- Kubernetes ---


@pytest.fixture(scope="module")
def statefulset():
    return yaml.safe_load((DEPLOY / "stream-statefulset.yaml").read_text("utf-8"))["spec"]


@pytest.fixture(scope="module")
def container(statefulset):
    (only,) = statefulset["template"]["spec"]["containers"]
    return only


def test_the_pods_of_the_statefulset_are_whole(statefulset, container):
    pod = statefulset["template"]
    assert statefulset["selector"]["matchLabels"] == pod["metadata"]["labels"]
    volumes = {v["name"] for v in pod["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in statefulset["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    (port,) = container["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert container[probe]["httpGet"]["path"] in ("/healthz", "/readyz")
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_each_pod_of_the_statefulset_is_a_shard_with_options_that_the_program_has(
    statefulset, container, warm
):
    (command,) = container["args"]
    arguments = command.split("run_stream.py ")[1].replace("/etc/facewarden", "configs/stream")
    sources = []
    for pod in range(statefulset["replicas"]):
        name = f"facewarden-{pod}"
        script = f'HOSTNAME={name}; printf "%s\\n" {arguments}'
        said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        config = checked(warm, said.stdout.splitlines())
        sources += [source["id"] for source in config["sources"]]
        assert config["metrics"]["port"] == container["ports"][0]["containerPort"]
        grace_s = statefulset["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > config["shutdown_s"]
    assert sorted(sources) == ["desk", "gate", "lobby"]
