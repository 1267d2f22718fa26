import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import FuseConfig
from stream.errors import ConfigError
from stream.records import (
    Alert,
    AttackScore,
    FaceDetection,
    FaceQuality,
    FrameStamp,
    QualityProblem,
    Rejection,
    Sighting,
    TrackKey,
    TrackScore,
    Verdict,
)
from stream.stages.fuse import Detector, Fuser, highest_probability
from trt_engines.manifest import DecisionThresholds

KEY = TrackKey(source_id="cam", session=0, track_id=1)
THRESHOLDS = DecisionThresholds(enter=0.7, leave=0.4, source="test")
EVERY_LOOK = FuseConfig(publish_every_s=0)
INTERVAL_S = 0.4  # between looks, as shipped


def _sighting(pts_s, problem=None, key=KEY, first_pts_s=0.0):
    return Sighting(
        key=key,
        stamp=FrameStamp(
            source_id=key.source_id,
            session=key.session,
            index=round(pts_s * 25),
            pts_s=pts_s,
            captured_at=0.0,
            width=640,
            height=480,
            decoder="pyav",
        ),
        detection=FaceDetection(
            box=np.array([0, 0, 100, 100], np.float32),
            landmarks=np.zeros((5, 2), np.float32),
            confidence=1.0,
        ),
        first_pts_s=first_pts_s,
        quality=FaceQuality(face_px=100, sharpness=0.5, brightness=0.5, turn=0.0, problem=problem),
    )


def _look(pts_s, probability, key=KEY):
    return AttackScore(sighting=_sighting(pts_s, key=key), detector=0, probability=probability)


def _rejected(pts_s, problem):
    return Rejection(sighting=_sighting(pts_s, problem), detector=0, problem=problem)


def _detector(thresholds=THRESHOLDS, look_every_s=INTERVAL_S):
    return Detector(
        name="lgsc", method="lgsc", family=None, thresholds=thresholds, look_every_s=look_every_s
    )


def _fuser(config=EVERY_LOOK, thresholds=THRESHOLDS, look_every_s=INTERVAL_S):
    return Fuser(config, [_detector(thresholds, look_every_s)])


def _run(looks, config=EVERY_LOOK, thresholds=THRESHOLDS):
    """Feed (time, probability) one by one; return all messages."""
    fuser = _fuser(config, thresholds)
    return [m for look in looks for m in fuser.update([_look(*look)], [], [])]


def _scores(messages):
    return [m for m in messages if isinstance(m, TrackScore)]


def _alerts(messages):
    return [m for m in messages if isinstance(m, Alert)]


def _steady(probability, until_s=4.0, every_s=0.4):
    return [(i * every_s, probability) for i in range(round(until_s / every_s) + 1)]


def test_probability_equals_the_formula_worked_by_hand():
    config = FuseConfig(correlation_s=1.0, memory_s=8.0, prior_looks=1.0, publish_every_s=0)
    last = _scores(_run([(0.0, 0.8), (0.5, 0.3)], config))[-1]
    weight, kept = 1 - math.exp(-0.5), math.exp(-0.5 / 8)
    evidence = math.log(4) * kept + weight * math.log(3 / 7)
    effective = kept + weight
    assert last.n_effective == pytest.approx(effective)
    assert last.probability == pytest.approx(1 / (1 + math.exp(-evidence / (effective + 1))))


def test_steady_evidence_of_an_attack_raises_one_alert_with_its_score_before_it():
    messages = _run(_steady(0.95))
    (alert,) = _alerts(messages)
    assert (alert.previous, alert.track.verdict) == (Verdict.UNDECIDED, Verdict.ATTACK)
    assert (alert.ordinal, alert.threshold) == (1, 0.7)
    assert messages[messages.index(alert) - 1] is alert.track


def test_steady_evidence_against_an_attack_makes_the_track_bona_fide():
    (alert,) = _alerts(_run(_steady(0.05)))
    assert (alert.track.verdict, alert.threshold) == (Verdict.BONA_FIDE, 0.4)


