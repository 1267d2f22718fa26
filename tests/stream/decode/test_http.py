"""Sources on real HTTP servers: files, HLS on demand and live, streams without an end."""

from __future__ import annotations

import http.server
import itertools
import threading
from contextlib import closing
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.errors import SourceError
from stream.records import Frame, SourceCode, SourceState, SourceStatus
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LIVE = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}


class Clock:
    """A monotonic clock that waiting moves, and nothing else."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def make_source(url: str, *, fps: float = 1000, **options: Any) -> Source:
    config = SourceConfig(id="cam", uri=url, allow_http=True, **options)
    return Source(config, DecodeConfig(analyse_fps=fps), stop=threading.Event())


def make_decoder(url: str, clock: Clock | None = None, **options: Any):
    config = SourceConfig(id="cam", uri=url, allow_http=True, **options)
    clock = clock or Clock()
    decode = DecodeConfig(analyse_fps=1000)
    return open_decoder(config, decode, session=0, monotonic=clock, wait=clock.wait)


def told(events: Iterable[Frame | SourceStatus]) -> list[tuple[str, str]]:
    return [(e.state, e.code) for e in events if isinstance(e, SourceStatus) and e.changed]


def frames_of(events: Iterable[Frame | SourceStatus | None]) -> list[Frame]:
    return [event for event in events if isinstance(event, Frame)]


READ_TO_THE_END = [
    (SourceState.OPEN, SourceCode.OK),
    (SourceState.ENDED, SourceCode.END_OF_FILE),
]


def write_hls(write_clip, folder: Path, *, over: bool = True, n: int = 100) -> Path:
    """Write a playlist of segments of a second each."""
    write_clip(
        folder / "list.m3u8",
        n=n,
        options=LIVE,
        container_options={"hls_time": "1", "hls_list_size": "0"},
    )
    path = folder / "list.m3u8"
    if not over:
        path.write_text(path.read_text().replace("#EXT-X-ENDLIST\n", ""))
    return path


# --- what has an end ---


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_a_file_is_read_once_to_its_end(write_clip, http_server, read_number, tmp_path, suffix):
    faststart = {"movflags": "faststart"} if suffix == ".mp4" else {}
    write_clip(tmp_path / f"clip{suffix}", container_options=faststart)
    source = make_source(f"{http_server(tmp_path)}/clip{suffix}")
    assert source.is_live  # as long as nobody knows
    events = list(source.events())
    assert told(events) == READ_TO_THE_END
    assert [read_number(f.image) for f in frames_of(events)] == list(range(50))
    assert not source.is_live


def test_hls_on_demand_is_read_once_to_its_end(write_clip, http_server, read_number, tmp_path):
    write_hls(write_clip, tmp_path)
    source = make_source(f"{http_server(tmp_path)}/list.m3u8")
    events = list(source.events())
    assert told(events) == READ_TO_THE_END
    assert [read_number(f.image) for f in frames_of(events)] == list(range(100))
    assert not source.is_live


def test_a_picture_is_read_once(write_clip, http_server, tmp_path):
    write_clip(tmp_path / "1.jpg", n=1, codec="mjpeg", pix_fmt="yuvj420p")
    events = list(make_source(f"{http_server(tmp_path)}/1.jpg").events())
    assert told(events) == READ_TO_THE_END
    assert len(frames_of(events)) == 1


def test_the_gaps_of_a_recording_are_kept(write_clip, http_server, tmp_path):
    times = [0.0, 0.04, 30.0, 30.04]
    write_clip(tmp_path / "motion.mkv", times_s=times)
    with closing(make_decoder(f"{http_server(tmp_path)}/motion.mkv")) as decoder:
        assert [f.stamp.pts_s for f in frames_of(decoder.frames())] == pytest.approx(times)


def test_a_file_that_breaks_off_ends_and_is_not_begun_again(write_clip, live_server, tmp_path):
    data = write_clip(tmp_path / "clip.mkv", n=200).read_bytes()
    url = live_server(data[: len(data) // 2], headers=f"Content-Length: {len(data)}\r\n")
    events = list(make_source(url).events())
    assert told(events) == [
        (SourceState.OPEN, SourceCode.OK),
        (SourceState.ENDED, SourceCode.DISCONNECTED),
    ]


def test_half_a_file_is_not_taken_for_the_whole(write_clip, http_server, tmp_path):
    data = write_clip(tmp_path / "clip.mkv", n=200).read_bytes()
    (tmp_path / "half.mkv").write_bytes(data[: len(data) // 2])
    events = list(make_source(f"{http_server(tmp_path)}/half.mkv").events())
    assert told(events)[-1] == (SourceState.ENDED, SourceCode.INVALID_DATA)


# --- what has none ---


def test_a_stream_without_length_is_live(write_clip, live_server, tmp_path):
    url = live_server(write_clip(tmp_path / "cam.ts", options=LIVE).read_bytes(), stalls=True)
    with closing(make_decoder(url)) as decoder:
        assert decoder.is_live


def test_pictures_pushed_by_a_camera_are_live_whatever_length_they_claim(
    write_clip, live_server, tmp_path
):
    clip = write_clip(tmp_path / "clip.avi", n=8, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(clip)) as container:
        pictures = [bytes(packet) for packet in container.demux() if packet.size]
    head = b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    body = b"".join(head % len(data) + data + b"\r\n" for data in pictures)
    headers = "Content-Type: multipart/x-mixed-replace;boundary=part\r\nContent-Length: 9999999\r\n"
    with closing(make_decoder(live_server(body, headers=headers, stalls=True))) as decoder:
        assert decoder.is_live


def test_live_hls_is_live_and_is_played_at_the_speed_it_was_filmed(
    write_clip, http_server, tmp_path
):
    write_hls(write_clip, tmp_path, over=False)
    clock = Clock()
    with closing(make_decoder(f"{http_server(tmp_path)}/list.m3u8", clock)) as decoder:
        assert decoder.is_live
        frames = list(itertools.islice((f for f in decoder.frames() if f is not None), 60))
    assert len(frames) == 60
    assert clock.now - 500 == pytest.approx(frames[-1].stamp.pts_s)
    assert frames[-1].stamp.pts_s == pytest.approx(59 / 25, abs=0.001)


def write_silent(write_clip, folder: Path, suffix: str, *, says_fps: int = 25) -> bytes:
    """Write two and a half seconds of video at 25 fps, with sound that is announced and no more."""
    clip = write_clip(folder / "clip.mp4", n=62, options=LIVE, time_base=Fraction(1, says_fps))
    path = folder / f"cam{suffix}"
    with (
        av.open(str(clip)) as source,
        av.open(str(path), "w", options={"max_interleave_delta": "1"}) as target,
    ):
        video = target.add_stream_from_template(source.streams.video[0])
        target.add_stream("aac", rate=48_000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    return path.read_bytes()


@pytest.mark.timeout(30)  # FFmpeg's time-out, after which it would open all the same, is longer
@pytest.mark.parametrize("suffix", [".ts", ".flv"])
def test_sound_that_is_announced_and_never_comes_does_not_hold_up_the_video(
    write_clip, live_server, tmp_path, suffix
):
    # No more than this comes: who waits for five seconds of video sees none of it.
    url = live_server(write_silent(write_clip, tmp_path, suffix), stalls=True)
    events = make_source(url, open_timeout_s=60, read_timeout_s=60).events()
    assert told([next(events)]) == [(SourceState.OPEN, SourceCode.OK)]
    events.close()


def test_a_camera_that_says_a_wrong_rate_opens_without_its_sound_at_the_latest_by_the_time_out(
    write_clip, live_server, tmp_path
):
    # FFmpeg counts the seconds that it waits for the sound by the rate in the header of FLV.
    url = live_server(write_silent(write_clip, tmp_path, ".flv", says_fps=60_000), stalls=True)
    events = make_source(url, open_timeout_s=0.5, read_timeout_s=60).events()
    assert told([next(events)]) == [(SourceState.OPEN, SourceCode.OK)]
    events.close()


def test_a_camera_of_which_only_the_sound_goes_on_is_frozen(
    clip, write_sound, live_server, tmp_path
):
    path = write_sound(tmp_path / "cam.ts", clip=clip, seconds=60)
    with av.open(str(path)) as container:
        end = max(p.pos + p.size for p in container.demux(video=0) if p.size)
    data = path.read_bytes()
    url = live_server(data[:end], then=data[end:], stalls=True)
    events = make_source(url, stall_s=0.3).events()
    assert told([next(events)]) == [(SourceState.OPEN, SourceCode.OK)]
    lost = next(e for e in events if isinstance(e, SourceStatus) and e.changed)
    events.close()
    assert lost.code is SourceCode.FROZEN
    assert "no packet of the video" in lost.detail


# --- passwords ---


class Refusing(http.server.BaseHTTPRequestHandler):
    """Asks for a digest that we lack."""

    def do_GET(self) -> None:
        self.send_response(401)
        for algorithm in ("MD5", "SHA-256"):
            challenge = f'Digest realm="cam", nonce="x", qop="auth", algorithm={algorithm}'
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_way_to_give_the_password_that_we_lack_is_named():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = f"http://admin:hunter2@127.0.0.1:{server.server_address[1]}/video?x=1"
        with pytest.raises(SourceError) as raised:
            make_decoder(url)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert raised.value.code is SourceCode.UNAUTHORISED
    assert "Digest with MD5, SHA-256" in str(raised.value)
    assert "hunter2" not in str(raised.value)
