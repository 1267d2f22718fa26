"""Threads, backpressure and shutdown: real sources, a real analyser, and sinks that are lists."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stream.analyse import Step
from stream.config import DecodeConfig, SourceConfig
from stream.errors import SinkError, StreamError
from stream.messages import (
    MessageWriter,
    ScoreMessage,
    SourceMessage,
    StatusMessage,
    VerdictMessage,
)
from stream.pipeline import HOPELESS_FRAMES, Pipeline
from stream.records import Frame, SourceCode, SourceState, SourceStatus
from stream.sources import Source
from stream.stages.follow import Follower
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from stream.analyse import Analyser
    from stream.learned import Learned
    from stream.messages import OutMessage
    from stream.records import Message, SourceOutput

WAIT_S = 30.0  # for what must happen; a test that waits so long has failed


class ListSink:
    """Keeps messages; may act on each."""

    def __init__(self, act: Callable[[OutMessage], None] = lambda message: None) -> None:
        self.messages: list[OutMessage] = []
        self.closed = 0
        self._act = act

    def publish(self, messages: Sequence[OutMessage]) -> None:
        for message in messages:
            self.messages.append(message)
            self._act(message)

    def close(self) -> None:
        self.closed += 1

    @property
    def said(self) -> list[OutMessage]:
        about_sources = StatusMessage, SourceMessage
        return [m for m in self.messages if not isinstance(m, about_sources)]

    @property
    def changes(self) -> list[tuple[str, SourceState, SourceCode]]:
        statuses = [m for m in self.messages if isinstance(m, StatusMessage)]
        return [(m.source.id, m.status.state, m.status.code) for m in statuses if m.status.changed]


class FailingSink(ListSink):
    """Fails to publish, to close, or both."""

    def __init__(self, *, publish: Exception | None = None, close: Exception | None = None) -> None:
        super().__init__()
        self._errors = publish, close

    def publish(self, messages: Sequence[OutMessage]) -> None:
        if self._errors[0]:
            raise self._errors[0]

    def close(self) -> None:
        super().close()
        if self._errors[1]:
            raise self._errors[1]


class Watched:
    """An analyser that does something first, given the number of the step."""

    def __init__(self, analyser: Analyser, first: Callable[[int], None]) -> None:
        self._analyser = analyser
        self._first = first
        self._steps = 0

    def step(self, frames: Sequence[Frame]) -> Step:
        if frames:
            self._first(self._steps)
            self._steps += 1
        return self._analyser.step(frames)

    def finish(self, source_id: str) -> list[Any]:
        return list(self._analyser.finish(source_id))

    def begin(self, source: SourceConfig, learned: Learned | None) -> None:
        self._analyser.begin(source, learned)


class FakeTime(threading.Event):
    """A clock and stop event in one: waiting for it takes no time, but moves the clock."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


def source(path, stop, *, name="cam", **options):
    config = SourceConfig.model_validate({"id": name, "uri": str(path), **options})
    clock = {"clock": stop, "monotonic": stop} if isinstance(stop, FakeTime) else {}
    return Source(config, DecodeConfig(), stop=stop, **clock)


def pipeline(sources, analyser, sinks, stop, *, shutdown_s=WAIT_S):
    writer = MessageWriter(run="0" * 8, version="", models=())
    return Pipeline(sources, analyser, writer, sinks, stop=stop, shutdown_s=shutdown_s)


def straight_line(analyser: Analyser, events: Iterable[SourceOutput]) -> list[Message]:
    frames = (event for event in events if isinstance(event, Frame))
    said: list[Message] = [m for frame in frames for m in analyser.analyse([frame])]
    return said + list(analyser.finish("cam"))


OPENED = ("cam", SourceState.OPEN, SourceCode.OK)
FILE_ENDED = ("cam", SourceState.ENDED, SourceCode.END_OF_FILE)
STOPPED = ("cam", SourceState.ENDED, SourceCode.STOPPED)


# --- to the end of files ---