def test_no_verdict_comes_before_enough_looks():
    config = FuseConfig(min_scores=4, publish_every_s=0)
    verdicts = [s.verdict for s in _scores(_run(_steady(0.99), config))]
    assert verdicts[:3] == [Verdict.UNDECIDED] * 3
    assert Verdict.ATTACK in verdicts


def test_many_looks_at_one_instant_are_worth_one():
    messages = _run([(1.0, 0.99)] * 50)
    assert _scores(messages)[-1].n_effective == pytest.approx(1.0)
    assert _alerts(messages) == []


def test_one_extreme_look_does_not_decide():
    looks = _steady(0.2, until_s=3.0)
    assert [a.track.verdict for a in _alerts(_run([*looks, (3.4, 1.0)]))] == [Verdict.BONA_FIDE]


def test_one_look_after_a_long_gap_does_not_change_a_verdict():
    messages = _run([*_steady(0.02), (60.0, 1.0)])
    assert _scores(messages)[-1].probability > 0.7
    assert [a.track.verdict for a in _alerts(messages)] == [Verdict.BONA_FIDE]


def test_a_look_that_fails_the_gate_leaves_the_evidence_as_it_was():
    fuser = _fuser()
    for look in _steady(0.9):
        before = fuser.update([_look(*look)], [], [])[0]
    (after,) = fuser.update([], [_rejected(9.0, QualityProblem.DARK)], [])
    assert after.sighting.stamp.pts_s == 9.0
    assert (after.probability, after.n_scores) == (before.probability, before.n_scores)


def test_between_the_thresholds_a_verdict_stays():
    messages = _run(_steady(0.99, until_s=3.0) + [(3.4 + i * 0.4, 0.5) for i in range(3)])
    assert _scores(messages)[-1].probability < 0.95
    assert [a.track.verdict for a in _alerts(messages)] == [Verdict.ATTACK]


def test_a_face_swapped_within_a_track_is_noticed():
    looks = _steady(0.02, until_s=6.0) + [(6.4 + i * 0.4, 0.98) for i in range(60)]
    alerts = _alerts(_run(looks))
    assert [a.track.verdict for a in alerts] == [Verdict.BONA_FIDE, Verdict.ATTACK]
    assert [a.ordinal for a in alerts] == [1, 2]


@pytest.mark.parametrize("looks_per_s", [25, 12.5, 5, 2.5])
def test_probability_does_not_depend_on_the_rate_of_looks(looks_per_s):
    def probability(pts_s):
        return 0.6 + 0.3 * math.sin(pts_s / 2)

    def last(rate):
        times = np.arange(0, 20 + 1e-9, 1 / rate)
        return _scores(_run([(t, probability(t)) for t in times]))[-1].probability

    assert last(looks_per_s) == pytest.approx(last(5), abs=0.03)


def test_probability_hardly_depends_on_dropped_looks():
    times = np.arange(0, 20, 0.2)
    kept = np.random.default_rng(0).random(len(times)) < 0.5
    whole = _scores(_run([(t, 0.8) for t in times]))[-1].probability
    halved = _scores(_run([(t, 0.8) for t in times[kept]]))[-1].probability
    assert halved == pytest.approx(whole, abs=0.03)


def test_scores_are_reported_no_more_often_than_asked():
    config = FuseConfig(publish_every_s=1.0)
    times = [s.sighting.stamp.pts_s for s in _scores(_run(_steady(0.5, 10.0, 0.2), config))]
    assert times == pytest.approx(list(range(11)))


def test_a_track_nobody_can_judge_abstains_with_the_most_frequent_problem():
    fuser = _fuser(FuseConfig(abstain_after_s=2.0))
    problems = [QualityProblem.DARK, QualityProblem.BLURRED, QualityProblem.BLURRED]
    messages = []
    for pts_s, problem in zip([1.0, 1.5, 2.0], problems, strict=True):
        messages += fuser.update([], [_rejected(pts_s, problem)], [])
    (alert,) = _alerts(messages)
    assert alert.track.verdict is Verdict.ABSTAIN
    assert alert.track.problem is QualityProblem.BLURRED
    assert alert.track.probability is None


