from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis

from stream.errors import ConfigError
from stream.publish.embedded import EmbeddedServer, running_servers

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[3]


def test_embedded_server_lies_in_a_folder_for_its_user_alone_and_leaves_nothing():
    with closing(EmbeddedServer()) as server:
        folder = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_embedded_server_outlives_ctrl_c_so_that_it_can_take_the_last_messages():
    with closing(EmbeddedServer()) as server, redis.Redis.from_url(server.url) as client:
        os.kill(client.info("server")["process_id"], signal.SIGINT)
        assert client.blpop("nothing", timeout=0.3) is None  # still there after a moment
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_embedded_server_ends_with_a_process_that_forgets_to_close_it():
    script = (
        "from stream.publish.embedded import EmbeddedServer\n"
        "import redis\n"
        "server = EmbeddedServer()\n"
        "print(server.url, redis.Redis.from_url(server.url).info('server')['process_id'])\n"
    )
    made = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    url, pid = made.stdout.split()
    assert not Path(url.removeprefix("unix://")).parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def wait_until(true):
    """Wait for what another process does; the time limit of the test is the only one."""
    while not true():
        time.sleep(0.01)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_embedded_server_ends_and_leaves_nothing_when_its_process_is_killed():
    script = (
        "from stream.publish.embedded import EmbeddedServer\n"
        "import redis\n"
        "server = EmbeddedServer()\n"
        "pid = redis.Redis.from_url(server.url).info('server')['process_id']\n"
        "print(server.url, pid, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        url, pid = process.stdout.readline().split()
        assert alive(int(pid))
        process.kill()
    wait_until(lambda: not alive(int(pid)))
    wait_until(lambda: not Path(url.removeprefix("unix://")).parent.exists())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_to_all_processes_of_a_service_do_not_end_the_server_before_us(number):
    with closing(EmbeddedServer()) as server, redis.Redis.from_url(server.url) as client:
        os.kill(client.info("server")["process_id"], number)
        os.kill(server._program.pid, number)
        assert client.blpop("nothing", timeout=0.3) is None  # still there after a moment
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_folders_left_behind_are_swept_at_the_next_start_and_those_in_use_are_not(
    short_folder, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    left = Path(tempfile.mkdtemp(prefix="facewarden-redis-"))
    (left / "data").mkdir()
    (left / "data" / "valkey.log").write_text("an earlier life")
    other = Path(tempfile.mkdtemp(prefix="somebody-elses-"))
    with closing(EmbeddedServer()) as one, closing(EmbeddedServer()) as another:
        assert not left.exists()
        assert other.exists()
        assert running_servers() == sorted([one.url, another.url])
        with redis.Redis.from_url(one.url) as client:
            assert client.ping()
    assert list(short_folder.iterdir()) == [other]


def test_folder_whose_process_lives_is_not_swept_though_its_server_does_not_answer(
    short_folder, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    with closing(EmbeddedServer()) as server, redis.Redis.from_url(server.url) as client:
        pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))
        EmbeddedServer().close()
        assert Path(server.url.removeprefix("unix://")).parent.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to give files away")
def test_folders_of_other_users_are_not_swept(short_folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    left = Path(tempfile.mkdtemp(prefix="facewarden-redis-"))
    os.chown(left, 1234, -1)
    EmbeddedServer().close()
    assert left.exists()


def test_machine_without_a_folder_for_temporary_files_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"needs a folder for temporary files .*set TMPDIR"):
        EmbeddedServer()


def test_server_that_does_not_start_says_why_on_one_line(tmp_path, monkeypatch):
    deep = tmp_path / ("deep" * 30)  # the path of a Unix socket may have 107 characters at most
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ConfigError, match=r"does not start .*name one of your own") as caught:
        EmbeddedServer()
    assert "\n" not in str(caught.value)
    assert not list(deep.iterdir())
