"""Threads, backpressure and shutdown: real sources, a real analyser, and sinks that are lists."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.errors import SinkError, StreamError
from stream.messages import (
    MessageWriter,
    ScoreMessage,
    SourceMessage,
    StatusMessage,
    VerdictMessage,
)
from stream.pipeline import Pipeline
from stream.records import Frame, SourceCode, SourceState
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stream.analyse import Analyser
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

    def analyse(self, frames: Sequence[Frame]) -> list[Any]:
        self._first(self._steps)
        self._steps += 1
        return list(self._analyser.analyse(frames))

    def finish(self, source_id: str) -> list[Any]:
        return list(self._analyser.finish(source_id))


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


def test_the_report_counts_frames_and_verdicts(open_analyser, two_faces, stop):
    reports = []
    run = pipeline([source(two_faces, stop)], open_analyser(), [ListSink()], stop)
    run.run(reports.append)
    last = reports[-1]
    assert last.frames_analysed == 15
    assert last.verdicts == {"bona_fide": 1, "attack": 1}
    assert last.sources["cam"].state is SourceState.ENDED


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


# --- errors ---


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


def test_an_analyser_that_fails_ends_the_run_after_what_it_said_was_published(
    open_analyser, read_events, two_faces, stop, facts
):
    def fail_at_the_tenth(step):
        if step == 9:
            raise RuntimeError("out of memory")

    sink = ListSink()
    analyser = Watched(open_analyser(), fail_at_the_tenth)
    run = pipeline([source(two_faces, stop, loop=True)], analyser, [sink], stop)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.run()
    frames = [event for event in read_events(two_faces) if isinstance(event, Frame)]
    line = open_analyser()
    expected = facts([m for frame in frames[:9] for m in line.analyse([frame])])
    assert facts(sink.said) == expected
    assert any(fact["event.type"] == "track.verdict" for fact in expected)
    assert sink.closed == 1


# --- overload ---


def test_a_live_source_drops_and_counts_frames_while_analysis_is_busy(open_analyser, two_faces):
    over = threading.Event()

    def release_at_the_end(message):
        if isinstance(message, StatusMessage) and message.status.state is SourceState.ENDED:
            over.set()

    time = FakeTime()
    sink = ListSink(release_at_the_end)
    busy = Watched(open_analyser(), lambda step: over.wait(WAIT_S))
    run = pipeline([source(two_faces, time, realtime=True)], busy, [sink], time)
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
