"""A decoder that can't keep up leaves groups of pictures out, and is not late for ever."""

from __future__ import annotations

import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder

FPS, N, ANALYSED = 25, 250, 5


class SlowMachine:
    """A clock on which each decoded picture takes so many seconds, and waiting what it takes."""

    def __init__(self, picture_s):
        self.now = 100.0
        self._picture_s = picture_s
        self._seen = 0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds

    def decoded(self, frames_seen):
        self.now += (frames_seen - self._seen) * self._picture_s
        self._seen = frames_seen


@pytest.fixture(scope="module")
def ten_seconds(write_clip, tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "long.mp4", n=N, size=(64, 48))


def play(path, picture_s):
    """Return the frames with how late each came, and the decoder."""
    machine = SlowMachine(picture_s)
    decoder = open_decoder(
        SourceConfig(id="cam", uri=str(path), realtime=True),
        DecodeConfig(analyse_fps=ANALYSED),
        session=0,
        monotonic=machine,
        wait=machine.wait,
    )
    late = []
    for frame in decoder.frames():
        machine.decoded(decoder.frames_seen)
        if frame is not None:
            late.append((frame, machine.now - 100.0 - frame.stamp.pts_s))
    return late, decoder


def test_at_half_the_speed_that_is_needed_half_the_frames_come_and_none_is_old(
    ten_seconds, read_number
):
    frames, decoder = play(ten_seconds, picture_s=2 / FPS)
    assert max(lag_s for _, lag_s in frames) < 1.5
    due = N / FPS * ANALYSED
    assert 0.35 * due < len(frames) < 0.75 * due
    assert len(frames) + decoder.frames_undecoded == pytest.approx(due, abs=6)
    for frame, _ in frames:
        assert read_number(frame.image) == round(frame.stamp.pts_s * FPS)


def test_a_picture_of_a_played_file_is_as_old_as_it_is_late_however_late_it_is_decoded(ten_seconds):
    machine = SlowMachine(2 / FPS)
    decoder = open_decoder(
        SourceConfig(id="cam", uri=str(ten_seconds), realtime=True),
        DecodeConfig(analyse_fps=ANALYSED),
        session=0,
        clock=lambda: machine.now + 1e6,
        monotonic=machine,
        wait=machine.wait,
    )
    late_s = []
    for frame in decoder.frames():
        machine.decoded(decoder.frames_seen)
        if frame is not None:
            assert frame.stamp.captured_at == pytest.approx(1e6 + 100 + frame.stamp.pts_s)
            late_s.append(machine.now + 1e6 - frame.stamp.captured_at)
    assert max(late_s) > 0.5


def test_a_machine_that_is_fast_enough_leaves_nothing_out(ten_seconds):
    frames, decoder = play(ten_seconds, picture_s=0.9 / FPS)
    assert len(frames) == N / FPS * ANALYSED
    assert (decoder.frames_seen, decoder.frames_undecoded) == (N, 0)
