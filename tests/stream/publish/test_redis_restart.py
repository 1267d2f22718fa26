"""What we wrote is still there after Redis was killed: against Debian's redis-server, with an AOF.

Redis before 8.4.4 (Debian 12 has 7.0) drops transactions when it replays its AOF, if the user
`default` may not do what is in them. docs/decisions/0021.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from stream.config import RedisSinkConfig
from stream.publish.redis_stream import RedisSink

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(
        not shutil.which("redis-server"),
        reason="needs redis-server: apt-get install redis-server",
    ),
]

DOCS = Path(__file__).parents[3] / "docs" / "messages.md"
RESTRICTED = ["off", "on nopass resetkeys -@all +ping"]


class PersistentServer:
    """Writes every command to its AOF before it answers."""

    def __init__(self, folder: Path, default_user: str) -> None:
        start = "ACL SETUSER facewarden "
        (rule,) = (line for line in DOCS.read_text().split("\n") if line.startswith(start))
        (folder / "redis.conf").write_text(
            f"port 0\nunixsocket {folder}/redis.sock\ndir {folder}\nlogfile {folder}/log\n"
            'save ""\nappendonly yes\nappendfsync always\n'
            f"user default {default_user}\n"
            "user admin on nopass ~* &* +@all\n"
            f"user {rule.removeprefix('ACL SETUSER ').replace('PASSWORD', 'secret')}\n"
        )
        self._folder = folder
        self.url = f"unix://facewarden:secret@{folder}/redis.sock"
        self.client = redis.Redis(
            unix_socket_path=f"{folder}/redis.sock",
            username="admin",
            password="any",
            retry=Retry(ConstantBackoff(0.05), 400, (redis.ConnectionError, OSError)),
        )
        self.start()

    def start(self) -> None:
        command = ["redis-server", str(self._folder / "redis.conf")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.client.ping()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.client.close()
        self.kill()


@pytest.fixture(params=RESTRICTED, ids=["off", "without permissions"])
def server(request):
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    server = PersistentServer(folder, request.param)
    yield server
    server.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_server_that_is_killed_still_has_every_message_when_it_comes_back(
    server, messages, tmp_path
):
    config = RedisSinkConfig(url=server.url, spool=tmp_path)
    sink = RedisSink(config, run="0a1b2c3d", heartbeat_s=5, source_ids=["cam1"])
    for n in range(20):
        sink.publish(
            [
                *(messages.alert(ordinal=n, track=track) for track in range(7)),
                messages.alert(ordinal=n + 20, track=1),
                *(messages.score(frame=n, track=track) for track in range(7)),
                messages.source_alert(ordinal=n),
                messages.status(),
            ]
        )
    server.kill()
    sink.publish([messages.alert(ordinal=99, track=track) for track in range(7)])  # spooled
    server.start()
    sink.close()
    server.kill()
    server.start()
    ids = {
        stream: {
            json.loads(fields[b"metadata"])["event"]["id"]
            for _, fields in server.client.xrange(f"facewarden:{stream}")
        }
        for stream in ("alerts", "sources", "tracks")
    }
    assert {stream: len(of_stream) for stream, of_stream in ids.items()} == {
        "alerts": 20 * 8 + 7,
        "sources": 20,
        "tracks": 20 * 7,
    }
