"""Sources over their whole life, on files, local servers and a clock of the test's own."""

from __future__ import annotations

import itertools
import logging
import threading
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import DecodeConfig, SourceConfig, StreamConfig
from stream.errors import ConfigError, SourceError
from stream.records import Frame, SourceCode, SourceState, SourceStatus
from stream.sources import Source, parse_source_argument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class FakeTime(threading.Event):
    """A clock and stop event in one: waiting for it takes no time, but moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        return self.is_set()


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def make_source(uri: Any, time: FakeTime, *, fps: float = 5, **options: Any) -> Source:
    config = SourceConfig(id="cam", uri=str(uri), **options)
    decode = DecodeConfig(analyse_fps=fps)
    return Source(config, decode, stop=time, clock=time, random=Random(1))


def statuses(events: Iterable[Frame | SourceStatus]) -> Iterator[SourceStatus]:
    return (event for event in events if isinstance(event, SourceStatus))


def told(events: Iterable[Frame | SourceStatus]) -> list[tuple[int, str, str]]:
    """Return session, state and code of every change."""
    return [(s.session, s.state, s.code) for s in statuses(events) if s.changed]


OPEN_OK = (0, SourceState.OPEN, SourceCode.OK)


# --- files ---


def test_a_file_says_that_it_opened_gives_its_frames_and_says_that_it_ended(clip, time):
    events = list(make_source(clip, time).events())
    frames = events[1:-1]
    assert told(events) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.END_OF_FILE)]
    assert [f.stamp.index for f in frames] == list(range(0, 50, 5))
    assert {f.stamp.session for f in frames} == {0}
    last = events[-1]
    assert (last.frames_seen, last.frames_due, last.frames_dropped) == (50, 10, 0)
    assert (last.source_id, last.at) == ("cam", 1000.0)


def test_a_missing_file_ends_at_once_and_says_why(tmp_path, time):
    status, _ = make_source(tmp_path / "no.mp4", time).events()
    assert (status.state, status.code) == (SourceState.ENDED, SourceCode.NOT_FOUND)
    assert "no.mp4" in status.detail
    assert "\n" not in status.detail


def test_a_truncated_file_gives_what_it_holds_before_it_ends(write_clip, tmp_path, time):
    path = write_clip(tmp_path / "cut.mp4", n=100, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    events = list(make_source(path, time).events())
    assert told(events) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.INVALID_DATA)]
    assert len(events) > 8


def test_a_looped_file_starts_a_new_session_each_time(clip, time):
    events = make_source(clip, time, loop=True).events()
    some = list(itertools.islice(events, 30))
    events.close()
    assert told(some) == [(n, SourceState.OPEN, SourceCode.OK) for n in range(3)]
    frames = [e for e in some if isinstance(e, Frame)]
    assert [f.stamp.session for f in frames[:20]] == [0] * 10 + [1] * 10
    assert frames[10].stamp.pts_s == 0
    assert frames[10].stamp.index == 0


def test_a_looped_file_that_vanishes_ends(write_clip, tmp_path, time):
    path = write_clip(tmp_path / "clip.mp4", n=10)
    events = make_source(path, time, loop=True).events()
    next(events)
    path.unlink()
    assert told(events) == [(0, SourceState.ENDED, SourceCode.NOT_FOUND)]


def test_a_file_played_as_a_camera_takes_its_time_and_may_drop_frames(clip, time):
    source = make_source(clip, time, realtime=True)
    events = list(source.events())
    assert source.is_live
    assert time.now - 1000 == pytest.approx(49 / 25)
    frames = [e for e in events if isinstance(e, Frame)]
    assert frames[-1].stamp.captured_at == pytest.approx(1000 + 45 / 25)


def test_a_plain_file_waits_rather_than_drop_frames(clip, time):
    assert not make_source(clip, time).is_live


# --- heartbeats ---


def test_heartbeats_come_while_frames_flow(clip, time):
    events = []
    for event in make_source(clip, time, fps=1000, heartbeat_s=5).events():
        events.append(event)
        time.now += 1 if isinstance(event, Frame) else 0
    beats = [s for s in statuses(events) if not s.changed]
    assert [s.at - 1000 for s in beats] == [5.0 * n for n in range(1, 11)]
    assert {(s.state, s.code) for s in beats} == {(SourceState.OPEN, SourceCode.OK)}
    assert [s.frames_due for s in beats] == [5 * n for n in range(1, 11)]


def test_heartbeats_come_while_no_frame_is_due(clip, time):
    ticks = itertools.count(1000)
    decode = DecodeConfig(analyse_fps=0.01)
    config = SourceConfig(id="cam", uri=str(clip), heartbeat_s=10)
    source = Source(config, decode, stop=time, clock=lambda: float(next(ticks)))
    events = list(source.events())
    assert sum(isinstance(e, Frame) for e in events) == 1
    assert sum(not s.changed for s in statuses(events)) > 5


def test_a_heartbeat_comes_when_the_clock_is_set_back(clip, time):
    events = make_source(clip, time, heartbeat_s=3600).events()
    next(events)
    time.now -= 7200
    assert any(not s.changed for s in statuses(itertools.islice(events, 3)))


def test_heartbeats_come_while_a_camera_is_away(unused_port, time):
    source = make_source(
        f"rtsp://127.0.0.1:{unused_port}/x",
        time,
        heartbeat_s=5,
        retry_first_s=60,
        retry_max_s=60,
        give_up_s=300,
    )
    told_at = [status.at for status in source.events()]
    assert max(b - a for a, b in itertools.pairwise(told_at)) <= 5.001
    assert told_at[-1] - told_at[0] == pytest.approx(300)


# --- cameras ---


def test_a_camera_that_refuses_is_tried_ever_more_rarely_until_patience_ends(unused_port, time):
    source = make_source(
        f"rtsp://127.0.0.1:{unused_port}/x",
        time,
        retry_first_s=1,
        retry_max_s=16,
        give_up_s=600,
        heartbeat_s=1000,
    )
    assert source.is_live
    assert told(source.events()) == [
        (0, SourceState.LOST, SourceCode.REFUSED),
        (0, SourceState.ENDED, SourceCode.REFUSED),
    ]
    assert time.now == pytest.approx(1600)
    caps = [min(16, 2**n) for n in range(len(time.waits))]
    assert all(0 <= wait <= cap for wait, cap in zip(time.waits, caps, strict=True))
    assert max(time.waits) > 12
    assert len(set(time.waits)) == len(time.waits)  # jitter


def test_a_camera_is_tried_for_ever_by_default(unused_port, time):
    events = make_source(f"rtsp://127.0.0.1:{unused_port}/x", time, heartbeat_s=60).events()
    assert told(itertools.islice(events, 200)) == [(0, SourceState.LOST, SourceCode.REFUSED)]
    assert time.now > 1000 + 3600 * 3


def test_stop_ends_the_wait_for_a_camera_at_once(unused_port):
    stop = threading.Event()
    config = SourceConfig(
        id="cam", uri=f"rtsp://127.0.0.1:{unused_port}/x", retry_first_s=3600, retry_max_s=3600
    )
    source = Source(config, DecodeConfig(), stop=stop, random=Random(1))
    events: list[Frame | SourceStatus] = []
    lost = threading.Event()

    def consume() -> None:
        for event in source.events():
            events.append(event)
            lost.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert lost.wait(30)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert told(events)[-1] == (0, SourceState.ENDED, SourceCode.STOPPED)


def test_stop_ends_a_file_between_two_packets(clip, time):
    events = make_source(clip, time).events()
    taken = list(itertools.islice(events, 3))
    time.set()
    rest = list(events)
    assert told(taken + rest) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.STOPPED)]
    assert len(rest) == 1


def test_a_source_stopped_before_it_began_opens_nothing(clip, time):
    time.set()
    assert told(make_source(clip, time).events()) == [(0, SourceState.ENDED, SourceCode.STOPPED)]


def test_a_network_stream_that_ends_is_opened_again_as_a_new_session(
    write_clip, http_server, tmp_path, time
):
    write_clip(tmp_path / "clip.ts", n=25)
    url = f"{http_server(tmp_path)}/clip.ts"
    events = make_source(url, time, allow_http=True).events()
    some = list(itertools.islice(events, 14))
    events.close()
    assert told(some) == [
        OPEN_OK,
        (0, SourceState.LOST, SourceCode.DISCONNECTED),
        (1, SourceState.OPEN, SourceCode.OK),
        (1, SourceState.LOST, SourceCode.DISCONNECTED),
    ]
    assert list(statuses(some))[-1].frames_seen == 50
    assert [e.stamp.session for e in some if isinstance(e, Frame)] == [0] * 5 + [1] * 5


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_network_stream_that_stalls_is_frozen(
    write_clip, stalling_server, tmp_path, time, suffix
):
    data = write_clip(tmp_path / f"clip{suffix}", n=200).read_bytes()
    url = stalling_server(data[: len(data) * 3 // 4])
    events = make_source(url, time, allow_http=True, read_timeout_s=0.2).events()
    lost = next(s for s in statuses(events) if s.state is not SourceState.OPEN)
    events.close()
    assert lost.code is SourceCode.FROZEN
    assert lost.frames_seen > 50


def test_a_camera_that_comes_back_is_waited_for_as_briefly_as_at_first(
    write_clip, http_server, tmp_path, time
):
    write_clip(tmp_path / "clip.ts", n=5)
    url = f"{http_server(tmp_path)}/clip.ts"
    options = {"retry_first_s": 1, "retry_max_s": 1000, "heartbeat_s": 1e6}
    events = make_source(url, time, allow_http=True, **options).events()
    list(itertools.islice(events, 40))
    events.close()
    assert len(time.waits) > 10
    assert max(time.waits) <= 1


def test_patience_is_counted_from_the_moment_a_camera_was_lost(
    write_clip, http_server, tmp_path, time
):
    write_clip(tmp_path / "clip.ts", n=25)
    url = f"{http_server(tmp_path)}/clip.ts"
    events = make_source(url, time, allow_http=True, give_up_s=60).events()
    for event in events:
        if isinstance(event, Frame):
            time.now += 50
        elif event.session == 1:
            break
        assert not isinstance(event, SourceStatus) or event.state is not SourceState.ENDED
    events.close()


@pytest.mark.parametrize(
    ("path", "code"),
    [("gone.mp4", SourceCode.NOT_FOUND), ("page.html", SourceCode.INVALID_DATA)],
)
def test_a_web_server_without_the_video_is_told_apart(http_server, tmp_path, time, path, code):
    (tmp_path / "page.html").write_text("<html>" * 100)
    url = f"{http_server(tmp_path)}/{path}"
    events = make_source(url, time, allow_http=True, give_up_s=1).events()
    assert told(events)[-1] == (0, SourceState.ENDED, code)


def test_a_web_server_may_not_lead_to_a_file_of_ours(http_server, write_clip, tmp_path, time):
    secret = write_clip(tmp_path / "secret.ts", n=5)
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:{secret}\n#EXT-X-ENDLIST\n"
    )
    url = f"{http_server(folder)}/list.m3u8"
    events = list(make_source(url, time, allow_http=True, give_up_s=1).events())
    assert not any(isinstance(e, Frame) for e in events)
    assert events[-1].state is SourceState.ENDED


# --- credentials ---


def test_credentials_reach_neither_statuses_nor_logs(unused_port, time, caplog):
    caplog.set_level(logging.DEBUG)
    uri = f"rtsp://admin:hun%2Fter2@127.0.0.1:{unused_port}/x?token=geheim"
    events = list(make_source(uri, time, give_up_s=60).events())
    assert events[-1].code is SourceCode.REFUSED
    shown = repr(events) + caplog.text
    assert f"rtsp://127.0.0.1:{unused_port}/x" in shown
    assert not any(secret in shown for secret in ("hun%2Fter2", "hun/ter2", "geheim", "admin"))


def test_credentials_that_an_error_quotes_do_not_reach_the_status(clip, time, monkeypatch):
    def fail(source: SourceConfig, *_: object, **__: object) -> None:
        raise SourceError(SourceCode.REFUSED, f"no: {source.uri.get_secret_value()} (hun/ter2)")

    monkeypatch.setattr("stream.sources.open_decoder", fail)
    uri = "rtsp://admin:hun%2Fter2@camera/x"
    status = next(make_source(uri, time).events())
    assert status.detail == "no: rtsp://***@camera/x (***)"


def test_a_refused_uri_is_a_mistake_in_the_configuration(time):
    with pytest.raises(ConfigError, match="source cam") as raised:
        make_source("ftp://admin:hunter2@host/a.mp4", time)
    assert "hunter2" not in str(raised.value)


# --- the command line ---


@pytest.mark.parametrize(
    ("argument", "name", "uri"),
    [
        ("door=rtsp://a:b=c@cam/1?x=y", "door", "rtsp://a:b=c@cam/1?x=y"),
        ("rtsp://a:b@cam/1?x=y", "cam7", "rtsp://a:b@cam/1?x=y"),
        ("clips/door.mp4", "door", "clips/door.mp4"),
        ("clips/two faces, replay.mp4", "two-faces-replay", "clips/two faces, replay.mp4"),
        ("x.y=clip.mp4", "x.y", "clip.mp4"),
        ("two words=clip.mp4", "two-words-clip", "two words=clip.mp4"),
        ("/dev/video0", "video0", "/dev/video0"),
        ("面.mp4", "cam7", "面.mp4"),
        ("-" + "n" * 80 + ".mp4", "n" * 64, "-" + "n" * 80 + ".mp4"),
    ],
)
def test_a_source_on_the_command_line_gets_an_id(argument, name, uri):
    source = parse_source_argument(argument, 7)
    assert (source.id, source.uri.get_secret_value()) == (name, uri)
    assert StreamConfig(sources=[source]).sources == (source,)


@pytest.mark.parametrize("argument", ["", " ", "cam1="])
def test_an_empty_source_on_the_command_line_is_refused(argument):
    with pytest.raises(ConfigError, match="expected ID=URI"):
        parse_source_argument(argument)
