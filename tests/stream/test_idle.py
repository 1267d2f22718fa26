"""Cameras that show nobody are decoded at their key frames alone, and miss nothing after one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import DecodeConfig, SourceConfig, load_config
from stream.decode import open_decoder
from stream.errors import ConfigError
from stream.messages import MessageWriter, ScoreMessage, StatusMessage
from stream.pipeline import Pipeline
from stream.records import Frame, FrameFates, SourceState
from stream.sources import Source
from tests.stream.conftest import two_faces_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.messages import OutMessage

FPS, GROUP, N = 25, 50, 200
X264 = {"preset": "ultrafast", "g": str(GROUP), "sc_threshold": "0", "threads": "1"}
B_FRAMES = X264 | {"preset": "veryfast", "bf": "2"}
WAIT_S = 60.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture(scope="module", params=[X264, B_FRAMES], ids=["no B-frames", "B-frames"])
def clip(request, write_clip, tmp_path_factory):
    """Eight seconds of numbered pictures, a key frame every two."""
    path = tmp_path_factory.mktemp("clip") / "groups.mp4"
    return write_clip(path, n=N, size=(64, 48), options=request.param)


def played(path, clock, *, analyse_fps=5.0):
    return open_decoder(
        SourceConfig(id="cam", uri=str(path), realtime=True),
        DecodeConfig(analyse_fps=analyse_fps),
        session=0,
        monotonic=clock,
        clock=clock,
        wait=clock.wait,
    )


def test_an_idle_decoder_gives_key_frames_alone_at_their_own_times(clip, read_number):
    clock = Clock()
    decoder = played(clip, clock)
    decoder.set_idle(True)
    frames = []
    for frame in decoder.frames():
        if frame is not None:
            frames.append(frame)
            assert clock.now - 100 == pytest.approx(frame.stamp.pts_s)  # neither early nor late
    assert [read_number(f.image) for f in frames] == [0, 50, 100, 150]
    assert [f.stamp.pts_s for f in frames] == pytest.approx([0, 2, 4, 6])
    assert (decoder.frames_seen, decoder.frames_undecoded) == (4, 0)


def test_a_decoder_that_wakes_gives_all_since_the_key_frame_once_and_stamped_as_they_came(
    clip, read_number
):
    clock = Clock()
    decoder = played(clip, clock)
    decoder.set_idle(True)
    frames: list[Frame] = []
    caught_up = []
    for frame in decoder.frames():
        if frame is not None:
            frames.append(frame)
            caught_up.append(not decoder.is_catching_up)
        if clock.now - 100 >= 3.4:  # in the middle of the second group
            decoder.set_idle(False)
    numbers = [read_number(f.image) for f in frames]
    assert numbers == [0, *range(50, N, 5)]
    assert [f.stamp.pts_s for f in frames] == pytest.approx([number / FPS for number in numbers])
    late = [f.stamp.captured_at - 100 - f.stamp.pts_s for f in frames]
    assert max(map(abs, late)) < 0.2
    assert caught_up[:2] == [True, True]  # the key frames
    assert not any(caught_up[2:8])  # kept
    assert all(caught_up[12:])
    # The key frame counts once.
    assert decoder.frames_seen == N - GROUP + 1


def test_a_decoder_that_falls_asleep_loses_nothing_before_the_next_key_frame(clip, read_number):
    clock = Clock()
    decoder = played(clip, clock, analyse_fps=FPS)
    numbers = []
    for frame in decoder.frames():
        if frame is not None:
            numbers.append(read_number(frame.image))
        decoder.set_idle(clock.now - 100 >= 1.0)
    assert numbers == [*range(51), 100, 150]


def test_a_group_too_large_to_be_kept_is_decoded_as_it_comes(clip, read_number, monkeypatch):
    monkeypatch.setattr("stream.decode.pyav_packets.MAX_GROUP_BYTES", 1)
    clock = Clock()
    decoder = played(clip, clock)
    decoder.set_idle(True)
    numbers = [read_number(f.image) for f in decoder.frames() if f is not None]
    assert set(range(0, GROUP, 5)) <= set(numbers)


def test_a_source_sleeps_when_nobody_was_there_for_a_while_and_says_so(clip):
    clock = Clock()
    stop = threading.Event()
    stop.wait = lambda seconds=None: clock.wait(seconds or 0.0) or stop.is_set()
    config = SourceConfig(id="cam", uri=str(clip), realtime=True, idle="keyframes")
    source = Source(config, DecodeConfig(idle_after_s=1.0), stop=stop, clock=clock, monotonic=clock)

    def fates(*, settled: bool = False) -> FrameFates:
        return FrameFates(occupied=4.5 <= clock.now - 100 < 5.5)

    events = list(source.events(fates))
    changes = [(e.state, e.at - 100) for e in events if not isinstance(e, Frame) and e.changed]
    states = [state for state, _ in changes]
    S = SourceState
    assert states[:3] == [S.OPEN, S.IDLE, S.OPEN]
    assert [at for _, at in changes[1:3]] == pytest.approx([1.0, 4.5], abs=0.2)
    times = [e.stamp.pts_s for e in events if isinstance(e, Frame)]
    assert [t for t in times if 2.1 < t < 3.9] == []
    assert [t for t in times if 4.1 < t < 5.9] == pytest.approx([4.2 + 0.2 * i for i in range(9)])
    assert {e.stamp.session for e in events if isinstance(e, Frame)} == {0}


def test_idling_is_refused_for_decoders_that_decode_whole_groups_anyway():
    sources = ("sources", [{"id": "a", "uri": "a.mp4", "idle": "keyframes"}])
    assert load_config(None, [sources]).decode.idle == "off"
    with pytest.raises(ConfigError, match=r"for decode\.kind: pyav, found sampled, for a"):
        load_config(None, [sources, ("decode.kind", "sampled")])


class ListSink:
    def __init__(self) -> None:
        self.messages: list[OutMessage] = []

    def publish(self, messages: Sequence[OutMessage]) -> None:
        self.messages += messages

    def close(self) -> None:
        pass


def test_a_face_that_comes_between_two_key_frames_of_a_camera_wakes_it_and_is_judged(
    open_analyser, write_clip, rtsp_camera, tmp_path
):
    def picture(number: int, width: int, height: int) -> Any:
        """Show nobody for 4 s, then two faces from the middle of a group on."""
        shown = two_faces_picture(max(number - 80, 0) / FPS, width, height)
        return shown if number >= 80 else shown * 0 + 90

    folder = tmp_path / "camera"
    folder.mkdir()
    path = write_clip(folder / "door.mp4", n=175, size=(400, 224), picture=picture, options=X264)
    camera = rtsp_camera(path)
    stop = threading.Event()
    config = SourceConfig(id="cam", uri=camera.url)
    decode = DecodeConfig(idle="keyframes", idle_after_s=0.5)
    sink = ListSink()
    writer = MessageWriter(run="0" * 8, version="", models=())
    source = Source(config, decode, stop=stop)
    run = Pipeline([source], open_analyser(), writer, [sink], stop=stop, shutdown_s=WAIT_S)
    thread = threading.Thread(target=run.run)
    thread.start()
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and not any(isinstance(m, ScoreMessage) for m in sink.messages):
        time.sleep(0.1)
    stop.set()
    thread.join()
    states = [m.status.state for m in sink.messages if isinstance(m, StatusMessage)]
    assert SourceState.IDLE in states
    assert states[states.index(SourceState.IDLE) :].count(SourceState.OPEN) >= 1
    first = next(m for m in sink.messages if isinstance(m, ScoreMessage))
    assert first.source.session == 0
    assert first.track.id == "cam-00000000-0-1"
    # It is first looked at as soon after its key frame as it would be, had nobody slept.
    assert first.track.age_s == pytest.approx(0.4, abs=0.25)
    assert run.progress().sources["cam"].frames_dropped == 0
