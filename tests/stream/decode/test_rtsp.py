"""Sources on real RTSP servers: cameras that are killed, frozen, wrong, or say no."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.records import Frame, SourceCode, SourceState, SourceStatus
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.rtsp

PATIENCE_S = 60  # of the tests; nothing below takes so long unless it is broken


def make_source(uri: str, *, fps: float = 5, stop: threading.Event | None = None, **o: Any):
    options = {
        "open_timeout_s": 2,
        "read_timeout_s": 1,
        "retry_first_s": 0.05,
        "retry_max_s": 0.2,
        **o,
    }
    config = SourceConfig(id="cam", uri=uri, **options)
    return Source(config, DecodeConfig(analyse_fps=fps), stop=stop or threading.Event())


def until(
    events: Iterator[Frame | SourceStatus], wanted: Callable[[Frame | SourceStatus], bool]
) -> Frame | SourceStatus:
    """Consume events up to the first that is wanted, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    for event in events:
        if wanted(event):
            return event
        assert time.monotonic() < deadline
    raise AssertionError("the source ended")


def is_told(state: SourceState, code: SourceCode) -> Callable[[Frame | SourceStatus], bool]:
    return lambda e: isinstance(e, SourceStatus) and (e.state, e.code) == (state, code)


def is_frame(event: Frame | SourceStatus) -> bool:
    return isinstance(event, Frame)


OPENED = is_told(SourceState.OPEN, SourceCode.OK)


def first_loss(uri: str, **options: Any) -> SourceStatus:
    """Return what a source says when its first try fails."""
    events = make_source(uri, **options).events()
    status = next(events)
    events.close()
    assert isinstance(status, SourceStatus)
    assert status.state is SourceState.LOST
    return status


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_camera_gives_its_frames_in_order_and_in_time(
    rtsp_camera, write_clip, camera_clip, read_number, tmp_path, codec
):
    path = camera_clip
    if codec == "libx265":
        options = {"x265-params": "log-level=none:keyint=25:bframes=0"}
        path = write_clip(tmp_path / "cam.mp4", codec=codec, options=options)
    camera = rtsp_camera(path)
    events = make_source(camera.url, fps=1000).events()
    assert OPENED(next(events))
    frames = list(itertools.islice(filter(is_frame, events), 75))
    events.close()
    assert [read_number(f.image) for f in frames] == [i % 50 for i in range(75)]
    times = [f.stamp.pts_s for f in frames]
    # FFmpeg gives an RTSP stream's first frame no stamp.
    assert times == pytest.approx([i / 25 for i in range(75)], abs=0.05)
    steps = [b - a for a, b in itertools.pairwise(times[1:])]
    assert steps == pytest.approx([1 / 25] * 73, abs=0.002)
    assert [f.stamp.index for f in frames] == list(range(75))


def test_a_camera_that_is_killed_is_lost_and_comes_back_as_a_new_session(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip)
    events = make_source(camera.url).events()
    first = until(events, is_frame)
    camera.kill()
    lost = until(events, is_told(SourceState.LOST, SourceCode.DISCONNECTED))
    until(events, is_told(SourceState.LOST, SourceCode.REFUSED))
    camera.start()
    opened = until(events, OPENED)
    again = until(events, is_frame)
    events.close()
    assert (first.stamp.session, lost.session) == (0, 0)
    assert (opened.session, again.stamp.session, again.stamp.pts_s) == (1, 1, 0)
    assert opened.frames_seen >= lost.frames_seen > 0


def test_a_camera_that_freezes_is_told_from_one_that_went_away(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip)
    events = make_source(camera.url).events()
    until(events, is_frame)
    camera.freeze()
    frozen_at = time.monotonic()
    lost = until(events, lambda e: isinstance(e, SourceStatus) and e.changed)
    assert lost.code is SourceCode.FROZEN
    assert time.monotonic() - frozen_at < PATIENCE_S / 2
    until(events, is_told(SourceState.LOST, SourceCode.UNREACHABLE))
    camera.thaw()
    assert until(events, is_frame).stamp.session == 1
    events.close()


