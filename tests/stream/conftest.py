"""Media and cameras for the tests of `stream`. Everything is made here; nothing is downloaded.

Fixtures that return functions and classes, because test folders are not packages:

- `write_clip`: encodes a clip whose pictures show their number, which `read_number` reads.
- `write_sound`: writes sound, with or without the pictures of a clip.
- `write_two_faces`: encodes a clip of two faces, one bright and one dark; `two_faces`: such a clip.
- `open_analyser`, `read_events`, `facts`: run the straight line by hand.
- `clip`: such a clip, 2 s of H.264 at 25 fps, 320x240; read only. `camera_clip`: for cameras.
- `rtsp_camera`: starts real RTSP cameras in processes of their own, to be killed and frozen.
- `rtsp_stub`, `http_server`, `live_server`: servers that answer as told.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import av
import numpy as np
import pytest
import skimage.data
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

import stream.analyse
from stream.config import DecodeConfig, SourceConfig, StreamConfig
from stream.messages import Envelope, MessageWriter, ModelId, ScanMessage
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from stream.analyse import Analyser
    from stream.messages import OutMessage
    from stream.records import Message, SourceOutput

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
TIME_BASE = Fraction(1, 60_000)
BITS = 8
# Constant quantiser: with a target bit rate, x264 gives other bytes in every run.
X264 = {"preset": "veryfast", "g": "25", "sc_threshold": "0", "threads": "1", "qp": "22"}
# As cameras encode: without B-frames. The RTSP server stamps those in the wrong order.
LIVE_X264 = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips and pictures; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED_DATA


def numbered_picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Show a number as vertical bars, lowest bit left: light is 1, dark is 0."""
    picture = np.full((height, width, 3), 40, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[:, bit * width // BITS : (bit + 1) * width // BITS] = 215
    return picture


@pytest.fixture(scope="session")
def read_number() -> Callable[[Tensor], int]:
    """Return the function that reads the number shown by a picture (H, W, 3), modulo 256."""

    def read(image: Tensor) -> int:
        height, width, _ = image.shape
        middles = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
        return sum(int(image[height // 2, x, 1] > 127) << bit for bit, x in enumerate(middles))

    return read


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Return the function that encodes a clip."""

    def write(
        path: Path,
        *,
        n: int = 50,
        fps: float = 25,
        size: tuple[int, int] = (320, 240),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        times_s: Sequence[float] | None = None,
        picture: Callable[[int, int, int], NDArray[np.uint8]] = numbered_picture,
        options: dict[str, str] | None = None,
        container_options: dict[str, str] | None = None,
        time_base: Fraction | None = None,
        matrix: int | None = None,
        tagged: bool = False,
        rotation: int | None = None,
        aspect: Fraction | None = None,
        metadata: dict[str, str] | None = None,
        first: int = 0,
    ) -> Path:
        """Write `n` pictures (or one per time in `times_s`), numbered from `first`.

        `picture(number, width, height)` draws RGB; `rotation` goes into the display matrix,
        degrees counter-clockwise; `aspect` is a pixel's width over its height; `matrix` is the
        AVColorSpace to convert with, `tagged` says whether the file names it.
        """
        width, height = size
        with av.open(str(path), "w", options=container_options or {}) as container:
            container.metadata.update(metadata or {})
            ticks = time_base or TIME_BASE
            options = options or (X264 if codec == "libx264" else {})
            stream = container.add_stream(codec, rate=Fraction(fps), options=options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.time_base = ticks
            if matrix is not None and tagged:
                stream.codec_context.colorspace = matrix
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if rotation is not None:
                stream.set_display_rotation(rotation)
            times = times_s if times_s is not None else [i / fps for i in range(n)]
            for number, time_s in enumerate(times, first):
                rgb = av.VideoFrame.from_ndarray(picture(number, width, height))
                frame = rgb.reformat(format=pix_fmt, dst_colorspace=matrix)
                frame.pts, frame.time_base = round(time_s / ticks), ticks
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def write_sound() -> Callable[..., Path]:
    """Return the function that writes a file with sound, and the pictures of a clip if given."""

    def write(path: Path, *, clip: Path | None = None, seconds: float = 1) -> Path:
        with ExitStack() as files:
            container = files.enter_context(av.open(str(path), "w"))
            if clip is not None:
                source = files.enter_context(av.open(str(clip)))
                video = container.add_stream_from_template(source.streams.video[0])
            sound = container.add_stream("aac", rate=48_000, layout="mono")
            assert isinstance(sound, AudioStream)
            if clip is not None:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = video
                        container.mux(packet)
            for start in range(0, round(seconds * 48_000), 1024):
                silence = np.zeros((1, 1024), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def clip(write_clip: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of H.264 at 25 fps, 320x240, pictures numbered 0 to 49."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="session")
def camera_clip(write_clip: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `clip`, fit for `rtsp_camera`."""
    return write_clip(tmp_path_factory.mktemp("clip") / "camera.mp4", options=LIVE_X264)


HEAD_PX = 130  # side of the square cut-out of head and collar; the face in it is 60 px high


@functools.cache
def _heads() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the same head bright, and mirrored and dark."""
    portrait = Image.fromarray(skimage.data.astronaut()[:230, 115:335])
    bright = np.asarray(portrait.resize((HEAD_PX, HEAD_PX)), np.float64)
    return bright, bright[:, ::-1] * 0.4 + 20


def two_faces_picture(time_s: float, width: int, height: int) -> NDArray[np.uint8]:
    """Draw a bright face that moves in the left half and a dark one in the right, before noise."""
    picture = np.random.default_rng(round(time_s * 1000)).normal(90, 6, (height, width, 3))
    bright, dark = _heads()
    places = (10 + 15 * time_s, 20 + 8 * time_s), (width - 140 - 12 * time_s, 80 - 5 * time_s)
    for head, place in zip((bright, dark), places, strict=True):
        x, y = map(round, place)
        picture[y : y + HEAD_PX, x : x + HEAD_PX] = head
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def write_two_faces(write_clip: Callable[..., Path]) -> Callable[..., Path]:
    """Return the function that encodes a clip of two moving faces, 400x224.

    `tiny_engine` calls the bright one on the left bona fide, the dark one on the right an attack.
    """

    def write(path: Path, *, fps: float = 25, seconds: float = 3, **how: Any) -> Path:
        return write_clip(
            path,
            n=round(seconds * fps),
            fps=fps,
            size=(400, 224),
            picture=lambda number, width, height: two_faces_picture(number / fps, width, height),
            **how,
        )

    return write


@pytest.fixture(scope="session")
def two_faces(
    write_two_faces: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Such a clip, 3 s at 25 fps; read only."""
    return write_two_faces(tmp_path_factory.mktemp("clip") / "two_faces.mp4")


@pytest.fixture
def open_analyser(tiny_engine: Path) -> Iterator[Callable[..., Analyser]]:
    """Return a function that opens analysers with the tiny engine; all are closed at the end.

    It takes groups of options as `StreamConfig` does.
    """
    with ExitStack() as analysers:

        def open_one(**options: Any) -> Analyser:
            config = StreamConfig.model_validate(
                {
                    "sources": [{"id": "cam", "uri": "unused"}],
                    "score": {"engines": [{"manifest": tiny_engine}]},
                }
                | options
            )
            return analysers.enter_context(stream.analyse.open_analyser(config))

        yield open_one


@pytest.fixture(scope="session")
def read_events() -> Callable[..., list[SourceOutput]]:
    """Return the function that reads a file as a source, at a clock that stands still."""

    def read(path: Path, source_id: str = "cam") -> list[SourceOutput]:
        config = SourceConfig.model_validate({"id": source_id, "uri": str(path)})
        source = Source(
            config,
            DecodeConfig(),
            stop=threading.Event(),
            clock=lambda: 1000.0,
            monotonic=lambda: 0.0,
        )
        return list(source.events())

    return read


@pytest.fixture(scope="session")
def facts() -> Callable[[Sequence[Message | OutMessage]], list[dict[str, Any]]]:
    """Return the function that makes records or messages flat dicts: path -> value.

    What differs with every run is left out: clocks, digests, version.
    """

    def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        match node:
            case dict():
                for key, value in node.items():
                    yield from flat(value, f"{path}.{key}" if path else key)
            case list():
                for number, value in enumerate(node):
                    yield from flat(value, f"{path}.{number}")
            case _:
                yield path, node

    def write(records: Sequence[Message | OutMessage]) -> list[dict[str, Any]]:
        writer = MessageWriter(
            run="0" * 8, version="", models=[ModelId(name="tiny", onnx_sha256="0" * 64)]
        )
        made = (r if isinstance(r, Envelope | ScanMessage) else writer.write(r) for r in records)
        messages = [message.model_dump(mode="json") for message in made]
        changing = {"ts", "latency_ms", "producer"}
        return [
            dict(flat({key: part for key, part in message.items() if key not in changing}))
            for message in messages
        ]

    return write


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class RtspCamera:
    """A camera in a process of its own, which plays a clip over and over.

    Args:
        clip: H.264 or HEVC in .mp4 or .mkv, without B-frames.
        port: to listen on, 127.0.0.1; kept over restarts.
        habits: see odd_camera.py.
    """

    def __init__(self, clip: Path, port: int | None = None, **habits: Any) -> None:
        self.port = port or free_port()
        self._habits = json.dumps(habits)
        self.url = f"rtsp://127.0.0.1:{self.port}/{clip.name}?play_count=0"
        self._folder = clip.parent
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Switch on; return once clients are accepted."""
        program = str(Path(__file__).with_name("odd_camera.py"))
        command = [sys.executable, program, str(self._folder), str(self.port), self._habits]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def kill(self) -> None:
        """Pull the plug; a second call does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        """Stop sending, but keep all connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


@pytest.fixture
def rtsp_camera() -> Iterator[Callable[..., RtspCamera]]:
    """Return a function that starts a camera which plays a clip; all are killed at the end."""
    with ExitStack() as cameras:
        yield lambda clip, **habits: cameras.enter_context(RtspCamera(clip, **habits))


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    return free_port()


class _RtspAnswer(socketserver.StreamRequestHandler):
    """Gives every request the server's one answer, or none."""

    def handle(self) -> None:
        assert isinstance(self.server, _RtspStub)
        sequence = "0"
        for line in self.rfile:
            name, _, value = line.decode().strip().partition(":")
            if name.lower() == "cseq":
                sequence = value.strip()
            elif not name and self.server.status is not None:
                self.server.requests += 1
                challenge = 'WWW-Authenticate: Basic realm="camera"'
                answer = f"RTSP/1.0 {self.server.status}\r\nCSeq: {sequence}\r\n{challenge}\r\n\r\n"
                self.wfile.write(answer.encode())


class _RtspStub(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, status: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _RtspAnswer)
        self.status = status
        self.requests = 0


@pytest.fixture
def rtsp_stub() -> Iterator[Callable[[str | None], str]]:
    """Return a function that starts a server which gives every request the same answer.

    It takes a status such as "404 Not Found", or None to never answer, and returns `host:port`.
    """
    with ExitStack() as servers:

        def start(status: str | None) -> str:
            server = _serve(_RtspStub(status), servers)
            return f"127.0.0.1:{server.server_address[1]}"

        yield start


class _LiveAnswer(socketserver.BaseRequestHandler):
    """Sends the server's bytes without their number; then hangs up, stalls, or goes on slowly."""

    def handle(self) -> None:
        assert isinstance(self.server, _LiveServer)
        asked = b""
        while b"\r\n\r\n" not in asked:  # what is left unread would reset the connection
            asked += self.request.recv(65536)
        head = f"HTTP/1.0 200 OK\r\n{self.server.headers}\r\n"
        try:
            self.request.sendall(head.encode() + self.server.body)
            for start in range(0, len(self.server.then), 1880):
                self.server.over.wait(0.005)
                self.request.sendall(self.server.then[start : start + 1880])
            while self.server.stalls and self.request.recv(1024):
                pass
        except ConnectionError:
            return  # the viewer left


class _LiveServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, body: bytes, then: bytes, headers: str, *, stalls: bool) -> None:
        super().__init__(("127.0.0.1", 0), _LiveAnswer)
        self.body = body
        self.then = then
        self.headers = headers
        self.stalls = stalls
        self.over = threading.Event()


@pytest.fixture
def live_server() -> Iterator[Callable[..., str]]:
    """Return a function that serves some bytes as a live stream; it returns the address.

    Each viewer gets `body`, `then` at about 300 kB/s, and after that is hung up on, or waits for
    ever if it `stalls`. `headers` end in CR LF each.
    """
    with ExitStack() as servers:

        def start(
            body: bytes, *, then: bytes = b"", headers: str = "", stalls: bool = False
        ) -> str:
            server = _LiveServer(body, then, headers, stalls=stalls)
            servers.callback(server.over.set)
            _serve(server, servers)
            return f"http://127.0.0.1:{server.server_address[1]}/live"

        yield start


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name overridden
        """Say nothing."""


@pytest.fixture
def http_server() -> Iterator[Callable[[Path], str]]:
    """Return a function that serves a folder and returns the address, `http://host:port`."""
    with ExitStack() as servers:

        def start(folder: Path) -> str:
            handler = functools.partial(_QuietHandler, directory=str(folder))
            server = _serve(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler), servers)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


def _serve(server: socketserver.TCPServer, servers: ExitStack) -> socketserver.TCPServer:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    servers.callback(thread.join)
    servers.callback(server.server_close)
    servers.callback(server.shutdown)
    thread.start()
    return server
