"""The straight line, from frames to messages, with real networks and no threads."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING

import pytest

from stream.records import Alert, AttackFamily, Frame, QualityProblem, TrackScore, Verdict
from stream.stages.crop import Cropper
from stream.stages.follow import Follower
from stream.stages.fuse import Fuser
from stream.stages.infer import Classifier
from stream.stages.track import FaceTracker
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stream.analyse import Analyser
    from stream.records import TrackKey

MIDDLE = 200  # px: the bright face stays left of it, the dark one right
BOTH = {("left", Verdict.BONA_FIDE), ("right", Verdict.ATTACK)}


@pytest.fixture(scope="module")
def read_frames(read_events):
    def read(path, source_id="cam"):
        return [event for event in read_events(path, source_id) if isinstance(event, Frame)]

    return read


@pytest.fixture(scope="module")
def frames(read_frames, two_faces):
    """The 15 frames of the two-face clip that are due."""
    return read_frames(two_faces)


def say(analyser: Analyser, frames: Iterable[Frame]) -> list[TrackScore | Alert]:
    """Return all that is said of one source's frames, and at its end."""
    said = [message for frame in frames for message in analyser.analyse([frame])]
    return said + analyser.finish("cam")


def side(score: TrackScore) -> str:
    x1, _, x2, _ = score.sighting.detection.box
    return "left" if (x1 + x2) / 2 < MIDDLE else "right"


def last_words(said: Iterable[TrackScore | Alert]) -> list[TrackScore]:
    return [score for score in said if isinstance(score, TrackScore) and score.ended]


def verdicts(said: Iterable[TrackScore | Alert]) -> set[tuple[str, Verdict]]:
    return {(side(score), score.verdict) for score in last_words(said)}


def keys(scores: Iterable[TrackScore]) -> set[TrackKey]:
    return {score.sighting.key for score in scores}


def in_session(frames: Sequence[Frame], number: int) -> list[Frame]:
    return [
        dataclasses.replace(frame, stamp=dataclasses.replace(frame.stamp, session=number))
        for frame in frames
    ]


def test_two_faces_give_two_tracks_and_the_verdicts_that_the_network_means(open_analyser, frames):
    said = say(open_analyser(), frames)
    assert verdicts(said) == BOTH
    assert len(last_words(said)) == 2
    # Confirmed at 0.4 s, then a look every 0.4 s until 2.8 s; one keeps its place for
    # 0.8 s once it is judged.
    assert [score.n_scores for score in last_words(said)] == [6, 7]


def test_a_verdict_is_alerted_once_with_the_score_that_it_rests_on(open_analyser, frames):
    alerts = [message for message in say(open_analyser(), frames) if isinstance(message, Alert)]
    assert {(side(alert.track), alert.track.verdict) for alert in alerts} == BOTH
    assert [(alert.previous, alert.ordinal) for alert in alerts] == [(Verdict.UNDECIDED, 1)] * 2


def test_the_same_frames_give_the_same_messages_twice(open_analyser, frames, facts):
    first, second = (facts(say(open_analyser(), frames)) for _ in range(2))
    assert first == second
    assert first


def test_the_same_real_frames_give_the_same_messages_twice(
    open_analyser, read_frames, shared_data, facts
):
    frames = read_frames(shared_data / "videos" / "intel_asl_again.mkv")[:25]
    first, second = (facts(say(open_analyser(), frames)) for _ in range(2))
    assert first == second
    assert last_words(say(open_analyser(), frames))


def test_a_source_is_judged_beside_another_as_it_is_alone(
    open_analyser, read_frames, write_two_faces, two_faces, tmp_path, facts
):
    slower = write_two_faces(tmp_path / "other.mp4", fps=10)
    clips = {"a": read_frames(two_faces, "a"), "b": read_frames(slower, "b")}
    together = open_analyser()
    said = [m for pair in zip(*clips.values(), strict=True) for m in together.analyse(pair)]
    for source_id, frames in clips.items():
        alone = open_analyser()
        expected = facts([m for frame in frames for m in alone.analyse([frame])])
        beside = [fact for fact in facts(said) if fact["source.id"] == source_id]
        # Another batch size sums in another order.
        assert beside == [pytest.approx(fact, abs=1e-3) for fact in expected]
        assert any(fact["event.type"] == "track.verdict" for fact in beside)


def test_the_verdicts_are_the_same_at_half_the_frame_rate(
    open_analyser, read_frames, write_two_faces, frames, tmp_path
):
    slower = read_frames(write_two_faces(tmp_path / "slow.mp4", fps=12.5))
    assert [f.stamp.pts_s for f in slower] != [f.stamp.pts_s for f in frames]
    assert verdicts(say(open_analyser(), slower)) == BOTH


