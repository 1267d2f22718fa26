"""Sources over their whole life, on files, local servers and a clock of the test's own."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from stream.config import DecodeConfig, SourceConfig, StreamConfig
from stream.errors import ConfigError, SourceError
from stream.messages import MessageWriter
from stream.records import (
    Frame,
    FrameFates,
    FrameStamp,
    SourceAlert,
    SourceCode,
    SourceEventKind,
    SourceHistory,
    SourceState,
    SourceStatus,
)
from stream.sources import FLAPPING_LOSSES, FLAPPING_S, Source, parse_source_argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from stream.records import SourceOutput


class FakeTime(threading.Event):
    """Both clocks and the stop event in one: waiting for it takes no time, but moves the clocks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0  # monotonic
        self.wall_ahead = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_ahead

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        return self.is_set()


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def make_source(
    uri: Any,
    time: FakeTime,
    *,
    fps: float = 5,
    history: SourceHistory | None = None,
    **options: Any,
) -> Source:
    config = SourceConfig(id="cam", uri=str(uri), **options)
    decode = DecodeConfig(analyse_fps=fps)
    clocks: dict[str, Any] = {"clock": time.wall, "monotonic": time}
    return Source(config, decode, stop=time, random=Random(1), history=history, **clocks)


class Camera:
    """A decoder that does as it is told, at the test's clock: no camera freezes on cue.

    Args:
        time: moved on by `step_s` with every frame.
        frames: given by each session.
        then: how a session ends, `silent_s` after the last frame.
    """

    description = "a camera of the test"

    def __init__(
        self,
        time: FakeTime,
        *,
        frames: int,
        step_s: float = 1.0,
        silent_s: float = 0.0,
        then: Exception | None = None,
        is_live: bool = True,
    ) -> None:
        self.opened_at: list[float] = []
        self.is_live = is_live
        self.frames_seen = 0
        self.frames_undecoded = 0
        self.is_catching_up = False
        self.n_frames = frames
        self.then = itertools.repeat(then)
        self._time, self._step_s, self._silent_s = time, step_s, silent_s

    def open(self, source: SourceConfig, *_: object, session: int, **__: object) -> Camera:
        self._source_id, self._session = source.id, session
        self.opened_at.append(self._time.now)
        self.frames_seen = 0
        return self

    def frames(self) -> Iterator[Frame | None]:
        image = torch.zeros(2, 2, 3, dtype=torch.uint8)
        for index in range(self.n_frames):
            self._time.now += self._step_s if index else 0.0
            self.frames_seen += 1
            stamp = FrameStamp(
                source_id=self._source_id,
                session=self._session,
                index=index,
                pts_s=index * self._step_s,
                captured_at=0.0,
                width=2,
                height=2,
                decoder="none",
            )
            yield Frame(stamp=stamp, image=image)
        self._time.now += self._silent_s
        if (error := next(self.then)) is not None:
            raise error

    def close(self) -> None:
        pass


GONE = SourceError(SourceCode.DISCONNECTED, "the far end went away")
REFUSED = SourceError(SourceCode.REFUSED, "no room")


@pytest.fixture
def camera(monkeypatch, time) -> Callable[..., Camera]:
    """Return a function that lets every source open such a camera."""

    def connect(**how: Any) -> Camera:
        made = Camera(time, **how)
        monkeypatch.setattr("stream.sources.open_decoder", made.open)
        return made

    return connect


def statuses(events: Iterable[SourceOutput]) -> Iterator[SourceStatus]:
    return (event for event in events if isinstance(event, SourceStatus))


def frames_of(events: Iterable[SourceOutput]) -> Iterator[Frame]:
    return (event for event in events if isinstance(event, Frame))


def alerts(events: Iterable[SourceOutput]) -> list[SourceEventKind]:
    return [event.kind for event in events if isinstance(event, SourceAlert)]


def in_one_chunk(clip: Path) -> dict[str, Any]:
    """Return what `live_server` needs to end after a clip as a live stream properly ends."""
    data = clip.read_bytes()
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    return {"body": body, "headers": "Transfer-Encoding: chunked\r\n"}


def until(events: Iterator[SourceOutput], time: FakeTime, end: float) -> list[SourceOutput]:
    """Return what comes before a time on the clock."""
    return list(itertools.takewhile(lambda _: time.now < end, events))


