import torch

from models._calibration import Calibration


def test_calibration_changes_nothing_until_it_is_fitted():
    logits = torch.tensor([-3.0, 0.0, 5.0])
    assert torch.equal(Calibration()(logits), logits)


def test_calibration_shifts_and_scales_the_log_odds():
    calibration = Calibration()
    calibration.offset.fill_(1.0)
    calibration.scale.fill_(2.0)
    assert calibration(torch.tensor([1.0, 3.0])).tolist() == [0.0, 1.0]


def test_calibration_is_part_of_the_state():
    calibration = Calibration()
    calibration.offset.fill_(1.0)
    other = Calibration()
    other.load_state_dict(calibration.state_dict())
    assert other.offset == 1