def test_the_verdicts_are_the_same_when_a_third_of_the_frames_was_dropped(open_analyser, frames):
    kept = sorted(Random(1).sample(range(len(frames)), 10))
    assert verdicts(say(open_analyser(), [frames[i] for i in kept])) == BOTH


def test_a_new_session_ends_the_tracks_of_the_old_one_and_starts_others(open_analyser, frames):
    analyser = open_analyser()
    for frame in frames:
        analyser.analyse([frame])
    again = in_session(frames, 1)
    first, *others = (analyser.analyse([frame]) for frame in again)
    assert {(k.session, k.track_id) for k in keys(last_words(first))} == {(0, 1), (0, 2)}
    later = [message for messages in others for message in messages]
    assert last_words(later) == []
    ended = last_words(analyser.finish("cam"))
    assert {(k.session, k.track_id) for k in keys(ended)} == {(1, 1), (1, 2)}
    assert {(side(score), score.verdict) for score in ended} == BOTH


def test_a_track_unseen_for_long_ends_while_the_source_goes_on(open_analyser, frames):
    analyser = open_analyser(track={"lost_after_s": 0.5})
    for frame in frames[:10]:
        analyser.analyse([frame])
    empty = [dataclasses.replace(f, image=f.image * 0) for f in frames[10:]]
    ended = last_words(message for frame in empty for message in analyser.analyse([frame]))
    assert len(keys(ended)) == 2
    assert analyser.finish("cam") == []


def test_finish_ends_the_tracks_of_its_source_alone(open_analyser, frames):
    analyser = open_analyser()
    others = [
        dataclasses.replace(f, stamp=dataclasses.replace(f.stamp, source_id="other"))
        for f in frames
    ]
    for pair in zip(frames, others, strict=True):
        analyser.analyse(pair)
    assert {k.source_id for k in keys(last_words(analyser.finish("cam")))} == {"cam"}
    assert analyser.finish("cam") == []
    assert len(last_words(analyser.finish("other"))) == 2


def test_finish_of_a_source_that_never_gave_a_frame_says_nothing(open_analyser):
    assert open_analyser().finish("cam") == []


# --- two detectors ---


@pytest.fixture
def open_two(open_analyser, tiny_engine, bright_engine):
    """Open an analyser with the tiny engine and the bright one, which looks half as often."""

    def open_one(**options: object) -> Analyser:
        engines = [{"manifest": tiny_engine}, {"manifest": bright_engine, "interval_s": 0.8}]
        opened: Analyser = open_analyser(score={"engines": engines}, **options)
        return opened

    return open_one


def test_two_networks_look_each_in_its_own_window_and_time_and_either_alarms(open_two, frames):
    left, right = sorted(last_words(say(open_two(), frames)), key=side)
    # Dark, on the right, is an attack for one; what is bright, on the left, for the other.
    assert (left.verdict, left.family) == (Verdict.ATTACK, AttackFamily.DIGITAL)
    assert (right.verdict, right.family) == (Verdict.ATTACK, AttackFamily.UNSURE)
    assert (left.method, right.method) == ("bright", "tiny")
    for score, looks in ((left, 7), (right, 6)):  # the right face keeps its place for a while
        assert [(d.name, d.n_scores) for d in score.detectors] == [("tiny", looks), ("bright", 4)]
        assert score.probability >= max(d.probability for d in score.detectors) - 0.05


def test_each_of_two_networks_says_what_it_says_alone(
    open_analyser, open_two, frames, tiny_engine, bright_engine
):
    together = [score.detectors for score in last_words(say(open_two(), frames))]
    for number, engine in enumerate(
        [{"manifest": tiny_engine}, {"manifest": bright_engine, "interval_s": 0.8}]
    ):
        alone = last_words(say(open_analyser(score={"engines": [engine]}), frames))
        expected = [(s.detectors[0].n_scores, s.detectors[0].probability) for s in alone]
        found = [(d[number].n_scores, d[number].probability) for d in together]
        assert found == expected


def test_a_network_whose_window_the_frame_cannot_hold_abstains_and_says_why(
    open_two, frames, facts
):
    said = say(open_two(quality={"min_window": 0.9}), [close_up(frame) for frame in frames])
    (score,) = last_words(said)
    tiny, bright = score.detectors
    assert (bright.problem, bright.probability) == (QualityProblem.CUT_OFF, None)
    assert (tiny.problem, score.method) == (None, "tiny")
    (end,) = [fact for fact in facts([score]) if fact["event.type"] == "track.end"]
    assert (end["detectors.0.abstains"], end["detectors.1.abstains"]) == (None, "cut_off")