def changes(events: Iterable[SourceOutput]) -> list[tuple[int, str, str]]:
    """Return session, state and code of every change."""
    return [(s.session, s.state, s.code) for s in statuses(events) if s.changed]


OPEN_OK = (0, SourceState.OPEN, SourceCode.OK)


# --- files ---


def test_a_file_says_that_it_opened_gives_its_frames_and_says_that_it_ended(clip, time):
    events = list(make_source(clip, time).events())
    frames = events[1:-1]
    assert changes(events) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.END_OF_FILE)]
    assert [f.stamp.index for f in frames] == list(range(0, 50, 5))
    assert {f.stamp.session for f in frames} == {0}
    last = events[-1]
    assert (last.frames_seen, last.frames_due, last.frames_dropped) == (50, 10, 0)
    assert (last.source_id, last.at) == ("cam", 1000.0)


def test_a_missing_file_ends_at_once_and_says_why(tmp_path, time):
    status, alert = make_source(tmp_path / "no.mp4", time).events()
    assert (status.state, status.code) == (SourceState.ENDED, SourceCode.NOT_FOUND)
    assert "no.mp4" in status.detail
    assert "\n" not in status.detail
    assert (alert.kind, alert.status, alert.losses) == (SourceEventKind.ENDED, status, 0)


def test_a_truncated_file_gives_what_it_holds_before_it_ends(write_clip, tmp_path, time):
    path = write_clip(tmp_path / "cut.mp4", n=100, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    events = list(make_source(path, time).events())
    assert changes(events) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.INVALID_DATA)]
    assert len(events) > 8


def test_a_looped_file_starts_a_new_session_each_time(clip, time):
    events = make_source(clip, time, loop=True).events()
    some = list(itertools.islice(events, 30))
    events.close()
    assert changes(some) == [(n, SourceState.OPEN, SourceCode.OK) for n in range(3)]
    frames = [e for e in some if isinstance(e, Frame)]
    assert [f.stamp.session for f in frames[:20]] == [0] * 10 + [1] * 10
    assert frames[10].stamp.pts_s == 0
    assert frames[10].stamp.index == 0


def test_a_looped_file_that_vanishes_ends(write_clip, tmp_path, time):
    path = write_clip(tmp_path / "clip.mp4", n=10)
    events = make_source(path, time, loop=True).events()
    next(events)
    path.unlink()
    assert changes(events) == [(0, SourceState.ENDED, SourceCode.NOT_FOUND)]


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
    source = Source(config, decode, stop=time, monotonic=lambda: float(next(ticks)))
    events = list(source.events())
    assert sum(isinstance(e, Frame) for e in events) == 1
    assert sum(not s.changed for s in statuses(events)) > 5


@pytest.mark.parametrize("step_s", [-7200, 7200])
def test_setting_the_wall_clock_neither_hurries_nor_delays_a_heartbeat(clip, time, step_s):
    beats = []
    source = make_source(clip, time, fps=1000, heartbeat_s=5)
    for event in source.events():
        if isinstance(event, Frame):
            time.now += 1
            time.wall_ahead = step_s if event.stamp.index > 10 else 0
        elif isinstance(event, SourceStatus) and not event.changed:
            beats.append((time.now - 1000, event.at - time.now))
    assert beats == [(5.0 * n, step_s if n > 2 else 0) for n in range(1, 11)]


@pytest.mark.parametrize("step_s", [-7200, 7200])
def test_setting_the_wall_clock_ends_no_patience(unused_port, time, step_s):
    url = f"rtsp://127.0.0.1:{unused_port}/x"
    events = make_source(url, time, give_up_s=600, heartbeat_s=1000).events()
    assert next(events).state is SourceState.LOST
    time.wall_ahead = step_s
    *_, status, alert = events
    assert (status.state, alert.kind) == (SourceState.ENDED, SourceEventKind.ENDED)
    assert time.now == pytest.approx(1600)
    assert status.at == time.wall()


