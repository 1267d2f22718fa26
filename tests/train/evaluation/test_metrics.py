"""The worked examples of the metric definitions, and agreement with scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.special import logit
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from train.evaluation.metrics.calibration import (
    cllr,
    fit_temperature,
    log_likelihood_ratio,
    log_losses,
    min_cllr,
    pav,
    reliability,
    squared_errors,
)
from train.evaluation.metrics.error_rates import error_counts
from train.evaluation.metrics.intervals import (
    clustered_auc,
    clustered_auc_difference,
    clustered_rate,
    clustered_ratio,
    mean_and_spread,
    newcombe,
    percentile_interval,
    poisson,
    resample,
    wilson,
)
from train.evaluation.metrics.roc import bpcer_at_apcer, least_acer, roc

BONA_FIDE = [0.05, 0.10, 0.20, 0.35, 0.60]
PRINT = [0.30, 0.80, 0.90]
REPLAY = [0.55, 0.70, 0.40, 0.95]
LABELS = np.array([0] * 5 + [1] * 7)
SCORES = np.array(BONA_FIDE + PRINT + REPLAY)
TYPES = np.array([""] * 5 + ["print"] * 3 + ["replay"] * 4)

E_P = np.array([0.02, 0.08, 0.15, 0.22, 0.35, 0.41, 0.58, 0.66, 0.79, 0.93])
E_Y = np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 1])


def exactly(value):
    return pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("threshold", "print_", "replay", "pooled", "bpcer", "acer", "hter", "accuracy"),
    [
        (0.50, 1 / 3, 0.25, 2 / 7, 0.2, 0.8 / 3, 0.2428571428571429, 0.75),
        (0.40, 1 / 3, 0.0, 1 / 7, 0.2, 0.8 / 3, 0.1714285714285714, 5 / 6),
        (0.35, 1 / 3, 0.0, 1 / 7, 0.4, 1.1 / 3, 0.2714285714285714, 0.75),
        (0.30, 0.0, 0.0, 0.0, 0.4, 0.2, 0.2, 5 / 6),
    ],
)
def test_error_rates_equal_the_worked_example(
    threshold, print_, replay, pooled, bpcer, acer, hter, accuracy
):
    counts = error_counts(LABELS, SCORES, TYPES, threshold)
    assert counts.types == ("print", "replay")
    assert counts.apcer.tolist() == [exactly(print_), exactly(replay)]
    assert counts.apcer_max == exactly(max(print_, replay))
    assert counts.apcer_pooled == exactly(pooled)
    assert counts.bpcer == exactly(bpcer)
    assert counts.acer == exactly(acer)
    assert counts.hter == exactly(hter)
    assert counts.accuracy == exactly(accuracy)
    assert counts.balanced_accuracy == exactly(1 - hter)


def test_ranking_figures_equal_the_worked_example():
    curve = roc(LABELS, SCORES)
    assert curve.auc() == exactly(0.8857142857142857)
    assert curve.average_precision() == exactly(0.9240362811791383)
    assert roc(1 - LABELS, 1 - SCORES).average_precision() == exactly(0.885)


def test_the_three_equal_error_rates_equal_the_worked_example():
    curve = roc(LABELS, SCORES)
    assert curve.eer_nearest() == (exactly(0.1714285714285714), exactly(0.40))
    assert curve.eer_interpolated() == exactly(0.2)
    assert curve.eer_convex_hull() == exactly(0.1764705882352941)


def test_the_least_pooled_error_rate_equals_the_worked_example():
    assert least_acer(LABELS, SCORES, np.full(12, "any")) == (
        exactly(0.1714285714285714),
        exactly(0.40),
    )


def test_the_least_acer_takes_the_worst_type():
    assert least_acer(LABELS, SCORES, TYPES) == (exactly(0.2), exactly(0.30))


def test_detection_rates_at_few_false_alarms_equal_the_worked_example():
    curve = roc(LABELS, SCORES)
    assert curve.tpr_at_bpcer(0.2) == exactly(6 / 7)
    assert curve.tpr_at_bpcer(0.1) == exactly(4 / 7)
    assert curve.tpr_at_bpcer(0.01) == exactly(4 / 7)
    assert curve.threshold_at_bpcer(0.2) == exactly(0.40)


@pytest.mark.parametrize(
    ("limit", "bpcer", "threshold"),
    [(0.10, 0.4, 0.30), (0.05, 0.4, 0.30), (0.01, 0.4, 0.30), (0.34, 0.2, 0.40)],
)
def test_bpcer_at_few_missed_attacks_equals_the_worked_example(limit, bpcer, threshold):
    assert bpcer_at_apcer(LABELS, SCORES, TYPES, limit) == (exactly(bpcer), exactly(threshold))


def test_probabilities_of_the_worked_example_cost_what_it_says():
    assert log_losses(LABELS, SCORES).mean() == exactly(0.4317869876316855)
    assert squared_errors(LABELS, SCORES).mean() == exactly(0.14416666666666664)
    assert cllr(LABELS, log_likelihood_ratio(SCORES, prior=7 / 12)) == exactly(0.6384038795248643)
    assert min_cllr(LABELS, SCORES) == exactly(0.40535039968275355)


def test_a_threshold_from_development_data_equals_the_worked_example():
    labels, scores = [0] * 4 + [1] * 4, [0.02, 0.08, 0.15, 0.30, 0.25, 0.45, 0.70, 0.90]
    rate, threshold = roc(labels, scores).eer_nearest()
    assert (rate, threshold) == (exactly(0.25), exactly(0.30))
    on_test = error_counts(LABELS, SCORES, TYPES, threshold)
    assert (on_test.apcer_pooled, on_test.bpcer, on_test.hter) == (
        exactly(0.0),
        exactly(0.4),
        exactly(0.2),
    )


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (1e-15, 8.890106910610667),
        (1e-7, 4.2849367246225745),
        (0.01, 1.406705358380018),
        (0.025, 1.1776326754114794),
    ],
)
def test_the_log_loss_of_a_certain_mistake_depends_on_the_clip_as_worked_out(clip, expected):
    losses = log_losses([1, 1, 0, 0], [0.9, 0.0, 0.2, 0.5], clip)
    assert losses.mean() == exactly(expected)


def test_knowing_nothing_costs_one_bit():
    assert log_losses([0, 1], [0.5, 0.5]).mean() == exactly(math.log(2))
    assert cllr([0, 1, 1], [0, 0, 0]) == exactly(1.0)


def test_calibration_figures_equal_the_worked_example():
    five = reliability(E_Y, E_P, 5)
    assert five.ece == exactly(0.131)
    assert five.mce == exactly(0.275)
    assert reliability(E_Y, E_P, 10).ece == exactly(0.317)
    assert reliability(E_Y, E_P, 5, equal_mass=True).ece == exactly(0.149)
    assert squared_errors(E_Y, E_P).mean() == exactly(0.16093)
    assert log_losses(E_Y, E_P).mean() == exactly(0.46939210517826524)
    assert roc(E_Y, E_P).auc() == exactly(0.88)
    assert cllr(E_Y, log_likelihood_ratio(E_P)) == exactly(0.677189662373114)
    assert min_cllr(E_Y, E_P) == exactly(0.4)
    assert pav(E_Y, E_P).tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1]


def test_the_temperature_equals_the_worked_example():
    temperature = fit_temperature(logit(E_P), E_Y)
    assert temperature == pytest.approx(0.98072, abs=1e-4)
    p = 1 / (1 + np.exp(-logit(E_P) / temperature))
    assert log_losses(E_Y, p).mean() == pytest.approx(0.46934740, abs=1e-7)


def test_a_tie_counts_half():
    tied = roc([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.9])
    assert tied.auc() == exactly(0.75)
    assert tied.average_precision() == exactly(0.75)


@pytest.mark.parametrize(
    ("errors", "n", "low", "high"),
    [
        (1, 5, 0.0362241086, 0.6244653702),
        (0, 300, 0.0, 0.0126429712),
        (3, 300, 0.0034066184, 0.0289834934),
    ],
)
def test_wilson_interval_equals_the_worked_example(errors, n, low, high):
    assert wilson(errors, n) == (exactly(low), exactly(high))


def test_newcombe_interval_holds_the_areas_that_would_give_such_an_area_by_chance():
    low, high = newcombe(0.8, 30, 40)
    assert (low, high) == (pytest.approx(0.675, abs=0.01), pytest.approx(0.884, abs=0.01))
    assert newcombe(0.8, 40, 30) == (pytest.approx(low), pytest.approx(high))
    assert newcombe(1 - 0.8, 30, 40) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize("auc", [0.0, 0.3, 1.0])
def test_newcombe_interval_of_one_pair_is_wilsons_of_one_sample(auc):
    assert newcombe(auc, 1, 1) == pytest.approx(wilson(auc, 1))


@pytest.mark.parametrize(
    ("events", "hours", "low", "high"), [(0, 1, 0, 3.6888794541), (3, 2, 0.3093360, 4.3836366)]
)
def test_poisson_interval_equals_garwoods_table(events, hours, low, high):
    assert poisson(events, hours) == pytest.approx((low, high), abs=1e-6)


def test_samples_of_one_cluster_count_as_one():
    errors = np.repeat([True, False], [3, 37])
    alone = clustered_rate(errors, range(40))
    assert alone == pytest.approx((0.0, 0.175), abs=0.026)
    assert clustered_rate(errors, ["anna"] * 40) == pytest.approx(wilson(40 * 3 / 1600, 1))
    by_two = clustered_rate(errors, np.arange(40) // 2)
    assert by_two[1] > alone[1]  # both pictures of a person err, or neither


def test_a_rate_without_errors_is_wilsons_of_as_many_clusters():
    assert clustered_rate(np.zeros(300, bool), np.arange(300) // 3) == pytest.approx(wilson(0, 100))


def test_an_interval_of_few_clusters_is_no_narrower_than_that_of_as_many_samples():
    errors = np.repeat([True, False], [132, 1])
    low, high = clustered_rate(errors, np.arange(133) % 3)
    assert low == pytest.approx(wilson(3 * 132 / 133, 3)[0])
    assert high == 1


def test_the_area_of_clusters_is_less_sure_than_that_of_samples():
    rng = np.random.default_rng(5)
    labels = np.repeat([1, 0], 200)
    person = np.arange(400) // 8
    scores = rng.normal(labels * 0.5 + rng.normal(0, 1, 50)[person], 0.3)
    by_sample = clustered_auc(labels, scores, np.arange(400))
    by_person = clustered_auc(labels, scores, person)
    assert by_person[0] < by_sample[0] < by_sample[1] < by_person[1]


def test_two_scores_of_the_same_samples_are_drawn_together():
    rng = np.random.default_rng(6)
    labels = np.repeat([1, 0], 30)
    scores = rng.normal(labels, 1)
    low, high = clustered_auc_difference(labels, scores, scores * 2, np.arange(60))
    assert (low, high) == (0, 0)
    low, high = clustered_auc_difference(labels, scores, -scores, np.arange(60))
    assert 0 < low < high


def test_alarms_of_one_person_leave_the_rate_open():
    alarms, hours = np.array([8, *[0] * 29]), np.full(30, 0.1)
    low, high = clustered_ratio(alarms, hours, range(30))
    assert (low, high) == (0, pytest.approx(8, abs=0.1))
    assert clustered_ratio(0 * alarms, hours, range(30)) == pytest.approx(poisson(0, 3.0))


def test_mean_and_spread_equal_the_worked_example():
    mean, spread = mean_and_spread([2.5, 0, 1.7, 3.3, 0.8, 1.7])
    assert (mean, spread) == (exactly(5 / 3), pytest.approx(1.1741663710, abs=1e-9))


def test_a_bootstrap_of_single_samples_equals_the_worked_example():
    resampling = resample(LABELS, np.arange(12))
    (areas,) = resampling.over_rocs(LABELS, SCORES, lambda curve: curve.auc()[None])
    assert len(areas) == 1000
    assert areas.mean() == pytest.approx(0.8895428571428572, abs=0.02)
    assert percentile_interval(areas) == pytest.approx((0.6571428571, 1.0), abs=0.02)
    assert areas.std(ddof=1) == pytest.approx(0.0975776309, abs=0.02)


def test_a_bootstrap_draws_whole_clusters_within_each_class():
    labels = np.array([0, 0, 0, 1, 1, 1])
    clusters = ["anna", "anna", "ben", "anna", "cora", "cora"]
    resampling = resample(labels, clusters, replicates=50)
    marks = np.stack([labels == 0, labels == 1], axis=1)
    bona_fide, attacks = resampling.sums(marks).T
    assert set(bona_fide) == {2, 3, 4}  # ben twice, both, anna twice
    assert set(attacks) == {2, 3, 4}
    assert (resampling.draws.sum(1) == 4).all()


def test_a_seed_gives_the_same_bootstrap_whatever_the_order_of_the_samples():
    rng = np.random.default_rng(3)
    order = rng.permutation(12)
    straight = resample(LABELS, np.arange(12), replicates=20)
    mixed = resample(LABELS[order], np.arange(12)[order], replicates=20)
    assert (straight.draws[:, straight.cluster][:, order] == mixed.draws[:, mixed.cluster]).all()


def test_replicates_together_equal_each_alone(monkeypatch):
    resampling = resample(LABELS, np.arange(12), replicates=7)

    def figures(curve):
        return np.stack([curve.auc(), curve.average_precision(), curve.eer_interpolated()])

    together = resampling.over_rocs(LABELS, SCORES, figures)
    monkeypatch.setattr("train.evaluation.metrics.intervals._CHUNK", 12)
    assert (resampling.over_rocs(LABELS, SCORES, figures) == together).all()
    for draws, found in zip(resampling.draws, together.T, strict=True):
        counts = draws[resampling.cluster]
        alone = roc(np.repeat(LABELS, counts), np.repeat(SCORES, counts))
        assert found.tolist() == pytest.approx(figures(alone).tolist(), abs=1e-12)


def test_figures_of_one_class_are_not_numbers():
    curve = roc([0, 0], [0.1, 0.2])
    counts = error_counts(np.array([0, 0]), np.array([0.1, 0.2]), ["", ""], 0.15)
    one_sided = [
        curve.auc(),
        curve.average_precision(),
        curve.eer_interpolated(),
        *curve.eer_nearest(),
        counts.apcer_max,
        counts.acer,
        counts.hter,
        cllr([0, 0], [0.0, 0.0]),
        min_cllr([0, 0], [0.1, 0.2]),
        roc([1], [0.5]).tpr_at_bpcer(0.1),
        roc([], []).auc(),
        reliability([], []).ece,
        *percentile_interval([math.nan]),
    ]
    assert all(math.isnan(figure) for figure in one_sided)
    assert counts.bpcer == 0.5


@pytest.mark.parametrize("scores", [[0.1, math.nan], [0.1, math.inf], [0.1]])
def test_scores_that_are_not_finite_or_do_not_fit_the_labels_are_refused(scores):
    with pytest.raises(ValueError, match="finite scores"):
        roc([0, 1], scores)


@st.composite
def labelled_scores(draw):
    """Both classes present; scores from few values, so that ties are frequent."""
    n = draw(st.integers(2, 40))
    rest = draw(st.lists(st.integers(0, 1), min_size=n - 2, max_size=n - 2))
    levels = draw(st.sampled_from([4, 10, 1000]))
    scores = draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))
    return np.array([0, 1, *rest]), np.array(scores) / levels


@given(labelled_scores())
@settings(max_examples=150, deadline=None)
def test_figures_equal_scikit_learn_where_it_has_them(samples):
    labels, scores = samples
    curve = roc(labels, scores)
    assert curve.auc() == exactly(roc_auc_score(labels, scores))
    assert curve.average_precision() == exactly(average_precision_score(labels, scores))
    counts = error_counts(labels, scores, np.full(labels.size, "any"), 0.5)
    assert counts.accuracy == exactly(np.mean((scores >= 0.5) == labels))
    assert counts.balanced_accuracy == exactly(balanced_accuracy_score(labels, scores >= 0.5))
    assert log_losses(labels, scores, 1e-7).mean() == exactly(
        log_loss(labels, np.clip(scores, 1e-7, 1 - 1e-7))
    )
    assert squared_errors(labels, scores).mean() == exactly(brier_score_loss(labels, scores))
    distinct, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    pooled = isotonic_regression(np.bincount(group, labels) / size, sample_weight=size)
    assert pav(labels, scores).tolist() == exactly(pooled[group].tolist())
    assert len(distinct) == len(pooled)


@given(labelled_scores())
@settings(max_examples=100, deadline=None)
def test_the_interpolated_eer_is_the_root_on_the_curve_of_scikit_learn(samples):
    labels, scores = samples
    fpr, tpr, _ = roc_curve(labels, scores)
    # A vertical step has two heights at one abscissa; a hair's slope makes it a function.
    line = interp1d(fpr + 1e-9 * np.arange(fpr.size), tpr, bounds_error=False, fill_value=(0, 1))
    root = brentq(lambda x: 1 - x - line(x), 0, 1)
    assert roc(labels, scores).eer_interpolated() == pytest.approx(root, abs=1e-6)


@given(labelled_scores())
@settings(max_examples=100, deadline=None)
def test_errors_at_every_threshold_equal_plain_counting(samples):
    labels, scores = samples
    curve = roc(labels, scores)
    for t, apcer, bpcer in zip(curve.thresholds, curve.apcer, curve.bpcer, strict=True):
        assert apcer == np.mean(scores[labels == 1] < t)
        assert bpcer == np.mean(scores[labels == 0] >= t)


@given(labelled_scores())
@settings(max_examples=100, deadline=None)
def test_the_convex_hull_never_errs_more_than_the_curve(samples):
    curve = roc(*samples)
    assert curve.eer_convex_hull() <= curve.eer_interpolated() + 1e-12
    assert curve.eer_convex_hull() <= 0.5 + 1e-12


@given(labelled_scores())
@settings(max_examples=100, deadline=None)
def test_the_best_calibration_costs_no_more_than_any_given_one(samples):
    labels, scores = samples
    assert min_cllr(labels, scores) <= cllr(labels, log_likelihood_ratio(scores)) + 1e-9