def test_what_a_watcher_says_is_published(open_analyser, two_faces, stop, records):
    class Saying:
        def watch(self, frames, step):
            return [records.drift()] if frames and frames[0].stamp.pts_s == 1.0 else None

    sink = ListSink()
    writer = MessageWriter(run="0" * 8, version="", models=())
    Pipeline(
        [source(two_faces, stop)], open_analyser(), writer, [sink], stop=stop, shutdown_s=WAIT_S,
        watchers=[Saying()],
    ).run()  # fmt: skip
    assert [m.event.type for m in sink.messages].count("camera.drift") == 1


def test_a_file_gives_every_sink_what_the_straight_line_says_in_the_same_order(
    open_analyser, read_events, two_faces, stop, facts
):
    sinks = [ListSink(), ListSink()]
    pipeline([source(two_faces, stop)], open_analyser(), sinks, stop).run()
    expected = facts(straight_line(open_analyser(), read_events(two_faces)))
    for sink in sinks:
        assert facts(sink.said) == expected
        assert sink.changes == [OPENED, FILE_ENDED]
        assert sink.messages[0] is not sink.said[0]  # a status comes first
        assert sink.closed == 1
    assert [fact["event.type"] for fact in expected].count("track.end") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority")
def test_decoding_has_a_lower_priority_than_the_analysis(open_analyser, two_faces, stop):
    niceness: dict[str, int] = {}

    def note(_: int) -> None:
        for thread in threading.enumerate():
            if thread.native_id is not None:
                niceness[thread.name] = os.getpriority(os.PRIO_PROCESS, thread.native_id)

    pipeline([source(two_faces, stop)], Watched(open_analyser(), note), [ListSink()], stop).run()
    assert niceness["decode-cam"] > niceness["analysis"] == niceness["publish"]


def test_threads_hand_over_the_interpreter_sooner_than_by_default(
    open_analyser, two_faces, stop, monkeypatch
):
    asked: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", asked.append)
    pipeline([source(two_faces, stop)], open_analyser(), [ListSink()], stop).run()
    (interval_s,) = asked
    assert interval_s <= 0.001  # 0.005 by default


def test_two_files_are_watched_at_once_and_neither_loses_a_frame(
    open_analyser, write_two_faces, two_faces, stop, tmp_path
):
    shorter = write_two_faces(tmp_path / "short.mp4", seconds=2)
    sink = ListSink()
    sources = [source(two_faces, stop, name="a"), source(shorter, stop, name="b")]
    run = pipeline(sources, open_analyser(), [sink], stop)
    run.run()
    for name, due in (("a", 15), ("b", 10)):
        ended = run.progress().sources[name]
        assert ended.state is SourceState.ENDED
        assert (ended.frames_due, ended.frames_dropped) == (due, 0)
        ends = [m for m in sink.said if m.event.type == "track.end"]
        assert len([m for m in ends if m.source.id == name]) == 2
    assert run.progress().frames_analysed == 25


def test_a_source_that_fails_does_not_end_the_others(open_analyser, two_faces, stop, tmp_path):
    sink = ListSink()
    sources = [source(tmp_path / "no.mp4", stop, name="gone"), source(two_faces, stop)]
    pipeline(sources, open_analyser(), [sink], stop).run()
    assert ("gone", SourceState.ENDED, SourceCode.NOT_FOUND) in sink.changes
    assert [change for change in sink.changes if change[0] == "cam"] == [OPENED, FILE_ENDED]
    assert any(isinstance(message, VerdictMessage) for message in sink.said)


@pytest.mark.parametrize("broken", ["missing", "folder", "cut"])
def test_a_source_that_failed_is_named_after_the_run(
    open_analyser, two_faces, stop, tmp_path, broken
):
    path = tmp_path / "broken.mp4"
    if broken == "folder":
        path.mkdir()
    elif broken == "cut":
        path.write_bytes(two_faces.read_bytes()[:5000])
    sources = [source(path, stop, name="broken"), source(two_faces, stop)]
    run = pipeline(sources, open_analyser(), [ListSink()], stop)
    run.run()
    assert [status.source_id for status in run.failed_sources()] == ["broken"]


