"""Several detectors, one verdict: either kind of attack alarms, bona fide takes all of them."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models import logit
from stream.config import FuseConfig
from stream.errors import ConfigError
from stream.records import (
    Alert,
    AttackFamily,
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
from stream.stages.fuse import Detector, Fuser
from trt_engines.manifest import DecisionThresholds

KEY = TrackKey(source_id="cam", session=0, track_id=1)
CONFIG = FuseConfig(publish_every_s=0)
INTERVAL_S = 0.4


def detector(name, family, enter=0.7, leave=0.4, every_s=INTERVAL_S):
    return Detector(
        name=name,
        method=f"method of {name}",
        family=family,
        thresholds=DecisionThresholds(enter=enter, leave=leave, source="test"),
        look_every_s=every_s,
    )


SHOWN = detector("shown", AttackFamily.PRESENTATION)
MADE = detector("made", AttackFamily.DIGITAL)
STRICT = detector("strict", AttackFamily.DIGITAL, enter=0.9, leave=0.5)


def sighting(pts_s):
    stamp = FrameStamp(
        source_id="cam",
        session=0,
        index=round(pts_s * 25),
        pts_s=pts_s,
        captured_at=0.0,
        width=640,
        height=480,
        decoder="pyav",
    )
    return Sighting(
        key=KEY,
        stamp=stamp,
        detection=FaceDetection(
            box=np.array([0, 0, 100, 100], np.float32),
            landmarks=np.zeros((5, 2), np.float32),
            confidence=1.0,
        ),
        first_pts_s=0.0,
        quality=FaceQuality(face_px=100, sharpness=0.5, brightness=0.5, turn=0.0, problem=None),
    )


def step(fuser, pts_s, *said):
    """Let each detector say a probability, be rejected for a problem, or not look (None)."""
    seen = sighting(pts_s)
    scores = [
        AttackScore(sighting=seen, detector=i, probability=p)
        for i, p in enumerate(said)
        if isinstance(p, float)
    ]
    rejected = [
        Rejection(sighting=seen, detector=i, problem=problem)
        for i, problem in enumerate(said)
        if isinstance(problem, QualityProblem)
    ]
    return fuser.update(scores, rejected, [])


def run(detectors, *steady, until_s=4.0, config=CONFIG):
    """Say the same at every look; return the last score and all alerts."""
    fuser = Fuser(config, detectors)
    messages = []
    for i in range(round(until_s / INTERVAL_S) + 1):
        messages += step(fuser, i * INTERVAL_S, *steady)
    scores = [m for m in messages if isinstance(m, TrackScore)]
    return scores[-1], [m for m in messages if isinstance(m, Alert)]


CUT_OFF = QualityProblem.CUT_OFF


def test_one_detector_that_is_sure_makes_an_attack_of_its_family():
    last, (alert,) = run([SHOWN, MADE], 0.05, 0.97)
    assert (last.verdict, last.family) == (Verdict.ATTACK, AttackFamily.DIGITAL)
    assert last.method == "method of made"
    assert (alert.threshold, alert.track.family) == (0.7, AttackFamily.DIGITAL)


def test_the_probability_is_that_of_the_surest_and_each_ones_own_stands_beside_it():
    last, _ = run([SHOWN, MADE], 0.3, 0.8)
    alone = [run([d], p)[0].probability for d, p in ((SHOWN, 0.3), (MADE, 0.8))]
    assert [d.probability for d in last.detectors] == alone
    assert last.probability == alone[1]
    assert [d.name for d in last.detectors] == ["shown", "made"]
    assert [d.n_scores for d in last.detectors] == [11, 11]


def test_both_must_agree_that_a_face_is_bona_fide():
    assert run([SHOWN, MADE], 0.05, 0.5)[0].verdict is Verdict.UNDECIDED
    last, (alert,) = run([SHOWN, MADE], 0.05, 0.2)
    assert (last.verdict, last.family) == (Verdict.BONA_FIDE, None)
    assert alert.threshold == 0.4


def test_a_strict_and_a_lenient_detector_meet_on_one_scale():
    fuser = Fuser(CONFIG, [SHOWN, STRICT])
    assert logit(fuser.enter) == pytest.approx((logit(0.7) + logit(0.9)) / 2)
    assert logit(fuser.leave) == pytest.approx((logit(0.4) + logit(0.5)) / 2)
    # What is enough for the lenient one is not for the strict one.
    assert run([SHOWN, STRICT], 0.05, 0.87)[0].verdict is Verdict.UNDECIDED
    last, (alert,) = run([SHOWN, STRICT], 0.87, 0.05)
    assert (last.verdict, last.family) == (Verdict.ATTACK, AttackFamily.PRESENTATION)
    assert alert.threshold == fuser.enter
    assert last.probability > fuser.enter > last.detectors[0].probability


@pytest.mark.parametrize(
    ("detectors", "said", "family"),
    [
        ([SHOWN, MADE], (0.97, 0.96), AttackFamily.UNSURE),
        ([SHOWN, MADE], (0.98, 0.75), AttackFamily.PRESENTATION),
        ([SHOWN, SHOWN], (0.97, 0.96), AttackFamily.PRESENTATION),
        ([detector("any", None), MADE], (0.97, 0.1), AttackFamily.UNSURE),
        ([detector("any", None), MADE], (0.96, 0.97), AttackFamily.DIGITAL),
    ],
    ids=["about equal", "one far ahead", "same family", "it knows both", "the other names it"],
)
def test_the_family_is_unsure_where_the_evidence_does_not_tell(detectors, said, family):
    assert run(detectors, *said)[0].family is family


def test_the_family_stays_with_the_verdict_between_the_thresholds():
    fuser = Fuser(CONFIG, [SHOWN, MADE])
    for i in range(8):
        step(fuser, i * INTERVAL_S, 0.1, 0.97)
    for i in range(8, 18):
        last = step(fuser, i * INTERVAL_S, 0.6, 0.3)[0]
    assert 0.4 < last.probability < 0.7
    assert (last.verdict, last.family) == (Verdict.ATTACK, AttackFamily.DIGITAL)


def test_a_detector_that_is_never_shown_the_face_abstains_and_the_other_decides():
    fuser = Fuser(CONFIG, [SHOWN, MADE])
    (before,) = step(fuser, 0.0, CUT_OFF, 0.05)
    assert [d.problem for d in before.detectors] == [None, None]  # it may still be shown the face
    last, (alert,) = run([SHOWN, MADE], CUT_OFF, 0.05)
    assert [d.problem for d in last.detectors] == [CUT_OFF, None]
    assert last.detectors[0].probability is None
    assert (last.verdict, last.problem) == (Verdict.BONA_FIDE, None)
    assert alert.track.sighting.stamp.pts_s >= CONFIG.abstain_after_s


def test_a_track_that_no_detector_is_shown_abstains():
    last, (alert,) = run([SHOWN, MADE], CUT_OFF, QualityProblem.DARK)
    assert (last.verdict, last.problem, last.probability) == (Verdict.ABSTAIN, CUT_OFF, None)
    assert [d.problem for d in last.detectors] == [CUT_OFF, QualityProblem.DARK]
    assert alert.previous is Verdict.UNDECIDED


def test_a_detector_that_lost_sight_too_early_stops_holding_up_the_verdict():
    fuser = Fuser(CONFIG, [SHOWN, MADE])
    said = [step(fuser, 0.0, 0.95, 0.1)]
    said += [step(fuser, i * INTERVAL_S, CUT_OFF, 0.1) for i in range(1, 11)]
    verdicts = [messages[0].verdict for messages in said]
    assert verdicts[4] is Verdict.UNDECIDED  # at 1.6 s
    assert said[4][0].probability == said[4][0].detectors[0].probability
    last = said[-1][0]
    assert (last.verdict, last.detectors[0].problem) == (Verdict.BONA_FIDE, CUT_OFF)
    assert last.probability == last.detectors[1].probability


def test_what_a_detector_found_stays_when_its_window_is_cut_off_later():
    fuser = Fuser(CONFIG, [SHOWN, MADE])
    for i in range(6):
        step(fuser, i * INTERVAL_S, 0.97, 0.1)
    for i in range(6, 40):
        last = step(fuser, i * INTERVAL_S, CUT_OFF, 0.1)[0]
    assert (last.verdict, last.family) == (Verdict.ATTACK, AttackFamily.PRESENTATION)
    assert last.detectors[0].problem is None


def test_a_detector_of_few_looks_is_waited_for_before_a_face_is_bona_fide():
    seldom = detector("seldom", None, every_s=1.6)
    fuser = Fuser(CONFIG, [SHOWN, seldom])
    found = {}
    for i in range(13):
        p = 0.1 if i % 4 == 0 else None
        found[i] = step(fuser, i * INTERVAL_S, 0.1, p)[0]
    verdicts = [score.verdict for score in found.values()]
    assert verdicts.index(Verdict.BONA_FIDE) == 8  # its third look
    assert [d.n_scores for d in found[12].detectors] == [13, 4]
    assert found[12].n_scores == 13


def test_all_detectors_of_a_frame_are_heard_before_anything_is_said():
    fuser = Fuser(CONFIG, [SHOWN, MADE])
    assert len(step(fuser, 0.0, 0.2, 0.9)) == 1


def test_set_thresholds_hold_on_the_common_scale():
    config = FuseConfig(publish_every_s=0, enter=0.75)
    common = Fuser(CONFIG, [SHOWN, STRICT]).enter
    assert common > 0.75
    last, (alert,) = run([SHOWN, STRICT], 0.75, 0.05, config=config)
    assert (last.verdict, alert.threshold) == (Verdict.ATTACK, 0.75)
    assert last.detectors[0].probability < 0.7


@pytest.mark.parametrize(
    ("changed", "config", "message"),
    [
        ({"every_s": 4.0}, {}, r"fuse: made: looks every 4 s allow no verdict within 5 s"),
        ({"enter": 0.97}, {}, r"fuse.enter: no track can reach 0.97 .* made's p goes to .* 0.958"),
        ({"leave": 0.02}, {}, r"fuse.leave: no track can reach 0.02 .* made's p goes to 0.042"),
        ({"enter": 0.94}, {"enter": 0.985}, r"reach 0.985 \(as set\).* shown's p goes to"),
    ],
)
def test_each_detector_must_be_able_to_decide_in_time(changed, config, message):
    with pytest.raises(ConfigError, match=message):
        Fuser(FuseConfig(**config), [SHOWN, detector("made", None, **changed)])


SAID = st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=25)


@given(SAID, st.floats(0.5, 0.9), st.floats(0.1, 0.5))
def test_a_track_alarms_if_and_only_if_it_does_by_one_of_the_detectors_alone(said, enter, leave):
    detectors = [SHOWN, detector("made", AttackFamily.DIGITAL, enter, leave)]
    together, alone = Fuser(CONFIG, detectors), [Fuser(CONFIG, [d]) for d in detectors]
    alarmed = {"together": False, "alone": False}
    for i, ps in enumerate(said):
        (score, *_) = step(together, i * INTERVAL_S, *ps)
        each = [step(f, i * INTERVAL_S, p)[0] for f, p in zip(alone, ps, strict=True)]
        for mine, of in zip(each, detectors, strict=True):
            assume(abs(float(logit(mine.probability) - logit(of.thresholds.enter))) > 1e-9)
        alarmed["together"] |= score.verdict is Verdict.ATTACK
        alarmed["alone"] |= any(s.verdict is Verdict.ATTACK for s in each)
        if score.verdict is Verdict.BONA_FIDE:
            assert all(s.verdict is Verdict.BONA_FIDE for s in each)
    assert alarmed["together"] == alarmed["alone"]