def test_a_track_that_abstained_is_undecided_again_at_its_first_score():
    fuser = _fuser(FuseConfig())
    fuser.update([], [_rejected(3.0, QualityProblem.DARK)], [])
    (_score, alert) = fuser.update([_look(3.4, 0.5)], [], [])
    assert (alert.previous, alert.track.verdict) == (Verdict.ABSTAIN, Verdict.UNDECIDED)
    assert alert.track.problem is None


def test_the_last_message_of_a_track_says_so_and_its_state_is_freed():
    fuser = _fuser()
    for pts_s in (0.0, 1.0, 2.0):
        fuser.update([_look(pts_s, 0.9)], [], [])
    (last,) = fuser.update([], [], [KEY])
    assert last.ended
    assert fuser.update([], [], [KEY]) == []
    (again,) = fuser.update([_look(9.0, 0.9)], [], [])
    assert again.n_scores == 1


def test_a_track_that_was_never_looked_at_ends_silently():
    assert _fuser().update([], [], [KEY]) == []


def test_tracks_do_not_share_evidence():
    other = TrackKey(source_id="cam", session=0, track_id=2)
    fuser = _fuser()
    messages = fuser.update([_look(0.0, 0.9), _look(0.0, 0.1, other)], [], [])
    assert messages[0].probability > 0.5 > messages[1].probability


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
def test_a_score_that_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        _run([(0.0, score)])


@pytest.mark.parametrize(
    ("looks", "stands"),
    [
        pytest.param([0.05] * 2, False, id="undecided"),
        pytest.param([0.05] * 10, True, id="bona fide"),
        pytest.param([0.05] * 10 + [0.9], False, id="bona fide, and a look like an attack"),
        pytest.param([0.95] * 10, True, id="attack"),
        pytest.param([0.95] * 10 + [0.1], False, id="attack, and a look like bona fide"),
        pytest.param([0.95] * 10 + [0.1, 0.95], True, id="attack again"),
    ],
)
def test_a_verdict_stands_while_the_latest_look_speaks_for_it(looks, stands):
    fuser = _fuser()
    for number, probability in enumerate(looks):
        fuser.update([_look(0.4 * number, probability)], (), ())
    assert fuser.stands(KEY) is stands


def test_options_override_the_thresholds_of_the_detector():
    alerts = _alerts(_run(_steady(0.8), EVERY_LOOK.model_copy(update={"enter": 0.95})))
    assert alerts == []
    (alert,) = _alerts(_run(_steady(0.8)))
    assert alert.track.verdict is Verdict.ATTACK
    (alert,) = _alerts(_run(_steady(0.35), EVERY_LOOK.model_copy(update={"leave": 0.48})))
    assert (alert.track.verdict, alert.threshold) == (Verdict.BONA_FIDE, 0.48)


@pytest.mark.parametrize("every_s", [0.1, 0.4, 1.0, 2.0])
@pytest.mark.parametrize("fuse", [{}, {"prior_looks": 3}, {"memory_s": 3, "reach_s": 20}])
def test_the_highest_probability_is_what_a_sure_attack_gets_and_no_more(every_s, fuse):
    config = FuseConfig(publish_every_s=0, **fuse)
    messages = _run(_steady(1.0, config.reach_s, every_s), FuseConfig(publish_every_s=0, **fuse))
    decided = [s.probability for s in _scores(messages) if s.verdict is not Verdict.UNDECIDED]
    assert highest_probability(config, every_s) == max(decided)


def test_a_sure_attack_reaches_0_958_in_five_seconds_and_0_970_in_a_minute():
    assert highest_probability(FuseConfig(), INTERVAL_S) == pytest.approx(0.958, abs=5e-4)
    in_a_minute = highest_probability(FuseConfig(reach_s=60), INTERVAL_S)
    assert in_a_minute == pytest.approx(0.970, abs=5e-4)


