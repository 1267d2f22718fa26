"""Cameras at run time: sources added, removed, changed and paused while others are watched."""

from __future__ import annotations

import gc
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import yaml

from stream.config import load_config
from stream.control import reload_when_told
from stream.errors import ConfigError
from stream.learn.drift import DriftWatcher
from stream.learned import Learned, engines_of, save_learned, settings_sha256
from stream.messages import FeedMessage, VerdictMessage
from tests.stream.running import OPEN, PAUSED, STOPPED, WAIT_S, Run, config_of, wait_until

if TYPE_CHECKING:
    from stream.config import SourceConfig, StreamConfig


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
        run.wait_for(lambda: run.changes("guest").count(STOPPED) == 200)  # said a little later
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


# --- what a source brings, and takes along ---


@pytest.fixture
def learned_by(tiny_engine, tmp_path):
    """Return a function that writes what was learned of a source, with the tiny engine."""

    def write(source_id: str, name: str = "", **thresholds: float) -> str:
        path = tmp_path / f"{name or source_id}.json"
        config = tiny_config(tiny_engine, source_of("any", "unused").model_dump())
        known = {"enter": 0.9, "leave": 0.2} | thresholds
        learned = Learned(
            source_id=source_id, learned_at="2026-11-29T00:00:00+00:00",
            engines=engines_of(config), settings_sha256=settings_sha256(config),
            budget=1, confidence=0.95, at_most=1, rule="counted", watched_s=1, visits=1, judged=1,
            highest=0.5, reference={"score": (0.0,)}, **known,
        )  # fmt: skip
        save_learned(path, learned)
        return str(path)

    return write


def tiny_config(engine: object, *sources: dict[str, Any], **options: Any) -> StreamConfig:
    return config_of(*sources, score={"engines": [{"manifest": str(engine)}]}, **options)


@pytest.fixture
def start_tiny(open_analyser, tiny_engine, clip):
    """Return a function that makes a run whose configuration names the engine, too."""

    def make(others: tuple[Any, ...] = (), **options: Any) -> Run:
        first = {"id": "first", "uri": str(clip), "loop": True}
        config = tiny_config(tiny_engine, first, **options)
        return Run(config, open_analyser(feed={"covered_after_s": 1}), others=others)

    return make


def thresholds_of(run: Run, source_id: str) -> list[set[float]]:
    """Return the thresholds that verdicts named, session by session."""
    found: dict[int, set[float]] = {}
    for m in run.messages:
        if isinstance(m, VerdictMessage) and m.source.id == source_id:
            found.setdefault(m.source.session, set()).add(m.verdict.threshold)
    return [found[session] for session in sorted(found)]


def test_a_source_is_judged_by_what_it_learned_as_long_as_it_is_configured_to(
    start_tiny, two_faces, learned_by
):
    own = source_of("new", two_faces, realtime=True, learned=learned_by("new"))
    other = Path(learned_by("new", "later", enter=0.8, leave=0.3))
    with start_tiny().running() as run:
        run.control.add(own)
        run.wait_for(lambda: {0.9, 0.2} in thresholds_of(run, "new"))
        run.control.change(own.model_copy(update={"learned": other}))
        run.wait_for(lambda: {0.8, 0.3} in thresholds_of(run, "new"))
        run.control.remove("new")
        run.wait_for_gone("new")
        run.control.add(own.model_copy(update={"learned": None}))
        run.wait_for(lambda: {0.6, 0.4} in thresholds_of(run, "new"))
    lives = [
        [life for life in ({0.9, 0.2}, {0.8, 0.3}, {0.6, 0.4}) if said <= life]
        for said in thresholds_of(run, "new")
    ]
    assert [len(life) for life in lives] == [1] * len(lives)  # from the first frame to the last


@pytest.mark.parametrize(
    ("thresholds", "why"),
    [({"source_id": "door"}, "learned of the source door"), ({"enter": 0.9999}, "no track can")],
)
def test_a_bad_learned_file_refuses_the_change_and_leaves_all_as_it_was(
    start_tiny, clip, learned_by, thresholds, why
):
    path = learned_by(**{"source_id": "new", "name": "bad", **thresholds})
    bad = source_of("new", clip, learned=path)
    with start_tiny().running() as run:
        with pytest.raises(ConfigError, match=rf"bad\.json: .*{why}"):
            run.control.add(bad)
        run.control.add(bad.model_copy(update={"learned": None}))
        run.wait_for_frame("new")
        with pytest.raises(ConfigError, match=why):
            run.control.change(bad)
        whole = [view.config for view in run.control.sources()]
        with pytest.raises(ConfigError, match=why):
            run.control.reconcile(run.config.with_sources((bad,)))
        assert [view.config for view in run.control.sources()] == whole
    assert run.changes("first").count(STOPPED) == 1  # at the end of the run
    assert run.changes("new").count(STOPPED) == 1


def test_drift_is_watched_of_those_that_learned_something_as_long_as_they_are_there(
    start_tiny, two_faces, learned_by
):
    drift = DriftWatcher()
    with start_tiny(others=(drift,)).running() as run:
        run.control.add(source_of("new", two_faces, realtime=True, learned=learned_by("new")))
        run.wait_for_frame("new")
        assert list(drift._monitors) == list(drift._visits) == ["new"]
        run.control.remove("new")
        run.wait_for_gone("new")
        run.wait_for_frame("first", 2 + max(s for id_, s in run.sessions if id_ == "first"))
        assert not drift._monitors
        assert not drift._visits


def test_the_feed_of_a_source_that_is_added_is_watched(start_tiny, write_clip, tmp_path):
    def black(_: int, width: int, height: int) -> Any:
        return np.zeros((height, width, 3), np.uint8)

    covered = write_clip(tmp_path / "black.mp4", n=8, fps=5, picture=black)
    with start_tiny().running() as run:
        for watched in (False, True):
            run.control.add(source_of("new", covered, realtime=True, watch_feed=watched))
            if watched:
                run.wait_for(lambda: any(isinstance(m, FeedMessage) for m in run.messages))
            else:
                run.wait_for_frame("new", 3)
                assert not any(isinstance(m, FeedMessage) for m in run.messages)
            run.control.remove("new")
            run.wait_for_gone("new")


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
