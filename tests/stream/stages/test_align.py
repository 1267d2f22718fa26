"""Detectors of different thresholds on one scale."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import logit, sigmoid
from stream.stages.align import Scale, aligned, common_scale
from trt_engines.manifest import DecisionThresholds

PROBABILITIES = st.floats(0.001, 0.999)


def at(enter, leave):
    return DecisionThresholds(enter=enter, leave=leave, source="test")


THRESHOLDS = st.builds(at, st.floats(0.5, 0.95), st.floats(0.05, 0.5))


@given(PROBABILITIES, THRESHOLDS)
def test_a_detector_alone_is_left_as_it_is_to_the_bit(p, own):
    assert aligned(p, own, common_scale([own])) == p
    assert common_scale([own]) == (own.enter, own.leave)


@given(PROBABILITIES, THRESHOLDS)
def test_detectors_of_the_same_thresholds_are_left_as_they_are(p, own):
    assert aligned(p, own, common_scale([own, own.model_copy()])) == p


def test_thresholds_meet_at_the_mean_of_their_log_odds():
    common = common_scale([at(sigmoid(1.0), sigmoid(-2.0)), at(sigmoid(3.0), sigmoid(-1.0))])
    assert logit(common).tolist() == pytest.approx([2.0, -1.5])


@pytest.mark.parametrize(
    ("log_odds", "moved"),
    [(3.0, 4.0), (1.0, 2.0), (-0.5, 0.25), (-2.0, -1.5), (-4.0, -3.5)],
    ids=["above both", "enter", "half way", "leave", "below both"],
)
def test_between_the_thresholds_the_way_is_straight_and_beyond_them_of_slope_1(log_odds, moved):
    own, common = at(sigmoid(1.0), sigmoid(-2.0)), Scale(sigmoid(2.0), sigmoid(-1.5))
    assert logit(aligned(sigmoid(log_odds), own, common)) == pytest.approx(moved)


@given(PROBABILITIES, THRESHOLDS, THRESHOLDS)
def test_a_detector_decides_on_the_common_scale_as_on_its_own(p, own, other):
    common = common_scale([own, other])
    on_common = aligned(p, own, common)
    if abs(logit(p) - logit(own.enter)) > 1e-9:
        assert (on_common >= common.enter) == (p >= own.enter)
    if abs(logit(p) - logit(own.leave)) > 1e-9:
        assert (on_common < common.leave) == (p < own.leave)


@given(PROBABILITIES, PROBABILITIES, THRESHOLDS, THRESHOLDS)
def test_more_evidence_is_never_less_on_the_common_scale(p, q, own, other):
    common = common_scale([own, other])
    low, high = (aligned(v, own, common) for v in sorted((p, q)))
    assert low <= high + 1e-12


def test_thresholds_that_coincide_part_attack_from_bona_fide_at_once():
    own = at(0.5, 0.5)
    common = common_scale([own, at(0.9, 0.3)])
    assert aligned(0.4999, own, common) < common.leave
    assert aligned(0.5, own, common) == pytest.approx(common.enter)