def _at(enter=0.7, leave=0.4):
    return DecisionThresholds(enter=enter, leave=leave, source="test")


@pytest.mark.parametrize(
    ("config", "thresholds", "message"),
    [
        ({}, {"enter": 0.9728}, r"fuse.enter: no track can reach 0.9728 \(of the engine's manif"),
        ({"enter": 0.98}, {}, r"no track can reach 0.98 \(as set\): in 5 s .* to 0.958 or less"),
        ({"enter": 1.0}, {}, "no track can reach 1 "),
        ({}, {"leave": 0.03}, r"fuse.leave: no track can reach 0.03 .* more than 0.042"),
        ({"leave": 0.0}, {}, "no track can reach 0 "),
        ({"prior_looks": 20}, {"enter": 0.8}, r"no track can reach 0.8 .* to 0.647 or less"),
        ({"reach_s": 0.8}, {"enter": 0.95}, r"in 0.8 s \(fuse.reach_s\).* to 0.919 or less"),
        ({"min_scores": 20}, {}, r"allow no verdict within 5 s .* min_scores \(20\)"),
        ({"min_effective": 9}, {}, r"allow no verdict within 5 s .* min_effective \(9\)"),
    ],
)
def test_thresholds_out_of_reach_are_refused_with_what_can_be_reached(config, thresholds, message):
    with pytest.raises(ConfigError, match=message):
        _fuser(FuseConfig(**config), _at(**thresholds))


def test_seldom_looks_reach_less_and_are_refused_likewise():
    _fuser(thresholds=_at(enter=0.955))
    with pytest.raises(ConfigError, match=r"looks every 2.5 s that are all sure"):
        _fuser(thresholds=_at(enter=0.955), look_every_s=2.5)
    with pytest.raises(ConfigError, match=r"looks every 4 s allow no verdict within 5 s"):
        _fuser(look_every_s=4)


def test_the_highest_threshold_that_is_accepted_alarms_in_time_and_the_lowest_clears():
    config = FuseConfig(publish_every_s=0)
    edge = highest_probability(config, INTERVAL_S)
    (alarm,) = _alerts(_run(_steady(1.0, 5.0), config, _at(enter=edge)))
    assert alarm.track.sighting.stamp.pts_s <= config.reach_s
    (clear,) = _alerts(_run(_steady(0.0, 5.0), config, _at(leave=1 - edge + 1e-9)))
    assert clear.track.verdict is Verdict.BONA_FIDE


@given(
    st.floats(0.5, 0.95),
    st.floats(0.05, 0.5),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.5, 1)), min_size=1, max_size=30),
)
def test_looks_that_speak_for_an_attack_never_make_a_track_bona_fide(enter, leave, steps):
    times = np.cumsum([dt for dt, _ in steps])
    looks = [(t, p) for t, (_, p) in zip(times, steps, strict=True)]
    scores = _scores(_run(looks, thresholds=_at(enter, leave)))
    assert Verdict.BONA_FIDE not in {s.verdict for s in scores}


@given(
    st.floats(0.05, 0.5),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 0.49)), min_size=1, max_size=30),
)
def test_looks_that_speak_against_an_attack_never_alarm(leave, steps):
    times = np.cumsum([dt for dt, _ in steps])
    looks = [(t, p) for t, (_, p) in zip(times, steps, strict=True)]
    scores = _scores(_run(looks, thresholds=_at(0.5, leave)))
    assert Verdict.ATTACK not in {s.verdict for s in scores}


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=30))
def test_probability_stays_in_0_to_1_and_grows_with_every_score(steps):
    times = np.cumsum([dt for dt, _ in steps])
    looks = [(t, p) for t, (_, p) in zip(times, steps, strict=True)]
    higher = [(t, min(1.0, p + 0.1)) for t, p in looks]
    config = FuseConfig(publish_every_s=0)
    low = _scores(_run(looks, config))[-1].probability
    high = _scores(_run(higher, config))[-1].probability
    assert 0 <= low <= high <= 1