def test_no_source_failed_where_all_ended_or_were_stopped(open_analyser, two_faces, stop):
    def stop_at_an_alert(message):
        if isinstance(message, VerdictMessage):
            stop.set()

    sources = [source(two_faces, stop, loop=True)]
    run = pipeline(sources, open_analyser(), [ListSink(stop_at_an_alert)], stop)
    run.run()
    assert run.failed_sources() == []


def test_the_report_counts_frames_and_verdicts(open_analyser, two_faces, stop):
    reports = []
    run = pipeline([source(two_faces, stop)], open_analyser(), [ListSink()], stop)
    run.run(reports.append)
    last = reports[-1]
    assert last.frames_analysed == 15
    assert last.verdicts == {"bona_fide": 1, "attack": 1}
    assert last.sources["cam"].state is SourceState.ENDED


def test_a_sink_that_is_slow_does_not_count_as_latency(open_analyser, two_faces, stop):
    ahead_s = [0.0]
    all_written = threading.Event()

    class Writer(MessageWriter):
        """Says when the last status was written, by which time all scores were."""

        def write(self, record):
            if isinstance(record, SourceStatus) and record.state is SourceState.ENDED:
                all_written.set()
            return super().write(record)

    def hang(message):
        assert all_written.wait(WAIT_S)
        ahead_s[0] = 1e6

    sink = ListSink(hang)
    writer = Writer("0" * 8, "", (), clock=lambda: time.time() + ahead_s[0])
    Pipeline(
        [source(two_faces, stop)], open_analyser(), writer, [sink], stop=stop, shutdown_s=WAIT_S
    ).run()
    scores = [m for m in sink.said if m.event.type == "track.score"]
    assert scores
    assert max(m.latency_ms for m in scores) < 1e6


# --- asked to stop ---


def test_a_stop_ends_every_track_and_says_so_of_the_source(open_analyser, two_faces, stop):
    def stop_at_an_alert(message):
        if isinstance(message, VerdictMessage):
            stop.set()

    sink = ListSink(stop_at_an_alert)
    pipeline([source(two_faces, stop, loop=True)], open_analyser(), [sink], stop).run()
    scores = [message for message in sink.said if isinstance(message, ScoreMessage)]
    begun = {score.track.id for score in scores}
    assert {score.track.id for score in scores if score.event.type == "track.end"} == begun
    assert sink.changes[-1] == STOPPED
    assert sink.closed == 1


def test_a_drain_that_takes_too_long_is_an_error_and_shows_where_it_hangs(
    open_analyser, two_faces, stop, capfd
):
    go_on = threading.Event()

    def hang(step):
        stop.set()
        go_on.wait(WAIT_S)

    run = pipeline(
        [source(two_faces, stop)],
        Watched(open_analyser(), hang),
        [sink := ListSink()],
        stop,
        shutdown_s=0.05,
    )
    threads = set(threading.enumerate())
    with pytest.raises(StreamError, match=r"could not drain within 0\.05 s"):
        run.run()
    assert "in hang" in capfd.readouterr().err
    go_on.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join(WAIT_S)
    assert sink.closed == 1


def test_a_camera_that_does_not_answer_holds_up_no_stop(open_analyser, two_faces, stop, caplog):
    def stop_at_an_alert(message):
        if isinstance(message, VerdictMessage):
            stop.set()

    sink = ListSink(stop_at_an_alert)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        sources = [
            source(url, stop, name="silent", open_timeout_s=3600),
            source(two_faces, stop, loop=True),
        ]
        pipeline(sources, open_analyser(), [sink], stop, shutdown_s=12).run()
        (stuck,) = (t for t in threading.enumerate() if t.name == "decode-silent")
    stuck.join(WAIT_S)
    assert ("silent", SourceState.ENDED, SourceCode.STOPPED) in sink.changes
    assert sink.changes.count(STOPPED) == 1
    assert "source silent: a read does not return" in caplog.text
    assert sink.closed == 1


# --- one source's errors ---