def test_heartbeats_come_while_a_camera_is_away(unused_port, time):
    source = make_source(
        f"rtsp://127.0.0.1:{unused_port}/x",
        time,
        heartbeat_s=5,
        retry_first_s=60,
        retry_max_s=60,
        give_up_s=300,
    )
    stamps = [status.at for status in statuses(source.events())]
    assert max(b - a for a, b in itertools.pairwise(stamps)) <= 5.001
    assert stamps[-1] - stamps[0] == pytest.approx(300)


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
    assert changes(source.events()) == [
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
    assert changes(itertools.islice(events, 200)) == [(0, SourceState.LOST, SourceCode.REFUSED)]
    assert time.now > 1000 + 3600 * 3


def test_stop_ends_the_wait_for_a_camera_at_once(unused_port):
    stop = threading.Event()
    config = SourceConfig(
        id="cam", uri=f"rtsp://127.0.0.1:{unused_port}/x", retry_first_s=3600, retry_max_s=3600
    )
    source = Source(config, DecodeConfig(), stop=stop, random=Random(1))
    events: list[SourceOutput] = []
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
    assert changes(events)[-1] == (0, SourceState.ENDED, SourceCode.STOPPED)


def test_stop_ends_a_file_between_two_packets(clip, time):
    events = make_source(clip, time).events()
    taken = list(itertools.islice(events, 3))
    time.set()
    rest = list(events)
    assert changes(taken + rest) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.STOPPED)]
    assert len(rest) == 1


def test_a_source_stopped_before_it_began_opens_nothing(clip, time):
    time.set()
    assert changes(make_source(clip, time).events()) == [(0, SourceState.ENDED, SourceCode.STOPPED)]


