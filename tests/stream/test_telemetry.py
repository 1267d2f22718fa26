"""A security product phones nobody: ONNX Runtime's telemetry is off in all that we start.

It looks up its maker's host a few seconds after its import, and writes a device id into the home
folder at once; both stop only where a variable is set before the import (docs/decisions/0023).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from trt_engines.manifest import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 150.0

# In namespaces of its own: our name server instead of the machine's, and nothing else to reach.
# Prints every question, then ends with the code of the command that it ran.
WATCHED = """
import fcntl, socket, struct, subprocess, sys, threading
with socket.socket() as any_socket:
    up = struct.pack("16sh22x", b"lo", 0x41)  # IFF_UP, IFF_RUNNING
    fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
def listen():
    while True:
        print("asked for", server.recv(512)[12:], file=sys.stderr, flush=True)
threading.Thread(target=listen, daemon=True).start()
sys.exit(subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode)
"""


@pytest.fixture
def environment(tmp_path):
    """A user's environment with a new home folder. CI would switch telemetry off by itself."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR")}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def watched(tmp_path, environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command in a network where every name look-up is seen."""
    names = tmp_path / "resolv.conf"
    names.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *("unshare", "--map-root-user", "--net", "--mount"),
                *(sys.executable, "-c", WATCHED, str(names), *map(str, command)),
            ],
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            env=environment,
            cwd=ROOT,
            check=False,
        )

    if shutil.which("unshare") is None or (tried := run("true")).returncode:
        pytest.skip("needs a network namespace")
    assert tried.stderr == ""
    return run


def test_loading_an_engine_leaves_nothing_in_a_new_home_folder(environment):
    manifests = [SHIPPED / "mtcnn" / f"{net}.manifest.json" for net in ("pnet", "rnet")]
    subprocess.run(
        [sys.executable, "-m", "trt_engines", "verify", *map(str, manifests)],
        check=True,
        env=environment,
        cwd=ROOT,
    )
    assert list(Path(environment["HOME"]).rglob("*")) == []


def test_the_watched_network_shows_a_look_up(watched):
    look_up = "import socket; socket.getaddrinfo('camera.example', 554)"
    assert "camera\\x07example" in watched(sys.executable, "-c", look_up).stderr


@pytest.mark.slow
def test_a_stream_looks_up_no_name_and_leaves_nothing_in_a_new_home_folder(
    watched, environment, write_clip, tmp_path
):
    source = {"id": "cam", "uri": str(write_clip(tmp_path / "a.mp4")), "loop": True}
    config = tmp_path / "config.yaml"
    sink = {"kind": "jsonl", "path": str(tmp_path / "messages.jsonl")}
    config.write_text(yaml.safe_dump({"sources": [source | {"realtime": True}], "sinks": [sink]}))
    done = watched(sys.executable, "run_stream.py", "--config", config, "--duration", 10)
    assert done.returncode == 0, done.stderr
    assert "asked for" not in done.stderr
    assert list(Path(environment["HOME"]).rglob("*")) == []
