"""The straight line, from frames to messages, with real networks and no threads."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING

import pytest

from stream.records import Alert, Frame, TrackScore, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    # Confirmed at 0.4 s, then a look every 0.4 s until 2.8 s.
    assert [score.n_scores for score in last_words(said)] == [7, 7]


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
        found = [fact for fact in facts(said) if fact["source.id"] == source_id]
        # Another batch size sums in another order.
        assert found == [pytest.approx(fact, abs=1e-3) for fact in expected]
        assert any(fact["event.type"] == "track.verdict" for fact in found)


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