def test_a_network_stream_that_ends_is_opened_again_as_a_new_session(
    write_clip, live_server, tmp_path, time
):
    url = live_server(**in_one_chunk(write_clip(tmp_path / "clip.ts", n=25)))
    events = make_source(url, time, allow_http=True).events()
    some = list(itertools.islice(events, 15))
    events.close()
    assert changes(some) == [
        OPEN_OK,
        (0, SourceState.LOST, SourceCode.DISCONNECTED),
        (1, SourceState.OPEN, SourceCode.OK),
        (1, SourceState.LOST, SourceCode.DISCONNECTED),
    ]
    assert alerts(some) == [SourceEventKind.LOST]
    assert list(statuses(some))[-1].frames_seen == 50
    assert [e.stamp.session for e in some if isinstance(e, Frame)] == [0] * 5 + [1] * 5


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_network_stream_that_stalls_is_frozen(write_clip, live_server, tmp_path, time, suffix):
    data = write_clip(tmp_path / f"clip{suffix}", n=200).read_bytes()
    url = live_server(data[: len(data) * 3 // 4], stalls=True)
    events = make_source(url, time, allow_http=True, read_timeout_s=0.2).events()
    lost = next(s for s in statuses(events) if s.state is not SourceState.OPEN)
    events.close()
    assert lost.code is SourceCode.FROZEN
    assert lost.frames_seen > 50


# --- comes back, or comes and goes ---


def test_a_camera_that_recovered_is_waited_for_as_briefly_as_at_first(camera, time):
    camera(frames=12, then=GONE)
    options = {"retry_first_s": 1, "retry_max_s": 1000, "heartbeat_s": 1e6}
    list(itertools.islice(make_source("rtsp://cam/x", time, **options).events(), 200))
    assert len(time.waits) > 10
    assert max(time.waits) <= 1


def test_a_camera_that_gives_a_frame_and_dies_is_tried_ever_more_rarely(camera, time):
    camera(frames=1, then=GONE)
    options = {"retry_first_s": 1, "retry_max_s": 1000, "heartbeat_s": 1e6}
    list(itertools.islice(make_source("rtsp://cam/x", time, **options).events(), 60))
    assert max(time.waits) > 500


def test_a_camera_that_gives_a_frame_and_dies_uses_up_the_patience(
    write_clip, live_server, tmp_path, time
):
    url = live_server(**in_one_chunk(write_clip(tmp_path / "clip.ts", n=1)))
    events = list(make_source(url, time, allow_http=True, give_up_s=600).events())
    assert changes(events)[-1][1:] == (SourceState.ENDED, SourceCode.DISCONNECTED)
    assert time.now == pytest.approx(1600)


def test_a_camera_that_gives_a_frame_and_freezes_has_not_recovered(camera, time):
    camera(frames=1, silent_s=60, then=SourceError(SourceCode.FROZEN, "frozen"))
    events = make_source("rtsp://cam/x", time, give_up_s=600, recovered_after_s=10).events()
    assert changes(events)[-1][1:] == (SourceState.ENDED, SourceCode.FROZEN)


def test_patience_counts_only_the_time_away(camera, time):
    camera(frames=9, then=GONE)  # 8 s, and less than a second away: ten minutes of that last long
    source = make_source("rtsp://cam/x", time, give_up_s=60, retry_max_s=1, heartbeat_s=1e6)
    events = until(source.events(), time, 1600)
    assert not any(status.state is SourceState.ENDED for status in statuses(events))


def test_patience_begins_anew_once_a_camera_has_recovered(camera, time):
    camera(frames=20, then=GONE)
    source = make_source("rtsp://cam/x", time, give_up_s=5, retry_first_s=4, heartbeat_s=1e6)
    events = until(source.events(), time, 3000)
    assert not any(status.state is SourceState.ENDED for status in statuses(events))
    assert sum(time.waits) > 50


def test_a_camera_that_stands_for_a_while_after_a_loss_is_regained_once(camera, time):
    camera(frames=120, then=GONE)
    events = until(make_source("rtsp://cam/x", time).events(), time, 1200)
    assert alerts(events) == [SourceEventKind.LOST, SourceEventKind.REGAINED]
    lost, regained = (event for event in events if isinstance(event, SourceAlert))
    reopened = next(s for s in statuses(events) if s.session == 1)
    assert regained.status.at == reopened.at + 10
    assert (regained.status.state, regained.status.session) == (SourceState.OPEN, 1)
    assert (lost.losses, lost.within_s, regained.losses) == (1, 0, 1)
    assert regained.within_s == regained.status.at - lost.status.at
    assert (lost.ordinal, regained.ordinal) == (1, 2)


def test_first_opening_of_a_camera_is_no_alert(camera, time):
    camera(frames=60, then=GONE)
    assert alerts(until(make_source("rtsp://cam/x", time).events(), time, 1058)) == []


def test_camera_away_from_the_start_is_lost_at_once_and_regained_when_it_stands(camera, time):
    made = camera(frames=0, then=REFUSED)
    events = make_source("rtsp://cam/x", time).events()
    before = until(events, time, 1100)
    made.n_frames = 30
    after = list(itertools.islice(events, 35))
    assert alerts(before + after) == [SourceEventKind.LOST, SourceEventKind.REGAINED]
    assert next(e for e in after if isinstance(e, SourceAlert)).status.session == 0


def test_a_camera_that_comes_and_goes_for_an_hour_makes_two_alerts(
    write_clip, live_server, tmp_path, time
):
    url = live_server(**in_one_chunk(write_clip(tmp_path / "clip.ts", n=1)))
    events = until(make_source(url, time, allow_http=True).events(), time, 1000 + 3600)
    lost, flapping = (event for event in events if isinstance(event, SourceAlert))
    assert (lost.kind, flapping.kind) == (SourceEventKind.LOST, SourceEventKind.FLAPPING)
    assert flapping.losses == FLAPPING_LOSSES
    assert flapping.within_s == flapping.status.at - lost.status.at
    assert len(list(frames_of(events))) > 100


def test_a_camera_that_recovers_between_its_losses_flaps_all_the_same(camera, time):
    camera(frames=15, then=GONE)
    options = {"retry_first_s": 0.1, "retry_max_s": 0.1}
    events = until(make_source("rtsp://cam/x", time, **options).events(), time, 1000 + 3600)
    often = [SourceEventKind.LOST, SourceEventKind.REGAINED] * (FLAPPING_LOSSES - 1)
    assert alerts(events) == [*often, SourceEventKind.FLAPPING]


def test_a_camera_that_flapped_is_regained_when_it_has_stood_for_long(camera, time):
    made = camera(frames=1, then=GONE)
    events = make_source("rtsp://cam/x", time).events()
    before = until(events, time, 1200)
    made.n_frames = 1000
    opened_at = time.now
    after = until(events, time, 2000)
    assert alerts(before)[-1] is SourceEventKind.FLAPPING
    assert alerts(after) == [SourceEventKind.REGAINED]
    regained = next(e for e in after if isinstance(e, SourceAlert))
    assert FLAPPING_S <= regained.status.at - opened_at < FLAPPING_S + 60


def test_a_camera_that_flapped_and_stays_away_is_lost(camera, time):
    made = camera(frames=1, then=GONE)
    events = make_source("rtsp://cam/x", time).events()
    before = until(events, time, 1200)
    made.n_frames = 0
    after = until(events, time, 3000)
    assert alerts(before)[-1] is SourceEventKind.FLAPPING
    assert alerts(after) == [SourceEventKind.LOST]


@pytest.mark.parametrize("code", [SourceCode.REFUSED, SourceCode.FROZEN])
def test_attempts_that_fail_for_other_reasons_are_no_further_alerts(camera, time, code):
    made = camera(frames=5, then=GONE)
    events = make_source("rtsp://cam/x", time).events()
    before = list(itertools.islice(events, 8))
    made.n_frames = 0
    made.then = itertools.repeat(SourceError(code, "not now"))
    after = until(events, time, 2000)
    assert changes(after)[-1][2] == code
    assert alerts(before + after) == [SourceEventKind.LOST]


# --- passwords ---


def test_a_refused_password_is_tried_again_ever_more_rarely_and_the_status_says_so(camera, time):
    made = camera(frames=0, then=SourceError(SourceCode.UNAUTHORISED, "401"))
    events = until(make_source("rtsp://cam/x", time).events(), time, 1000 + 3 * 3600)
    waits = [b - a for a, b in itertools.pairwise(made.opened_at)]
    assert waits[:8] == pytest.approx([60, 120, 240, 480, 960, 1800, 1800, 1800])
    detail = next(statuses(events)).detail
    assert detail == ("401; tried again after 60 s, then ever more rarely: cameras lock accounts")


def test_other_failures_in_between_do_not_bring_a_refused_password_forward(camera, time):
    made = camera(frames=0)
    made.then = itertools.cycle([SourceError(SourceCode.UNAUTHORISED, "401"), REFUSED])
    until(make_source("rtsp://cam/x", time).events(), time, 1000 + 3600)
    refusals = made.opened_at[::2]
    waits = [b - a for a, b in itertools.pairwise(refusals)]
    assert all(wait >= least for wait, least in zip(waits, [60, 120, 240, 480, 960], strict=False))


# --- what has an end ---


def test_what_has_an_end_is_read_once_and_waits_wherever_it_lies(camera, time):
    made = camera(frames=5, is_live=False)
    source = make_source("https://host/clip.mp4", time, allow_http=True)
    assert source.is_live  # as long as nobody knows
    events = source.events()
    next(events)
    assert not source.is_live
    assert changes(events) == [(0, SourceState.ENDED, SourceCode.END_OF_FILE)]
    assert len(made.opened_at) == 1


def test_what_has_an_end_and_breaks_is_not_begun_again(camera, time):
    made = camera(frames=5, is_live=False, then=GONE)
    events = list(make_source("https://host/clip.mp4", time, allow_http=True).events())
    assert changes(events)[-1] == (0, SourceState.ENDED, SourceCode.DISCONNECTED)
    assert alerts(events) == [SourceEventKind.ENDED]
    assert len(made.opened_at) == 1


# --- errors of ours ---


def test_an_unexpected_error_of_the_decoder_is_that_of_one_source(camera, time, caplog):
    camera(frames=3, then=ZeroDivisionError("a bug"))
    events = until(make_source("rtsp://cam/x", time).events(), time, 1050)
    assert (0, SourceState.LOST, SourceCode.DECODING_FAILED) in changes(events)
    assert changes(events)[-1][0] > 1
    stacks = [record for record in caplog.records if record.exc_info]
    assert len(stacks) == 1  # one a minute
    assert "a bug" in caplog.text


def test_an_unexpected_error_ends_what_has_an_end(camera, time):
    camera(frames=3, is_live=False, then=ZeroDivisionError("a bug"))
    events = list(make_source("clip.mp4", time).events())
    assert changes(events)[-1] == (0, SourceState.ENDED, SourceCode.DECODING_FAILED)


def test_a_source_whose_frames_fail_in_the_analysis_is_lost_until_they_have_not_for_a_while(
    camera, time
):
    camera(frames=100, then=GONE)
    fates = {"now": FrameFates()}
    events = []
    for event in make_source("rtsp://cam/x", time).events(lambda **_: fates["now"]):
        events.append(event)
        if isinstance(event, Frame):
            if event.stamp.session == 1:
                break
            failed = fates["now"].failed
            if event.stamp.index in (10, 11, 20):
                fates["now"] = FrameFates(failed=failed + 1, failing=True)
            elif event.stamp.index in (15, 21):
                fates["now"] = FrameFates(failed=failed, failing=False)
    in_first = [change for change in changes(events) if change[0] == 0]
    assert in_first == [
        OPEN_OK,
        (0, SourceState.LOST, SourceCode.ANALYSIS_FAILED),
        OPEN_OK,
        (0, SourceState.LOST, SourceCode.DISCONNECTED),
    ]
    _, failing, again, *_ = (s for s in statuses(events) if s.changed)
    assert (failing.at, again.at) == (1010, 1030)
    assert (failing.frames_failed, again.frames_failed) == (1, 3)
    kinds = [SourceEventKind.LOST, SourceEventKind.REGAINED, SourceEventKind.LOST]
    assert alerts(events) == kinds


def test_a_file_of_which_frames_failed_in_the_analysis_ends_as_failed(clip, time, caplog):
    def fates(*, settled: bool = False) -> FrameFates:
        return FrameFates(failed=2) if settled else FrameFates()  # the last frames are on their way

    events = list(make_source(clip, time).events(fates))
    assert changes(events) == [OPEN_OK, (0, SourceState.ENDED, SourceCode.ANALYSIS_FAILED)]
    assert alerts(events) == [SourceEventKind.ENDED]
    assert next(statuses(reversed(events))).detail == (
        "2 of 10 frames failed; the log has the stacks"
    )


def test_a_status_counts_the_frames_that_were_dropped_and_that_failed(clip, time):
    source = make_source(clip, time)
    events = source.events(lambda **_: FrameFates(overtaken=3, failed=1, failing=False))
    assert [(s.frames_dropped, s.frames_failed) for s in statuses(events)][-1] == (3, 1)


def test_what_was_due_and_not_decoded_counts_as_due_and_as_dropped(camera, time):
    camera(frames=4, is_live=False).frames_undecoded = 3
    source = make_source("a.mp4", time)
    *_, last = statuses(source.events(lambda **_: FrameFates(overtaken=2, late=1)))
    assert (last.frames_due, last.frames_dropped) == (4 + 3, 2 + 1 + 3)
    assert last.frames_undecoded == 3


# --- for people ---


# --- watched by one process after another ---


def test_a_camera_whose_process_died_is_lost_at_once_and_goes_on_with_the_next_session(
    camera, time
):
    camera(frames=100, then=GONE)
    before = make_source("rtsp://camera/1", time)
    until(before.events(lambda **_: FrameFates(overtaken=2)), time, time.now + 4)
    between = make_source("rtsp://camera/1", time, history=before.history)
    said = list(between.interrupted("its worker was killed by SIGKILL", for_good=False))
    assert changes(said) == [(0, SourceState.LOST, SourceCode.WORKER_FAILED)]
    assert alerts(said) == [SourceEventKind.LOST]
    after = make_source("rtsp://camera/1", time, history=between.history)
    events = until(after.events(lambda **_: FrameFates(late=3)), time, time.now + 15)
    assert changes(events) == [(1, SourceState.OPEN, SourceCode.OK)]
    assert {f.stamp.session for f in frames_of(events)} == {1}
    assert alerts(events) == [SourceEventKind.REGAINED]
    (regained,) = (event for event in events if isinstance(event, SourceAlert))
    assert regained.ordinal == 2
    last = list(statuses(events))[-1]
    watched = len(list(frames_of(events[: events.index(last)])))
    assert last.frames_seen == before.history.status.frames_seen + watched
    assert last.frames_dropped == 5


def test_a_camera_whose_processes_die_again_and_again_flaps(camera, time):
    camera(frames=100, then=GONE)
    history = None
    raised = []
    for _ in range(FLAPPING_LOSSES + 1):
        source = make_source("rtsp://camera/1", time, history=history)
        raised += alerts(until(source.events(), time, time.now + 2))
        raised += alerts(source.interrupted("SIGSEGV", for_good=False))
        history = source.history
    assert raised == [SourceEventKind.LOST, SourceEventKind.FLAPPING]
    assert history.sessions == FLAPPING_LOSSES + 1


def test_nobody_watches_a_source_and_its_heartbeat_says_so(camera, time):
    camera(frames=100, then=GONE)
    source = make_source("rtsp://camera/1", time, heartbeat_s=5)
    list(source.interrupted("SIGKILL", for_good=False))
    assert list(source.beat()) == []
    time.now += 5
    (beat,) = source.beat()
    assert (beat.state, beat.code, beat.changed) == ("lost", "worker_failed", False)
    assert changes(source.stopped()) == [(0, SourceState.ENDED, SourceCode.STOPPED)]


@pytest.mark.parametrize(
    ("begun", "options", "for_good", "state"),
    [
        (True, {}, False, SourceState.ENDED),
        (False, {}, False, SourceState.LOST),
        (False, {}, True, SourceState.ENDED),
        (True, {"loop": True}, True, SourceState.LOST),
    ],
    ids=["begun", "not begun", "not begun, and to blame", "looped"],
)
def test_a_file_whose_process_died_is_over_once_it_was_begun(
    begun, options, for_good, state, clip, time
):
    source = make_source(clip, time, **options)
    if begun:
        next(source.events())
    said = list(source.interrupted("SIGKILL", for_good=for_good))
    assert changes(said) == [(0, state, SourceCode.WORKER_FAILED)]
    ended = state is SourceState.ENDED
    assert alerts(said) == [SourceEventKind.ENDED if ended else SourceEventKind.LOST]


def test_an_open_source_says_what_it_is(clip, time):
    status = next(make_source(clip, time).events())
    assert status.detail == "h264 320x240, 25 fps"


def test_a_source_that_failed_is_an_error_in_the_log(tmp_path, time, caplog):
    list(make_source(tmp_path / "no.mp4", time).events())
    (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert record.levelno == logging.ERROR
    assert "not_found" in record.getMessage()


def test_the_end_of_a_file_is_no_error_in_the_log(clip, time, caplog):
    list(make_source(clip, time).events())
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "name", [b"door\xe9.mp4", b"a\nb.mp4", b"\x1b[2Jc.mp4", "\u202ed.mp4".encode()]
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_name_of_any_bytes_can_be_written_and_steers_no_terminal(
    clip, tmp_path, time, caplog, name, exists
):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / os.fsdecode(name)
    if exists:
        path.write_bytes(clip.read_bytes())
    config = parse_source_argument(str(path))
    source = Source(config, DecodeConfig(), stop=time, clock=time.wall, monotonic=time)
    events = list(source.events())
    end = SourceCode.END_OF_FILE if exists else SourceCode.NOT_FOUND
    assert changes(events)[-1] == (0, SourceState.ENDED, end)
    writer = MessageWriter(run="0" * 8, version="", models=())
    for event in events:
        if not isinstance(event, Frame):
            assert writer.write(event).to_json().isprintable()
    assert caplog.text.replace("\n", "").isprintable()
    assert len(caplog.text.splitlines()) == len(caplog.records)


@pytest.mark.parametrize(
    ("path", "code"),
    [("gone.mp4", SourceCode.NOT_FOUND), ("page.html", SourceCode.INVALID_DATA)],
)
def test_a_web_server_without_the_video_is_told_apart(http_server, tmp_path, time, path, code):
    (tmp_path / "page.html").write_text("<html>" * 100)
    url = f"{http_server(tmp_path)}/{path}"
    events = make_source(url, time, allow_http=True, give_up_s=1).events()
    assert changes(events)[-1] == (0, SourceState.ENDED, code)


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
    assert changes(events)[-1][1] is SourceState.ENDED


# --- credentials ---


def test_credentials_reach_neither_statuses_nor_logs(unused_port, time, caplog):
    caplog.set_level(logging.DEBUG)
    uri = f"rtsp://admin:hun%2Fter2@127.0.0.1:{unused_port}/x?token=geheim"
    events = list(make_source(uri, time, give_up_s=60).events())
    assert changes(events)[-1][2] is SourceCode.REFUSED
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
        ("./two words=clip.mp4", "two-words-clip", "./two words=clip.mp4"),
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


@pytest.mark.parametrize(
    "name", ["cam 1", "", " ", ".cam", "-cam", "käm", "cam!", "n" * 65, "cam\n", "[cam]", "a%b"]
)
def test_an_invalid_name_before_a_source_is_refused_with_the_rule(name):
    with pytest.raises(ConfigError) as caught:
        parse_source_argument(f"{name}=rtsp://viewer:secret@camera/1", 7)
    assert str(caught.value).startswith(f"source 7: {name!r} before = is not a valid name")
    assert "at most 63 letters, digits, or . _ -" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("argument", ["viewer:pass=word@camera/1", "viewer@camera=1"])
def test_what_may_be_the_beginning_of_a_password_is_not_repeated(argument):
    with pytest.raises(ConfigError, match="what stands before = is not a valid name") as caught:
        parse_source_argument(argument)
    assert "viewer" not in str(caught.value)
