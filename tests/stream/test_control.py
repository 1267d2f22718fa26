"""Cameras at run time: sources added, removed, changed and paused while others are watched."""

from __future__ import annotations

import gc
import socket
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from stream.config import load_config
from stream.control import reload_when_told
from stream.errors import ConfigError
from stream.messages import VerdictMessage
from tests.stream.running import OPEN, PAUSED, STOPPED, WAIT_S, Run, config_of, wait_until

if TYPE_CHECKING:
    from stream.config import SourceConfig


@pytest.fixture
def start(open_analyser, clip):
    """Return a function that makes a run; its camera `first` plays a clip without end."""

    def make(**first: Any) -> Run:
        looped = {"id": "first", "uri": str(clip), "loop": True}
        return Run(config_of({**looped, **first}), open_analyser())

    return make


def source_of(source_id: str, uri: object, **options: Any) -> SourceConfig:
    options = {"loop": True, **options}
    return config_of({"id": source_id, "uri": str(uri), **options}).sources[0]


def test_a_source_that_is_added_and_removed_says_so_and_its_tracks_end(start, two_faces):
    with start().running() as run:
        run.control.add(source_of("new", two_faces, realtime=True))
        run.wait_for(
            lambda: any(
                isinstance(m, VerdictMessage) and m.source.id == "new" for m in run.messages
            )
        )
        run.control.remove("new")
        run.wait_for(lambda: STOPPED in run.changes("new"))
        run.wait_for_gone("new")
        begun = {m.track.id for m in run.scores("new")}

        def ends():
            return [m.track.id for m in run.scores("new") if m.event.type == "track.end"]

        run.wait_for(lambda: len(ends()) >= len(begun))  # the analysis ends them, in its turn
        assert sorted(ends()) == sorted(begun)
        assert [view.config.id for view in run.control.sources()] == ["first"]
    assert run.changes("new") == [OPEN, STOPPED]
    assert run.changes("first").count(STOPPED) == 1  # at the end of the run


def test_200_cameras_that_come_and_go_leave_nothing_and_cost_another_no_frame(
    start, write_clip, tmp_path
):
    clip = write_clip(tmp_path / "guest.mp4", n=20, size=(640, 360))  # 0.7 MB a picture
    guest = source_of("guest", clip, realtime=True)
    process = psutil.Process()

    def held() -> tuple[int, int, int]:
        gc.collect()
        return process.num_fds(), threading.active_count(), process.memory_info().rss

    with start().running() as run:
        for life in range(200):
            run.control.add(guest)
            run.wait_for_frame("guest", life)
            run.control.remove("guest")
            if life == 20:
                run.wait_for_gone("guest")
                before = held()
        run.wait_for_gone("guest")
        after = held()
        assert run.changes("guest").count(STOPPED) == 200
        assert after[:2] == before[:2]
        assert after[2] - before[2] < 20e6
    by_session: dict[int, list[int]] = {}
    for stamp in run.stamps:
        if stamp.source_id == "first":
            by_session.setdefault(stamp.session, []).append(stamp.index)
    *whole, _ = by_session.values()  # the last was cut off by the end
    assert len(whole) > 2
    assert whole == [list(range(0, 50, 5))] * len(whole)
    assert list(by_session) == list(range(len(by_session)))


# --- changed and paused ---


def test_a_changed_source_goes_on_with_the_next_session(start, two_faces, clip):
    with start().running() as run:
        run.control.add(source_of("new", clip))
        run.wait_for_frame("new")
        run.control.change(source_of("new", two_faces, realtime=True))
        run.wait_for(lambda: run.stamps[-1].source_id == "new" and run.stamps[-1].width == 400)
        sessions = {(s.width, s.session) for s in run.stamps if s.source_id == "new"}
    assert max(n for width, n in sessions if width == 320) < min(
        n for width, n in sessions if width == 400
    )
    assert STOPPED in run.changes("new")


def test_a_source_that_is_removed_and_added_again_uses_no_track_id_twice(start, two_faces):
    with start().running() as run:
        for session in (0, 1):
            run.control.add(source_of("new", two_faces, realtime=True))
            run.wait_for_frame("new", session)
            run.wait_for(
                lambda: run.scores("new")[-1:] and run.scores("new")[-1].event.type == "track.score"
            )
            run.control.remove("new")
            run.wait_for_gone("new")
    ended = [m.track.id for m in run.scores("new") if m.event.type == "track.end"]
    assert len(ended) == len(set(ended)) > 1
    assert {m.source.session for m in run.scores("new")} == {0, 1}


def test_a_paused_source_reads_nothing_says_so_and_goes_on_when_resumed(start, two_faces):
    with start(uri=str(two_faces), realtime=True, heartbeat_s=0.2).running() as run:
        run.wait_for(lambda: run.scores("first"))
        run.control.pause("first")
        run.wait_for(lambda: PAUSED in run.changes("first"))
        run.wait_for(lambda: run.scores("first")[-1].event.type == "track.end")
        n_frames, n_messages = len(run.stamps), len(run.messages)
        run.wait_for(lambda: len(run.messages) > n_messages + 1)  # heartbeats
        assert len(run.stamps) == n_frames
        assert [view.is_paused for view in run.control.sources()] == [True]
        run.control.resume("first")
        run.wait_for_frame("first", 1)
    assert run.changes("first")[:3] == [OPEN, PAUSED, OPEN]


