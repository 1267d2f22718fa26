"""Sources on real RTSP servers: cameras that are killed, frozen, wrong, or say no."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.errors import ConfigError
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


def test_sound_that_a_camera_announces_and_does_not_give_is_not_asked_for(
    rtsp_camera, camera_clip, write_sound, tmp_path
):
    path = write_sound(tmp_path / "cam.mp4", clip=camera_clip)
    events = make_source(rtsp_camera(path, sound="refused").url).events()
    assert OPENED(next(events))
    events.close()


def test_a_camera_that_does_not_give_its_video_alone_is_asked_for_all(
    rtsp_camera, camera_clip, write_sound, tmp_path
):
    path = write_sound(tmp_path / "cam.mp4", clip=camera_clip, seconds=300)
    events = make_source(rtsp_camera(path, sound="forced").url).events()
    assert OPENED(next(events))
    events.close()


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


# --- transports ---


def test_a_camera_that_offers_udp_only_is_read_by_udp(
    rtsp_camera, camera_clip, read_number, caplog
):
    caplog.set_level("INFO")
    camera = rtsp_camera(camera_clip, transport="udp")
    events = make_source(camera.url, fps=1000).events()
    assert OPENED(next(events))
    frames = list(itertools.islice(filter(is_frame, events), 60))
    events.close()
    assert [read_number(f.image) for f in frames[:45]] == list(range(45))
    assert "source cam: no video over TCP; trying UDP" in caplog.messages


def test_a_transport_may_be_told(rtsp_camera, camera_clip, caplog):
    caplog.set_level("INFO")
    camera = rtsp_camera(camera_clip, transport="udp")
    events = make_source(camera.url, rtsp_transport="udp").events()
    assert OPENED(next(events))
    events.close()
    assert not any("trying UDP" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("offered", "told", "words"),
    [
        ("none", "auto", "neither TCP nor UDP"),
        ("none", "tcp", "no TCP"),
        ("udp", "tcp", "no TCP"),
        ("tcp", "udp", "no UDP"),
    ],
)
def test_a_camera_without_a_transport_in_common_says_so(
    rtsp_camera, camera_clip, offered, told, words
):
    camera = rtsp_camera(camera_clip, transport=offered)
    status = first_loss(camera.url, rtsp_transport=told)
    assert status.code is SourceCode.UNSUPPORTED_TRANSPORT
    assert words in status.detail
    assert "rtsp_transport" in status.detail


def test_a_camera_whose_udp_is_blocked_is_frozen_and_the_message_says_udp(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip, transport="udp", deaf=True)
    status = first_loss(camera.url, open_timeout_s=1)
    assert status.code is SourceCode.FROZEN
    assert "UDP" in status.detail


def test_a_camera_that_answers_for_another_transport_is_read_by_udp(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip, transport="udp", stubborn=True)
    events = make_source(camera.url).events()
    assert OPENED(next(events))
    events.close()


def test_a_camera_behind_tls_is_not_read_by_udp():
    with pytest.raises(ConfigError, match="source cam: rtsps:// protects TCP alone"):
        make_source("rtsps://127.0.0.1/x", rtsp_transport="udp")


# --- joining in the middle ---


@pytest.fixture(scope="module")
def rare_keys(write_clip, tmp_path_factory):
    """A clip of 12 s with key frames every 4 s, 10 fps."""
    options = {"preset": "ultrafast", "g": "40", "sc_threshold": "0", "threads": "1"}
    path = tmp_path_factory.mktemp("clip") / "rare.mp4"
    return write_clip(path, n=120, fps=10, options=options)


@pytest.mark.parametrize("bare", [False, True])
def test_a_stream_joined_long_before_its_next_key_frame_is_waited_for(
    rtsp_camera, rare_keys, read_number, bare
):
    camera = rtsp_camera(rare_keys, join_at_s=1, bare=bare)
    events = make_source(camera.url, fps=1000, stall_s=0.5, open_timeout_s=0.7).events()
    assert OPENED(next(events))
    assert read_number(until(events, is_frame).image) == 40
    events.close()


def test_a_stream_without_key_frames_says_so_in_the_end(rtsp_camera, rare_keys):
    camera = rtsp_camera(rare_keys, join_at_s=1)
    status = first_loss(camera.url, stall_s=0.2, key_frame_s=0.5, open_timeout_s=0.7)
    assert status.code is SourceCode.FROZEN
    assert "no key frame" in status.detail
    assert "key_frame_s" in status.detail


def test_a_stream_that_falls_silent_before_its_first_key_frame_is_frozen(rtsp_camera, rare_keys):
    camera = rtsp_camera(rare_keys, join_at_s=1, deaf=True)
    status = first_loss(camera.url, open_timeout_s=0.7, read_timeout_s=0.7)
    assert status.code is SourceCode.FROZEN
    assert "no packet of the video" in status.detail


# --- clocks ---


def test_stamps_that_leap_are_bridged_and_do_not_stay_ahead(rtsp_camera, camera_clip):
    camera = rtsp_camera(camera_clip, leap_at_s=1, leap_s=3)
    events = make_source(camera.url, fps=1000).events()
    assert OPENED(next(events))
    frames = list(itertools.islice(filter(is_frame, events), 60))
    events.close()
    steps = [b.stamp.pts_s - a.stamp.pts_s for a, b in itertools.pairwise(frames)]
    assert len(steps) == 59
    assert max(steps) < 2.5  # 3.04 as stamped; less if this machine did not stop for as long
    elapsed = frames[-1].stamp.captured_at - frames[0].stamp.captured_at
    assert frames[-1].stamp.pts_s < max(elapsed, 59 / 25) + 1


# --- passwords ---

MD5 = 'Digest realm="cam", nonce="c0ffee", algorithm=MD5'
SHA256 = 'Digest realm="cam", nonce="bed", algorithm=SHA-256'
SHA512 = 'Digest realm="cam", nonce="bad", algorithm="SHA-512-256"'
BASIC = 'Basic realm="cam"'


@pytest.mark.parametrize(
    "challenges",
    [
        [BASIC],
        [MD5],
        ['Digest realm="cam", nonce="c0ffee"'],
        [MD5, BASIC],
        [SHA256, MD5],
        [MD5, SHA256],
        [SHA512, MD5, SHA256, BASIC],
        [f"{MD5}, {SHA256}"],
    ],
)
def test_a_password_is_given_by_md5_wherever_that_is_on_offer(rtsp_camera, camera_clip, challenges):
    camera = rtsp_camera(camera_clip, challenges=challenges, user="admin", password="h:n@2")
    events = make_source(camera.url.replace("//", "//admin:h%3An%402@")).events()
    assert OPENED(next(events))
    events.close()


@pytest.mark.parametrize(
    ("challenges", "named"),
    [
        ([SHA256], "SHA-256"),
        ([SHA256, SHA512], "SHA-256, SHA-512-256"),
        ([SHA256, BASIC], "SHA-256"),
        (['Digest realm="cam", nonce="x", algorithm=M\udcff\x1bD6'], r"Mÿ\x1bD6"),
    ],
)
def test_a_way_to_give_the_password_that_we_lack_is_named(
    rtsp_camera, camera_clip, challenges, named
):
    camera = rtsp_camera(camera_clip, challenges=challenges, user="admin", password="hunter2")
    status = first_loss(camera.url.replace("//", "//admin:hunter2@"))
    assert status.code is SourceCode.UNAUTHORISED
    assert named in status.detail
    assert "MD5" in status.detail
    assert "hunter2" not in repr(status)


@pytest.mark.parametrize("challenges", [[MD5], [MD5, SHA256], [BASIC]])
def test_a_wrong_password_is_told_from_a_way_that_we_lack(rtsp_camera, camera_clip, challenges):
    camera = rtsp_camera(camera_clip, challenges=challenges, user="admin", password="hunter2")
    status = first_loss(camera.url.replace("//", "//admin:wrong@"))
    assert status.code is SourceCode.UNAUTHORISED
    assert "are user and password right" in status.detail
