"""The worked examples of the metric definitions (made with numpy and scikit-learn)."""

import math

import pytest

from train.metrics import apcer, auc, bpcer, eer, wilson

BONA_FIDE = [0.05, 0.10, 0.20, 0.35, 0.60]
PRINT = [0.30, 0.80, 0.90]
REPLAY = [0.55, 0.70, 0.40, 0.95]


@pytest.mark.parametrize(
    ("threshold", "print_", "replay", "pooled", "bona_fide"),
    [
        (0.50, 1 / 3, 0.25, 2 / 7, 0.2),
        (0.40, 1 / 3, 0.0, 1 / 7, 0.2),
        (0.35, 1 / 3, 0.0, 1 / 7, 0.4),
        (0.30, 0.0, 0.0, 0.0, 0.4),
    ],
)
def test_error_rates_equal_the_worked_example(threshold, print_, replay, pooled, bona_fide):
    assert apcer(PRINT, threshold) == pytest.approx(print_, abs=1e-9)
    assert apcer(REPLAY, threshold) == pytest.approx(replay, abs=1e-9)
    assert apcer(PRINT + REPLAY, threshold) == pytest.approx(pooled, abs=1e-9)
    assert bpcer(BONA_FIDE, threshold) == pytest.approx(bona_fide, abs=1e-9)


def test_auc_equals_the_worked_example():
    assert auc(BONA_FIDE, PRINT + REPLAY) == pytest.approx(0.8857142857142857, abs=1e-9)


def test_auc_counts_a_tie_half():
    assert auc([0.5, 0.5], [0.5, 0.9]) == pytest.approx(0.75)


def test_eer_equals_the_worked_example():
    rate, threshold = eer(BONA_FIDE, PRINT + REPLAY)
    assert rate == pytest.approx(0.1714285714285714, abs=1e-9)
    assert threshold == pytest.approx(0.40)


def test_eer_threshold_of_a_development_set_equals_the_worked_example():
    rate, threshold = eer([0.02, 0.08, 0.15, 0.30], [0.25, 0.45, 0.70, 0.90])
    assert (rate, threshold) == (pytest.approx(0.25), pytest.approx(0.30))


@pytest.mark.parametrize(
    ("errors", "n", "low", "high"),
    [
        (1, 5, 0.0362241086, 0.6244653702),
        (0, 300, 0.0, 0.0126429712),
        (3, 300, 0.0034066184, 0.0289834934),
    ],
)
def test_wilson_interval_equals_the_worked_example(errors, n, low, high):
    assert wilson(errors, n) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_a_rate_of_nothing_is_not_a_number():
    assert math.isnan(apcer([], 0.5))
    assert math.isnan(bpcer([], 0.5))
    assert math.isnan(auc([], [0.5]))
