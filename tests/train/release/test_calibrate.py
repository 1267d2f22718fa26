"""Calibration on log-odds that say too much, too little, or lie off centre."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import expit
from torch import nn

from models import KNOTS, Calibration, InputSpec
from train.errors import TrainError
from train.evaluation.metrics.calibration import log_losses, pav, reliability
from train.evaluation.metrics.roc import roc
from train.release.calibrate import fit_calibration
from trt_engines.export import export_engine

KINDS = ["temperature", "platt", "isotonic"]


def distorted(log_odds):
    """Log-odds as an overconfident network gives them, the more the farther from zero."""
    return 3 * log_odds + 0.5 * np.sign(log_odds) * log_odds**2


def drawn(n, seed, distortion=distorted):
    """Log-odds of n bona fide samples and n attacks whose undistorted ones are calibrated."""
    rng = np.random.default_rng(seed)
    return distortion(rng.normal(-1, math.sqrt(2), n)), distortion(rng.normal(1, math.sqrt(2), n))


def fitted(kind, bona_fide, attacks):
    calibration = Calibration()
    fit_calibration(calibration, bona_fide, attacks, kind)
    return calibration


def applied(calibration, *parts):
    return calibration(torch.from_numpy(np.concatenate(parts)).float()).double().numpy()


def labels_of(bona_fide, attacks):
    return np.repeat([0, 1], [len(bona_fide), len(attacks)])


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_mends_overconfident_log_odds_of_other_samples_too(kind):
    calibration = fitted(kind, *drawn(2000, seed=1))
    for seed in (1, 2):
        parts = drawn(2000, seed)
        labels, before = labels_of(*parts), expit(np.concatenate(parts))
        after = expit(applied(calibration, *parts))
        assert log_losses(labels, after).mean() < log_losses(labels, before).mean() - 0.2
        assert reliability(labels, after).ece < reliability(labels, before).ece / 3


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_mends_log_odds_that_lie_off_centre(kind):
    parts = drawn(1000, seed=3, distortion=lambda x: x + 4)
    labels, after = labels_of(*parts), expit(applied(fitted(kind, *parts), *parts))
    assert reliability(labels, after).ece < 0.05
    assert log_losses(labels, after).mean() < 0.55


def test_a_temperature_recovers_the_factor_that_was_applied():
    calibration = fitted("temperature", *drawn(5000, seed=4, distortion=lambda x: 2.5 * x))
    assert calibration.scale.item() == pytest.approx(2.5, rel=0.05)
    assert calibration.offset == 0


def test_platt_recovers_the_shift_and_factor_that_were_applied():
    calibration = fitted("platt", *drawn(5000, seed=5, distortion=lambda x: 2 * x + 3))
    assert calibration.scale.item() == pytest.approx(2, rel=0.05)
    assert calibration.offset.item() == pytest.approx(3, abs=0.15)


def test_isotonic_comes_near_the_best_monotone_map():
    parts = drawn(1500, seed=6)
    labels = labels_of(*parts)
    best = log_losses(labels, pav(labels, np.concatenate(parts)), clip=1e-3).mean()
    isotonic, platt = (
        log_losses(labels, expit(applied(fitted(kind, *parts), *parts))).mean()
        for kind in ("isotonic", "platt")
    )
    assert isotonic < platt
    assert isotonic < best + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_keeps_the_order_of_the_samples(kind):
    parts = drawn(500, seed=7)
    logits = np.concatenate([*parts, [-500.0, 500.0]])  # beyond what was fitted on, too
    calibration = fitted(kind, *parts).double()
    after = calibration(torch.from_numpy(np.sort(logits))).numpy()
    assert (np.diff(after) > 0).all()
    labels = labels_of(*parts)
    assert roc(labels, applied(fitted(kind, *parts), *parts)).auc() == pytest.approx(
        roc(labels, np.concatenate(parts)).auc(), abs=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_do_not_overlap_fit_a_finite_map(kind):
    bona_fide, attacks = np.linspace(-3, -1, 30), np.linspace(1, 3, 30)
    calibration = fitted(kind, bona_fide, attacks)
    p = expit(applied(calibration, bona_fide, attacks))
    assert all(torch.isfinite(tensor).all() for tensor in calibration.state_dict().values())
    assert 0.0005 < p.min() < p.max() < 0.9995
    assert log_losses(labels_of(bona_fide, attacks), p).mean() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_mix_of_the_classes_does_not_move_the_probability(kind):
    bona_fide, attacks = drawn(400, seed=8)
    even = fitted(kind, bona_fide, attacks)
    many = fitted(kind, bona_fide, np.tile(attacks, 20))
    x = np.linspace(-8, 8, 33)
    assert expit(applied(many, x)) == pytest.approx(expit(applied(even, x)), abs=0.02)


def test_fitting_again_forgets_the_first_fit():
    first, second = drawn(300, seed=9), drawn(300, seed=10)
    calibration = fitted("isotonic", *first)
    fit_calibration(calibration, *second, "platt")
    expected = fitted("platt", *second).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in calibration.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_reversed_scores_are_refused(kind):
    with pytest.raises(TrainError, match="labels reversed"):
        fitted(kind, np.array([1.0, 2.0, 3.0]), np.array([-1.0, -2.0, -3.0]))


@pytest.mark.parametrize(
    ("bona_fide", "attacks", "message"),
    [
        ([], [1.0], "0 bona fide samples and 1 attacks"),
        ([-1.0, math.nan], [1.0], "1 of them not finite"),
    ],
)
def test_unfit_development_data_is_refused(bona_fide, attacks, message):
    with pytest.raises(TrainError, match=message):
        fitted("platt", np.array(bona_fide, float), np.array(attacks, float))


def test_isotonic_refuses_scores_without_a_rising_relation():
    # The mean of the attacks is higher through one outlier alone, which is pooled away.
    with pytest.raises(TrainError, match="no rising relation"):
        fitted("isotonic", np.array([1.0, 2.0]), np.array([0.0, 0.5, 0.9, 7.0]))


class Brightness(nn.Module):
    """The smallest detector: its log-odds are the mean pixel's distance from mid grey."""

    def __init__(self):
        super().__init__()
        self.input_spec = InputSpec(size_px=8)
        self.calibration = Calibration()

    def normalise(self, images):
        return images.float() / 255

    def forward(self, images):
        return images

    def attack_logit(self, outputs):
        return 20 * (outputs.mean(dim=(1, 2, 3)) - 0.5)

    def explanation(self, outputs):
        return outputs.mean(dim=1, keepdim=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch's exporter
def test_the_exported_graph_gives_the_calibrated_probability(tmp_path):
    parts = drawn(500, seed=11)
    model = Brightness().eval()
    fit_calibration(model.calibration, *parts, "isotonic")
    grey = torch.arange(0, 256, 5, dtype=torch.uint8)
    crops = grey[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    manifest = export_engine(
        model,
        method="brightness",
        options={},
        examples=crops[::10],
        folder=tmp_path,
        licence="test",
        thresholds=None,
    )
    session = onnxruntime.InferenceSession(tmp_path / manifest.onnx)
    probability = session.run(["probability"], {"images": crops.numpy()})[0]
    log_odds = 20 * (grey.double() / 255 - 0.5)
    expected = expit(applied(model.calibration, log_odds.numpy()))
    assert probability == pytest.approx(expected, abs=1e-5)
    assert np.abs(probability - expit(log_odds.numpy())).max() > 0.1  # it was not calibrated before


def test_many_blocks_are_thinned_to_the_fixed_number_of_knots():
    calibration = fitted("isotonic", *drawn(5000, seed=12))
    assert calibration.widths.shape == (KNOTS - 1,)
    assert (calibration.widths > 0).all()
