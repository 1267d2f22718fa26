"""Verdicts on tracks from the scores of single looks."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import FuseConfig
from stream.errors import ConfigError
from stream.errors import ConfigError
from stream.fuse import Fuser
from stream.records import (
    Alert,
    AttackScore,
    FaceDetection,
    FaceQuality,
    FrameStamp,
    QualityProblem,
    Sighting,
    TrackKey,
    TrackScore,
    Verdict,
)
from trt_engines.manifest import DecisionThresholds

THRESHOLDS = DecisionThresholds(enter=0.7, leave=0.5, source="test")
KEY = TrackKey(source_id="cam1", session=0, track_id=1)
OTHER = TrackKey(source_id="cam1", session=0, track_id=2)
LOOK_S = 0.4  # between looks, as by default


def _fuser(**options):
    return Fuser(FuseConfig(**options), THRESHOLDS, "lgsc")


def _sighting(pts_s, *, key=KEY, problem=None, first_pts_s=0.0):
    return Sighting(
        key=key,
        stamp=FrameStamp(
            source_id=key.source_id,
            session=key.session,
            index=round(25 * pts_s),
            pts_s=pts_s,
            captured_at=1e9 + pts_s,
            width=640,
            height=480,
            decoder="pyav",
        ),
        detection=FaceDetection(
            box=np.array([0, 0, 60, 80], np.float32),
            landmarks=np.zeros((5, 2), np.float32),
            confidence=1.0,
        ),
        first_pts_s=first_pts_s,
        quality=FaceQuality(face_px=80, sharpness=0.2, brightness=0.5, turn=0.1, problem=problem),
    )


def _look(pts_s, probability, *, key=KEY):
    return AttackScore(sighting=_sighting(pts_s, key=key), probability=probability, method="lgsc")


def _score_all(fuser, looks, *, key=KEY):
    """Score looks of (pts_s, probability), one an update, and return all messages."""
    return [m for t, p in looks for m in fuser.update([_look(t, p, key=key)], [], [])]


def _at_rate(probabilities, start_s=0.0):
    return [(start_s + LOOK_S * i, p) for i, p in enumerate(probabilities)]


def _alerts(messages):
    return [m for m in messages if isinstance(m, Alert)]


def _verdicts(messages):
    return [alert.track.verdict for alert in _alerts(messages)]


def _last_score(fuser, key=KEY):
    (score,) = fuser.update([], [], [key])
    return score


def test_probability_is_the_weighted_mean_that_was_worked_by_hand():
    looks = [(0.0, 0.9), (0.4, 0.6), (1.4, 0.2)]
    scores = _score_all(
        _fuser(correlation_s=1, memory_s=8, prior_looks=1, publish_every_s=0), looks
    )
    # Log-odds 2.197225, 0.405465, -1.386294; weights 1, tanh 0.2 = 0.197375, tanh 0.5 = 0.462117;
    # kept exp -0.05 = 0.951229, exp -0.125 = 0.882497.
    # E: 2.197225 | 2.090065 + 0.080029 = 2.170094 | 1.915101 - 0.640630 = 1.274471
    # n: 1        | 0.951229 + 0.197375 = 1.148604 | 1.013640 + 0.462117 = 1.475757
    # E / (n + 1): 1.098612 | 1.010001 | 0.514781
    assert [s.probability for s in scores] == pytest.approx([0.75, 0.733023, 0.625926], abs=1e-5)
    assert [s.n_effective for s in scores] == pytest.approx([1, 1.148604, 1.475757], abs=1e-5)
    assert [s.n_scores for s in scores] == [1, 2, 3]
    assert {s.method for s in scores} == {"lgsc"}


def test_verdict_waits_for_enough_scores_worth_enough_independent_looks():
    few_scores = _score_all(_fuser(min_scores=3), [(0.0, 0.99), (9.0, 0.99)])
    assert _alerts(few_scores) == []
    too_close = _score_all(_fuser(min_effective=1.25), [(0.02 * i, 0.99) for i in range(30)])
    assert _alerts(too_close) == []
    enough = _score_all(_fuser(), _at_rate([0.99] * 3))
    assert _verdicts(enough) == [Verdict.ATTACK]
    assert _verdicts(_score_all(_fuser(), _at_rate([0.01] * 3))) == [Verdict.BONA_FIDE]


def test_verdict_between_the_thresholds_stays_undecided():
    messages = _score_all(_fuser(), _at_rate([0.65] * 30))
    assert _alerts(messages) == []
    assert {m.verdict for m in messages} == {Verdict.UNDECIDED}


@pytest.mark.parametrize(("first", "verdict"), [(0.99, Verdict.ATTACK), (0.01, Verdict.BONA_FIDE)])
def test_verdict_is_kept_between_the_thresholds(first, verdict):
    fuser = _fuser()
    assert _verdicts(_score_all(fuser, _at_rate([first] * 5))) == [verdict]
    assert _alerts(_score_all(fuser, _at_rate([0.65] * 200, start_s=2.0))) == []
    score = _last_score(fuser)
    assert 0.5 < score.probability < 0.7
    assert score.verdict is verdict


def test_verdict_follows_the_evidence_from_bona_fide_to_attack_and_back():
    fuser = _fuser()
    probabilities = [0.05] * 10 + [0.95] * 60 + [0.05] * 60
    alerts = _alerts(_score_all(fuser, _at_rate(probabilities)))
    assert [(a.ordinal, a.previous, a.track.verdict, a.threshold) for a in alerts] == [
        (1, Verdict.UNDECIDED, Verdict.BONA_FIDE, 0.5),
        (2, Verdict.BONA_FIDE, Verdict.ATTACK, 0.7),
        (3, Verdict.ATTACK, Verdict.BONA_FIDE, 0.5),
    ]
    assert alerts[1].track.probability >= 0.7 > 0.5 > alerts[2].track.probability


@pytest.mark.parametrize(("usual", "extreme"), [(0.1, 1.0), (0.9, 0.0)])
def test_one_extreme_look_does_not_change_a_verdict(usual, extreme):
    probabilities = [usual] * 10 + [extreme] + [usual] * 10
    assert len(_alerts(_score_all(_fuser(), _at_rate(probabilities)))) == 1


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_one_look_after_a_long_gap_does_not_change_a_verdict(extreme):
    fuser = _fuser()
    _score_all(fuser, _at_rate([1 - extreme] * 10))
    assert _alerts(_score_all(fuser, [(60.0, extreme)])) == []
    # Evidence that old is forgotten; three looks decide as they do at first.
    assert len(_alerts(_score_all(fuser, _at_rate([extreme] * 2, start_s=60.4)))) == 1


def test_certainty_does_not_grow_with_the_number_of_equal_looks():
    fuser = _fuser()
    _score_all(fuser, _at_rate([0.8] * 500))
    score = _last_score(fuser)
    assert 0.7 < score.probability < 0.8
    assert score.n_effective == pytest.approx(4.05, abs=0.01)  # memory_s / (2 correlation_s)


def test_old_evidence_fades():
    fuser = _fuser(memory_s=8)
    _score_all(fuser, _at_rate([0.98] * 20))
    _score_all(fuser, _at_rate([0.02] * 100, start_s=8.0))
    assert _last_score(fuser).probability < 0.1


RATES = [(25, 0.0), (12.5, 0.0), (5, 0.0), (2.5, 0.0), (25, 0.3), (5, 0.3)]  # fps, share dropped


@pytest.mark.parametrize(
    ("log_odds_at", "tolerance"),
    [
        (lambda t: 3.0, 0.02),  # a dropped second look delays the weight of the first ones
        (lambda t: 3 * math.sin(2 * math.pi * t / 10), 0.1),
        (lambda t: -3.0 if t < 8 else 3.0, 0.1),
    ],
    ids=["constant", "swinging", "turning"],
)
def test_probability_does_not_depend_on_the_frame_rate(log_odds_at, tolerance):
    at = np.arange(2.0, 20.0, 0.4)
    curves, verdicts = [], []
    rng = np.random.default_rng(0)
    for fps, dropped in RATES:
        fuser = _fuser(publish_every_s=0)
        times = [i / fps for i in range(int(20 * fps)) if i == 0 or rng.random() >= dropped]
        messages = _score_all(fuser, [(t, 1 / (1 + math.exp(-log_odds_at(t)))) for t in times])
        scores = [m for m in messages if isinstance(m, TrackScore)]
        latest = np.searchsorted([s.sighting.stamp.pts_s for s in scores], at + 1e-6) - 1
        curves.append([scores[i].probability for i in latest])
        verdicts.append(_verdicts(messages))
    np.testing.assert_allclose(curves, np.tile(curves[0], (len(RATES), 1)), atol=tolerance)
    np.testing.assert_allclose(curves[1:4], np.tile(curves[0], (3, 1)), atol=tolerance / 2)
    assert all(found == verdicts[0] for found in verdicts)


def test_scores_are_published_at_most_so_often_in_media_time():
    messages = _score_all(_fuser(publish_every_s=1.0), _at_rate([0.6] * 26))
    times = [m.sighting.stamp.pts_s for m in messages]
    assert times == pytest.approx([0, 1.2, 2.4, 3.6, 4.8, 6.0, 7.2, 8.4, 9.6])


def test_time_base_does_not_cost_a_due_score():
    times = [10.1 + 0.1 * i for i in range(21)]  # sums of 0.1 fall short of 1 by rounding
    messages = _score_all(_fuser(publish_every_s=1.0), [(t, 0.6) for t in times])
    assert len(messages) == 3


def test_alert_comes_right_after_the_score_it_rests_on_though_none_was_due():
    messages = _score_all(_fuser(publish_every_s=60), _at_rate([0.99] * 5))
    first, score, alert = messages
    assert first.verdict is Verdict.UNDECIDED
    assert alert.track is score
    assert score.verdict is Verdict.ATTACK
    assert not score.ended


def test_rate_limits_and_evidence_of_tracks_are_their_own():
    fuser = _fuser(publish_every_s=60)
    messages = []
    for t, p in _at_rate([0.99] * 5):
        messages += fuser.update([_look(t, p), _look(t, 1 - p, key=OTHER)], [], [])
    alerts = {alert.track.sighting.key: alert.track.verdict for alert in _alerts(messages)}
    assert alerts == {KEY: Verdict.ATTACK, OTHER: Verdict.BONA_FIDE}
    assert len(messages) == 6


def _reject(fuser, times, problem):
    return [m for t in times for m in fuser.update([], [_sighting(t, problem=problem)], [])]


def test_track_never_scored_is_abstained_from_with_its_most_frequent_problem():
    fuser = _fuser(abstain_after_s=2.0)
    messages = _reject(fuser, [0.0, 0.4, 0.8], QualityProblem.DARK)
    messages += _reject(fuser, [1.2], QualityProblem.BLURRED)
    assert _alerts(messages) == []
    assert all(m.probability is None and m.problem is None for m in messages)
    score, alert = _reject(fuser, [2.0], QualityProblem.BLURRED)
    assert score.verdict is Verdict.ABSTAIN
    assert score.problem is QualityProblem.DARK
    assert score.probability is None
    assert score.n_scores == score.n_effective == 0
    assert (alert.ordinal, alert.previous) == (1, Verdict.UNDECIDED)
    assert _alerts(_reject(fuser, [2.4, 2.8, 3.2], QualityProblem.BLURRED)) == []
    assert _last_score(fuser).problem is QualityProblem.BLURRED


def test_track_scored_once_is_not_abstained_from():
    fuser = _fuser(abstain_after_s=2.0)
    _score_all(fuser, [(0.0, 0.9)])
    messages = _reject(fuser, [1.0, 2.0, 3.0], QualityProblem.DARK)
    assert _alerts(messages) == []
    assert {m.problem for m in messages} == {None}


@pytest.mark.parametrize(
    ("probability", "verdict"),
    [(0.99, Verdict.ATTACK), (0.01, Verdict.BONA_FIDE), (0.65, Verdict.UNDECIDED)],
)
def test_abstention_ends_once_there_are_enough_scores(probability, verdict):
    fuser = _fuser()
    _reject(fuser, [0.0, 1.0, 2.0], QualityProblem.TOO_SMALL)
    first_two = _score_all(fuser, _at_rate([probability] * 2, start_s=2.4))
    assert _alerts(first_two) == []
    (alert,) = _alerts(_score_all(fuser, _at_rate([probability], start_s=3.2)))
    assert (alert.previous, alert.track.verdict) == (Verdict.ABSTAIN, verdict)
    assert alert.ordinal == 2
    assert alert.track.problem is None


def test_rejected_look_updates_the_sighting_and_leaves_the_evidence():
    fuser = _fuser(publish_every_s=0)
    before = _score_all(fuser, _at_rate([0.9] * 5))[-1]
    (after,) = _reject(fuser, [9.0], QualityProblem.DARK)
    assert after.sighting.stamp.pts_s == 9.0
    assert after.probability == before.track.probability if isinstance(before, Alert) else True
    assert after.n_scores == 5


def test_ended_track_has_a_last_score_and_leaves_no_state():
    fuser = _fuser()
    empty = len(pickle.dumps(fuser))
    _score_all(fuser, _at_rate([0.99] * 5))
    _reject(fuser, [9.0], QualityProblem.DARK)
    fuser.update([], [_sighting(9.0, key=OTHER, problem=QualityProblem.DARK)], [])
    messages = fuser.update([], [], [KEY, OTHER])
    assert [(m.sighting.key, m.ended, m.verdict) for m in messages] == [
        (KEY, True, Verdict.ATTACK),
        (OTHER, True, Verdict.ABSTAIN),
    ]
    assert messages[0].n_scores == 5
    assert len(pickle.dumps(fuser)) == empty
    assert fuser.update([], [], [KEY, OTHER]) == []
    (score,) = _score_all(fuser, [(0.0, 0.5)])
    assert score.n_scores == 1


def test_track_that_was_never_looked_at_ends_in_silence():
    assert _fuser().update([], [], [KEY]) == []


def test_track_that_ends_with_its_last_look_is_judged_first():
    fuser = _fuser()
    _score_all(fuser, _at_rate([0.99] * 2))
    messages = fuser.update([_look(0.8, 0.99)], [], [KEY])
    assert [type(m) for m in messages] == [TrackScore, Alert, TrackScore]
    assert [messages[0].ended, messages[2].ended] == [False, True]


def test_same_looks_give_the_same_messages():
    looks = _at_rate(np.random.default_rng(0).random(200).tolist())
    first, second = (_score_all(_fuser(), looks) for _ in range(2))

    def facts(messages):
        return [
            {k: v for k, v in dataclasses.asdict(m).items() if k not in ("sighting", "track")}
            for m in messages
        ]

    assert facts(first) == facts(second)


def test_thresholds_of_the_configuration_come_before_the_manifests():
    looks = _at_rate([0.65] * 10)
    assert _verdicts(_score_all(_fuser(enter=0.6, leave=0.4), looks)) == [Verdict.ATTACK]
    assert _verdicts(_score_all(_fuser(leave=0.69), looks)) == [Verdict.BONA_FIDE]


def test_threshold_that_contradicts_the_manifests_is_refused():
    with pytest.raises(ConfigError, match=r"leave \(0\.5\) must not exceed enter \(0\.4\)"):
        _fuser(enter=0.4)


@pytest.mark.parametrize("probability", [math.nan, -0.1, 1.1])
def test_score_that_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        _fuser().update([_look(0.0, probability)], [], [])


def test_rejected_look_without_a_problem_is_refused():
    with pytest.raises(ValueError, match="no problem"):
        _fuser().update([], [_sighting(0.0)], [])


probabilities = st.floats(0, 1)
looks = st.lists(st.tuples(st.floats(0, 30), probabilities), min_size=1, max_size=20)
options = st.fixed_dictionaries(
    {
        "correlation_s": st.floats(0.05, 10),
        "memory_s": st.floats(0.05, 100),
        "prior_looks": st.floats(0, 5),
    }
)


def _fused(looks, options):
    """Return a track's last score after looks of (seconds since the one before, probability)."""
    fuser = _fuser(**options)
    times = np.cumsum([gap for gap, _ in looks]).tolist()
    _score_all(fuser, zip(times, (p for _, p in looks), strict=True))
    return _last_score(fuser)


@given(looks, options)
def test_probability_lies_within_what_the_looks_say_and_the_prior(looks, options):
    score = _fused(looks, options)
    said = [p for _, p in looks]
    limit = 1 / (1 + math.exp(-4))
    assert min(*said, 0.5) - 1e-9 <= score.probability <= max(*said, 0.5) + 1e-9
    assert 1 - limit - 1e-9 <= score.probability <= limit + 1e-9
    assert 0 < score.n_effective <= score.n_scores == len(looks)


@given(looks, options, st.data())
def test_raising_a_score_never_lowers_the_probability(looks, options, data):
    i = data.draw(st.integers(0, len(looks) - 1))
    gap, p = looks[i]
    raised = [*looks[:i], (gap, data.draw(st.floats(p, 1))), *looks[i + 1 :]]
    assert _fused(raised, options).probability >= _fused(looks, options).probability - 1e-12