def test_a_paused_source_can_be_removed(start, clip):
    with start().running() as run:
        run.control.add(source_of("new", clip))
        run.wait_for_frame("new")
        run.control.pause("new")
        run.wait_for(lambda: PAUSED in run.changes("new"))
        run.control.remove("new")
        run.wait_for_gone("new")
    assert run.changes("new")[-2:] == [PAUSED, STOPPED]


def test_a_camera_that_does_not_answer_is_removed_without_waiting_for_it(start):
    with start().running() as run, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        run.control.add(source_of("silent", url, loop=False, open_timeout_s=3600))
        silent.settimeout(WAIT_S)
        connection, _ = silent.accept()
        (stuck,) = (t for t in threading.enumerate() if t.name == "decode-silent")
        run.control.remove("silent")
        run.wait_for(lambda: run.changes("silent") == [STOPPED])
        run.wait_for_gone("silent")
        connection.close()
    stuck.join(WAIT_S)
    assert run.changes("silent") == [STOPPED]


def test_the_run_goes_on_without_any_source_and_takes_others(start, clip):
    with start().running() as run:
        run.wait_for_frame("first")
        run.control.remove("first")
        run.wait_for_gone("first")
        assert run.control.sources() == []
        run.control.add(source_of("second", clip))
        run.wait_for_frame("second")


# --- refused ---


def test_what_can_not_be_done_is_refused_with_the_reason_and_changes_nothing(start, clip):
    once = source_of("once", clip, loop=False)
    with start(heartbeat_s=5).running() as run:
        control = run.control
        for refused, why in [
            (lambda: control.add(source_of("first", clip)), "used twice: first"),
            (lambda: control.add(source_of("b", "ftp://x/y")), "can't open ftp://x/y"),
            (lambda: control.add(source_of("b", clip, heartbeat_s=6)), "heartbeat_s 6 is longer"),
            (lambda: control.add(source_of("b", "http://camera/x")), "allow_http"),
            (lambda: control.change(source_of("b", clip)), "there are: first"),
            (lambda: control.remove("b"), "there are: first"),
            (lambda: control.pause("b"), "there are: first"),
            (lambda: control.resume("b"), "there are: first"),
        ]:
            with pytest.raises(ConfigError, match=why):
                refused()
        control.change(once.model_copy(update={"id": "first"}))
        with pytest.raises(ConfigError, match="read once, to its end, can't be paused"):
            control.pause("first")
        assert [view.config.id for view in control.sources()] == ["first"]


def test_passwords_of_new_sources_are_hidden_before_they_are_opened(start):
    with start().running() as run:
        run.control.add(source_of("new", "rtsp://user:secret@127.0.0.1:9/x", loop=False))
    assert run.hidden == ["rtsp://user:secret@127.0.0.1:9/x"]


# --- a new configuration ---


def test_a_new_configuration_adds_removes_and_changes_what_differs_and_no_more(
    start, clip, two_faces
):
    first = {"id": "first", "uri": str(clip), "loop": True}
    gone, other = ({"id": name, "uri": str(clip), "loop": True} for name in ("gone", "other"))
    with start().running() as run:
        run.control.reconcile(config_of(first, gone, other))
        for name in ("gone", "other"):
            run.wait_for_frame(name)
        changed = {**other, "uri": str(two_faces)}
        done = run.control.reconcile(config_of(first, changed, {**gone, "id": "fresh"}))
        assert str(done) == "added fresh; removed gone; changed other"
        run.wait_for(lambda: any(s.width == 400 for s in run.stamps))
        run.wait_for_frame("fresh")
        run.wait_for_gone("gone")
        assert str(run.control.reconcile(config_of(first, changed, {**gone, "id": "fresh"}))) == (
            "nothing differs"
        )
    assert run.changes("first").count(STOPPED) == 1  # at the end of the run


def test_a_configuration_that_differs_elsewhere_is_refused_and_named(start, clip):
    first = {"id": "first", "uri": str(clip), "loop": True}
    other = config_of(
        {**first, "id": "b"},
        decode={"analyse_fps": 3, "threads": 2},
        sinks=[{"kind": "jsonl", "path": "x"}],
    )
    with start().running() as run:
        with pytest.raises(
            ConfigError, match=r"restart for decode\.analyse_fps, decode\.threads, sinks"
        ):
            run.control.reconcile(other)
        assert [view.config.id for view in run.control.sources()] == ["first"]


def test_a_broken_file_leaves_all_as_it_is_and_the_next_one_is_read(start, clip, tmp_path, caplog):
    path = tmp_path / "cameras.yaml"
    told = threading.Event()
    caplog.set_level("INFO")
    first = {"id": "first", "uri": str(clip), "loop": True}
    with start().running() as run:
        arguments = (told, run.control, lambda: load_config(path))
        reloading = threading.Thread(target=reload_when_told, args=arguments, daemon=True)
        reloading.start()
        for text in ("sources: [", yaml.safe_dump({"sources": [first], "surces": []})):
            path.write_text(text)
            told.set()
            wait_until(lambda: not told.is_set() and "as it was" in caplog.text)
            assert [view.config.id for view in run.control.sources()] == ["first"]
        path.write_text(yaml.safe_dump({"sources": [first, {**first, "id": "second"}]}))
        told.set()
        run.wait_for_frame("second")
    assert "SIGHUP: all stays as it was:" in caplog.text
    assert "SIGHUP: added second" in caplog.text