def close_up(frame: Frame) -> Frame:
    """Return the surroundings of the left face, into which 1.8 times the face does not fit."""
    x, y = round(10 + 15 * frame.stamp.pts_s), round(20 + 8 * frame.stamp.pts_s)
    image = frame.image[y + 10 : y + 110, x + 15 : x + 115].contiguous()
    stamp = dataclasses.replace(frame.stamp, width=100, height=100)
    return dataclasses.replace(frame, stamp=stamp, image=image)


# --- one source's error ---

STAGES: dict[str, tuple[type, str, Callable[..., Iterable[str]]]] = {
    # class, method, and the sources whose data a call holds
    "detect": (Follower, "detect", lambda self, frames: [f.stamp.source_id for f in frames]),
    "track": (FaceTracker, "update", lambda self, *_: [self._source_id]),
    "crop": (Cropper, "crop", lambda self, frames, *_: [f.stamp.source_id for f in frames]),
    "infer": (
        Classifier,
        "score",
        lambda self, batch: [crop.sighting.key.source_id for crop in batch.crops],
    ),
    "fuse": (
        Fuser,
        "update",
        lambda self, scores, *_: [score.sighting.key.source_id for score in scores],
    ),
}


@pytest.fixture
def let_fail(monkeypatch):
    """Return a function that lets a stage raise whenever it works on source `bad`.

    No picture is known that does so; the fault is made up, the stages are real.
    """

    def arm(stage: str, *, after: bool, error: Exception) -> list[bool]:
        armed = [False]
        owner, name, sources_of = STAGES[stage]
        work = getattr(owner, name)

        def wrapped(*args: object) -> object:
            fails = armed[0] and "bad" in sources_of(*args)
            if fails and not after:
                raise error
            result = work(*args)
            if fails:
                raise error
            return result

        monkeypatch.setattr(owner, name, wrapped)
        return armed

    return arm


def as_source(frames: Iterable[Frame], source_id: str) -> list[Frame]:
    return [
        dataclasses.replace(f, stamp=dataclasses.replace(f.stamp, source_id=source_id))
        for f in frames
    ]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_in_one_sources_frame_ends_its_tracks_and_no_others(
    open_analyser, frames, facts, let_fail, stage, after
):
    armed = let_fail(stage, after=after, error=RuntimeError("a bug"))
    bad, good = as_source(frames, "bad"), as_source(frames, "good")
    alone, together = open_analyser(), open_analyser()
    said: list[TrackScore | Alert] = []
    expected: list[TrackScore | Alert] = []
    for i, pair in enumerate(zip(bad, good, strict=True)):
        armed[0] = i == 8  # a frame in which both faces are due for a look
        step = together.step(pair)
        assert set(step.failures) == ({"bad"} if i == 8 else set())
        said += step.records
        expected += alone.analyse([pair[1]])
    said += together.finish("bad") + together.finish("good")
    expected += alone.finish("good")
    # Another batch size sums in another order.
    beside = [fact for fact in facts(said) if fact["source.id"] == "good"]
    assert beside == [pytest.approx(fact, abs=1e-3) for fact in facts(expected)]
    ended = [s.sighting.key for s in last_words(said) if s.sighting.key.source_id == "bad"]
    assert [key.track_id for key in ended] == [1, 2, 3, 4]
    begun = {s.sighting.key for s in said if isinstance(s, TrackScore)}
    assert {key for key in begun if key.source_id == "bad"} == set(ended)


def test_an_error_in_every_sources_frame_fails_each(open_analyser, frames, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    analyser = open_analyser()
    monkeypatch.setattr(Follower, "detect", fail)
    step = analyser.step([as_source(frames, "a")[0], as_source(frames, "b")[0]])
    assert set(step.failures) == {"a", "b"}
    assert step.records == []


def test_an_engine_that_cannot_run_is_nobodys_fault(open_analyser, frames, let_fail):
    armed = let_fail("infer", after=False, error=EngineError("the device is gone"))
    armed[0] = True
    analyser = open_analyser()
    with pytest.raises(EngineError, match="the device is gone"):
        for frame in as_source(frames, "bad"):
            analyser.step([frame])


def test_analyse_raises_what_step_only_notes(open_analyser, frames, let_fail):
    armed = let_fail("track", after=False, error=RuntimeError("a bug"))
    armed[0] = True
    with pytest.raises(RuntimeError, match="a bug"):
        open_analyser().analyse(as_source(frames[:1], "bad"))