class FailingAtTimes:
    """Lets detection of one source's frames fail, where `fails` says so of a frame's index.

    No picture is known that does so; the fault is made up, all parts are real.
    """

    def __init__(self, monkeypatch, source_id, fails, error=None):
        detect = Follower.detect

        def wrapped(follower, frames):
            stamps = [frame.stamp for frame in frames]
            if any(s.source_id == source_id and fails(s.index) for s in stamps):
                raise error or RuntimeError("a bug")
            return detect(follower, frames)

        monkeypatch.setattr(Follower, "detect", wrapped)


def test_a_source_whose_frames_fail_says_so_and_the_others_go_on(
    open_analyser, read_events, two_faces, stop, facts, monkeypatch, caplog
):
    expected = facts(straight_line(open_analyser(), read_events(two_faces)))
    FailingAtTimes(monkeypatch, "bad", lambda index: index >= 20)
    sink = ListSink()
    sources = [source(two_faces, stop, name="bad"), source(two_faces, stop)]
    run = pipeline(sources, open_analyser(), [sink], stop)
    run.run()
    said = facts([m for m in sink.said if m.source.id == "cam"])
    # Another batch size sums in another order.
    assert said == [pytest.approx(fact, abs=1e-3) for fact in expected]
    assert ("bad", SourceState.ENDED, SourceCode.ANALYSIS_FAILED) in sink.changes
    assert [c for c in sink.changes if c[0] == "cam"] == [OPENED, FILE_ENDED]
    assert [status.source_id for status in run.failed_sources()] == ["bad"]
    assert run.progress().sources["bad"].frames_failed == 11
    assert run.progress().frames_analysed == 15 + 4
    (record,) = (r for r in caplog.records if r.exc_info)
    assert record.getMessage() == (
        "source bad: frame 20 of session 0 (400x224, 0.800 s) can't be analysed; its tracks end"
    )


def test_a_source_is_watched_on_after_a_frame_that_failed(
    open_analyser, two_faces, stop, monkeypatch
):
    FailingAtTimes(monkeypatch, "cam", lambda index: index == 20)
    sink = ListSink()
    run = pipeline([source(two_faces, stop, recovered_after_s=0)], open_analyser(), [sink], stop)
    run.run()
    assert sink.changes == [
        OPENED,
        ("cam", SourceState.LOST, SourceCode.ANALYSIS_FAILED),
        OPENED,
        ("cam", SourceState.ENDED, SourceCode.ANALYSIS_FAILED),  # not all of the file was judged
    ]
    kinds = [m.event.type for m in sink.messages if isinstance(m, SourceMessage)]
    assert kinds == ["source.lost", "source.regained", "source.ended"]
    ends = [m for m in sink.said if m.event.type == "track.end"]
    assert len({m.track.id for m in ends}) == len(ends) == 4
    assert {m.verdict.state for m in ends[-2:]} == {"bona_fide", "attack"}


def test_a_record_that_cannot_be_written_is_its_sources_error(
    open_analyser, two_faces, stop, monkeypatch
):
    write = MessageWriter.write

    def fail(writer, record):
        message = write(writer, record)
        if message.source.id == "bad" and isinstance(message, VerdictMessage):
            raise ValueError("not a number")
        return message

    monkeypatch.setattr(MessageWriter, "write", fail)
    sink = ListSink()
    sources = [source(two_faces, stop, name="bad"), source(two_faces, stop)]
    run = pipeline(sources, open_analyser(), [sink], stop)
    run.run()
    assert [status.source_id for status in run.failed_sources()] == ["bad"]
    assert {m.source.id for m in sink.said if isinstance(m, VerdictMessage)} == {"cam"}


# --- errors of no one source ---


def test_the_run_ends_when_frames_of_no_source_can_be_analysed(
    open_analyser, two_faces, stop, monkeypatch
):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Follower, "detect", fail)
    sink = ListSink()
    sources = [source(two_faces, stop, name=name, loop=True) for name in ("a", "b")]
    run = pipeline(sources, open_analyser(), [sink], stop)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.run()
    failed = run.progress().sources
    assert sum(s.frames_failed for s in failed.values()) <= HOPELESS_FRAMES
    assert sink.closed == 1


