"""A real run whose metrics are read by HTTP, once for all tests of the folder."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml

from stream.publish.embedded import EmbeddedServer
from tests.stream.metrics.scrape import Served
from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.stream.metrics.scrape import Scrape
    from tests.warm_start import WarmProcess

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts(
        *("stream.analyse", "stream.metrics.monitor", "stream.decode.pyav_packets"),
        *("stream.workers.supervisor", "trt_engines.backends.onnx_session"),
    )
    yield starts
    starts.close()


@pytest.fixture(scope="module")
def serve(warm: WarmStarts) -> Callable[..., WarmProcess]:
    """Start the program, with metrics on a free port; as a context it is killed at the end."""
    program = ROOT / "run_stream.py"
    return lambda *arguments: warm.start(
        program, *arguments, "--metrics=127.0.0.1:0", env={"REDIS_URL": ""}
    )


@pytest.fixture(scope="module")
def write_config(
    tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return the function that writes a configuration of sources by id."""

    def write(sources: dict[str, object], sinks: list[dict[str, Any]]) -> Path:
        path = tmp_path_factory.mktemp("config") / "config.yaml"
        how = {"realtime": True, "loop": True}
        options = {
            "sources": [{"id": id_, "uri": str(uri)} | how for id_, uri in sources.items()],
            "score": {"engines": [{"manifest": str(tiny_engine)}]},
            "sinks": sinks,
        }
        path.write_text(yaml.safe_dump(options), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def scraped(
    serve: Callable[..., WarmProcess], write_config: Callable[..., Path], two_faces: Path
) -> Iterator[tuple[Served, Scrape, redis.Redis]]:
    """A run over a clip of two faces and a camera that is not there, after both verdicts.

    The run goes on; a consumer group that never reads is in its Redis.
    """
    with closing(EmbeddedServer()) as server:
        client = redis.Redis(unix_socket_path=server.url.removeprefix("unix://"), protocol=2)
        client.xgroup_create("facewarden:alerts", "siem", mkstream=True)
        config = write_config(
            {"cam": two_faces, "gone": "rtsp://user:pa55word@127.0.0.1:1/stream"},
            [{"kind": "redis", "url": server.url}],
        )
        with serve("--config", config) as process:
            served = Served(process)
            scrape = served.scrape(
                lambda s: (
                    s.value("facewarden_verdicts_total", source="cam") >= 2
                    and s.value("facewarden_redis_publish_total", lane="alerts", result="sent") >= 3
                    and s.value("facewarden_frames_decoded_total", source="cam") > 0
                )
            )
            yield served, scrape, client
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.wait() == 0
        client.close()
