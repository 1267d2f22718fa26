"""A container with a read-only root: no home, no folder for temporary files, nowhere to write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UNSHARE = ["unshare", "--mount", "--map-root-user", "--"]
READ_ONLY = "mount --make-rprivate / && mount -o remount,bind,ro / && cd / && exec"

SINK = """
import logging, sys
from stream.config import RedisSinkConfig
from stream.errors import StreamError
from stream.publish import open_sink

logging.basicConfig(format="%(message)s")
url, spool = (arg or None for arg in sys.argv[1:])
try:
    open_sink(RedisSinkConfig(url=url, spool=spool), run="0a1b2c3d", heartbeat_s=5).close()
except StreamError as error:
    print(f"{type(error).__name__}: {error}")
else:
    print("fine")
"""


def _can_make_one() -> bool:
    try:
        script = f'{READ_ONLY} sh -c "! touch /tmp/{os.getpid()} /var/tmp/{os.getpid()}"'
        command = [*UNSHARE, "sh", "-c", script]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(
        not _can_make_one(), reason="needs a namespace of its own: with a read-only root"
    ),
]


@pytest.fixture
def open_in_container():
    """Open and close a sink there; return what it said."""

    def run(url="", spool=""):
        python = f'"{sys.executable}" -B -c "$SINK" "{url}" "{spool}"'
        done = subprocess.run(
            [*UNSHARE, "sh", "-c", f"{READ_ONLY} {python}"],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"SINK": SINK, "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        )
        return done.stdout.splitlines()

    return run


def test_sink_opens_and_says_that_nothing_can_be_kept_on_disk(open_in_container, redis_server):
    warning, result = open_in_container(redis_server.url)
    assert "no folder for temporary files" in warning
    assert "this sink's `spool`" in warning
    assert result == "fine"


@pytest.mark.parametrize("spool", ["/srv/spool", "/srv"])
def test_spool_that_cannot_be_written_is_an_error_that_names_it(
    open_in_container, redis_server, spool
):
    (result,) = open_in_container(redis_server.url, spool)
    assert result.startswith(f"ConfigError: spool {spool}")
    assert "Read-only file system" in result


def test_embedded_server_says_what_it_needs(open_in_container):
    (result,) = open_in_container()
    assert result.startswith("ConfigError: the embedded Redis server needs a folder for temporary")
    assert "TMPDIR" in result