def test_a_sink_that_fails_ends_the_run_with_its_error(open_analyser, two_faces, stop):
    error = SinkError("no room on the disk")
    sinks = [FailingSink(publish=error), ListSink()]
    run = pipeline([source(two_faces, stop, loop=True)], open_analyser(), sinks, stop)
    with pytest.raises(SinkError) as caught:
        run.run()
    assert caught.value is error
    assert [sink.closed for sink in sinks] == [1, 1]


def test_a_sink_that_fails_to_close_is_reported_and_the_others_are_closed(
    open_analyser, two_faces, stop
):
    error = SinkError("3 alerts were not delivered")
    sinks = [FailingSink(close=error), ListSink()]
    run = pipeline([source(two_faces, stop)], open_analyser(), sinks, stop)
    with pytest.raises(SinkError) as caught:
        run.run()
    assert caught.value is error
    assert [sink.closed for sink in sinks] == [1, 1]


def test_an_engine_that_fails_ends_the_run_after_what_was_said_was_published(
    open_analyser, read_events, two_faces, stop, facts
):
    def fail_at_the_tenth(step):
        if step == 9:
            raise EngineError("the device is gone")

    sink = ListSink()
    analyser = Watched(open_analyser(), fail_at_the_tenth)
    run = pipeline([source(two_faces, stop, loop=True)], analyser, [sink], stop)
    with pytest.raises(EngineError, match="the device is gone"):
        run.run()
    frames = [event for event in read_events(two_faces) if isinstance(event, Frame)]
    line = open_analyser()
    expected = facts([m for frame in frames[:9] for m in line.analyse([frame])])
    assert facts(sink.said) == expected
    assert any(fact["event.type"] == "track.verdict" for fact in expected)
    assert sink.closed == 1


# --- attacks on the feed ---


@pytest.mark.parametrize(
    ("as_camera", "said"), [({"realtime": True}, ["feed.covered"]), ({}, [])], ids=["live", "file"]
)
def test_what_is_wrong_with_a_feed_reaches_the_sinks_for_live_sources_alone(
    open_analyser, write_clip, tmp_path, stop, as_camera, said
):
    def black(_: int, width: int, height: int) -> NDArray[np.uint8]:
        return np.zeros((height, width, 3), np.uint8)

    clip = write_clip(tmp_path / "black.mp4", n=8, fps=5, picture=black)
    analyser = open_analyser(feed={"covered_after_s": 1})
    sink = ListSink()
    pipeline([source(clip, stop, **as_camera)], analyser, [sink], stop).run()
    assert [message.event.type for message in sink.said] == said


# --- overload ---


def test_a_live_source_drops_and_counts_frames_while_analysis_is_busy(
    open_analyser, two_faces, monkeypatch
):
    over = threading.Event()
    fake = FakeTime()
    camera = source(two_faces, fake, realtime=True)
    events = camera.events

    def watched(fates):
        frames = 0
        for event in events(fates):
            yield event
            frames += isinstance(event, Frame)
            if frames == 15:  # the pipeline has taken the last one, too
                over.set()

    monkeypatch.setattr(camera, "events", watched)
    busy = Watched(open_analyser(), lambda step: over.wait(WAIT_S))
    run = pipeline([camera], busy, [ListSink()], fake)
    run.run()
    ended = run.progress().sources["cam"]
    assert over.is_set()
    assert ended.frames_due == 15
    assert 0 < run.progress().frames_analysed <= 3  # one held, two in the queue
    assert ended.frames_dropped == ended.frames_due - run.progress().frames_analysed


def test_a_file_waits_while_analysis_is_busy(open_analyser, two_faces, stop):
    opened = threading.Event()
    sink = ListSink(lambda message: opened.set())
    busy = Watched(open_analyser(), lambda step: opened.wait(WAIT_S))
    run = pipeline([source(two_faces, stop)], busy, [sink], stop)
    run.run()
    assert run.progress().sources["cam"].frames_dropped == 0
    assert run.progress().frames_analysed == 15
