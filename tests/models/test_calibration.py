import pytest
import torch

from models import KNOTS, Calibration


def bent():
    """Slope 1/2 through the origin; 3/2 from 0 to 2 and 5/2 from 2 to 3."""
    calibration = Calibration()
    calibration.scale.fill_(2.0)
    calibration.starts[:2] = torch.tensor([0.0, 2.0])
    calibration.widths[:2] = torch.tensor([2.0, 1.0])
    calibration.slopes[:2] = torch.tensor([1.0, 2.0])
    return calibration


def test_calibration_changes_nothing_until_it_is_fitted():
    logits = torch.tensor([-3.0, 0.0, 5.0])
    assert torch.equal(Calibration()(logits), logits)


def test_calibration_shifts_and_scales_the_log_odds():
    calibration = Calibration()
    calibration.offset.fill_(1.0)
    calibration.scale.fill_(2.0)
    assert calibration(torch.tensor([1.0, 3.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("logit", "calibrated"), [(-4.0, -2.0), (0.0, 0.0), (1.0, 1.5), (2.5, 4.25), (5.0, 6.5)]
)
def test_calibration_bends_at_its_knots(logit, calibrated):
    assert bent()(torch.tensor([logit])).item() == pytest.approx(calibrated)


def test_calibration_is_part_of_the_state():
    other = Calibration()
    other.load_state_dict(bent().state_dict())
    logits = torch.linspace(-5, 5, 11)
    assert torch.equal(other(logits), bent()(logits))


def test_a_state_of_before_the_segments_loads_as_the_affine_map_it_was():
    network = torch.nn.ModuleDict({"calibration": bent()})
    old = {"calibration.offset": torch.tensor(1.0), "calibration.scale": torch.tensor(2.0)}
    network.load_state_dict(old)
    assert network["calibration"](torch.tensor([3.0])).item() == 1.0
    assert old.keys() == {"calibration.offset", "calibration.scale"}


def test_a_state_without_any_calibration_is_not_taken_for_one():
    with pytest.raises(RuntimeError, match="Missing key"):
        Calibration().load_state_dict({})


def test_the_state_has_one_size_whatever_was_fitted():
    assert {tuple(v.shape) for v in bent().state_dict().values()} == {(), (KNOTS - 1,)}