def test_a_camera_of_which_only_the_sound_goes_on_is_frozen(
    rtsp_camera, camera_clip, write_sound, tmp_path
):
    path = write_sound(tmp_path / "cam.mp4", clip=camera_clip, seconds=300)
    events = make_source(rtsp_camera(path).url, stall_s=0.5).events()
    until(events, is_frame)
    lost = until(events, lambda e: isinstance(e, SourceStatus) and e.changed)
    events.close()
    assert lost.code is SourceCode.FROZEN


def test_a_camera_without_video_has_no_video(rtsp_camera, write_sound, tmp_path):
    camera = rtsp_camera(write_sound(tmp_path / "cam.mp4"))
    assert first_loss(camera.url).code is SourceCode.NO_VIDEO


def test_a_wrong_path_is_not_found(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip)
    status = first_loss(f"rtsp://127.0.0.1:{camera.port}/wrong.mp4")
    assert status.code is SourceCode.NOT_FOUND
    assert "wrong.mp4" in status.detail


def test_nothing_on_the_port_is_refused(unused_port):
    assert first_loss(f"rtsp://127.0.0.1:{unused_port}/x").code is SourceCode.REFUSED


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("401 Unauthorized", SourceCode.UNAUTHORISED),
        ("403 Forbidden", SourceCode.UNAUTHORISED),
        ("404 Not Found", SourceCode.NOT_FOUND),
        ("453 Not Enough Bandwidth", SourceCode.REFUSED),
        ("503 Service Unavailable", SourceCode.REFUSED),
    ],
)
def test_a_camera_that_says_no_is_quoted_right(rtsp_stub, answer, code):
    host = rtsp_stub(answer)
    status = first_loss(f"rtsp://admin:hunter2@{host}/x")
    assert status.code is code
    assert "hunter2" not in repr(status)


def test_a_camera_that_never_answers_is_unreachable(rtsp_stub):
    assert first_loss(f"rtsp://{rtsp_stub(None)}/x", open_timeout_s=0.5).code is (
        SourceCode.UNREACHABLE
    )


def test_a_host_that_has_no_address_is_unreachable():
    assert first_loss("rtsp://no-such-host.invalid/x").code is SourceCode.UNREACHABLE


def test_stop_ends_a_camera_within_the_read_timeout(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip)
    stop = threading.Event()
    events = make_source(camera.url, stop=stop).events()
    until(events, is_frame)
    camera.freeze()
    stop.set()
    last = until(events, lambda e: isinstance(e, SourceStatus) and e.state is SourceState.ENDED)
    assert last.code is SourceCode.STOPPED
    assert list(events) == []


def test_heartbeats_come_from_a_healthy_camera(rtsp_camera, camera_clip):
    events = make_source(rtsp_camera(camera_clip).url, heartbeat_s=0.1, fps=0.1).events()
    until(events, is_frame)
    beat = until(events, lambda e: isinstance(e, SourceStatus))
    events.close()
    assert (beat.state, beat.code, beat.changed) == (SourceState.OPEN, SourceCode.OK, False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_a_camera_behind_tls_is_reached(rtsp_camera, camera_clip, tmp_path):
    camera = rtsp_camera(camera_clip)
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command = [*request.split(), "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    command = [sys.executable, "-c", TLS_PROXY, str(camera.port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline())
        url = camera.url.replace("rtsp:", "rtsps:").replace(f":{camera.port}", f":{port}")
        events = make_source(url).events()
        try:
            assert until(events, is_frame).stamp.width == 320
        finally:
            events.close()
            proxy.kill()


TLS_PROXY = """
import asyncio, ssl, sys
async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def serve(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("certificate.pem", "key.pem")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
