"""An optimiser step is taken by finite numbers only; fp16 may overflow, but not for ever."""

import math

import pytest
import torch

from train.errors import TrainError
from train.fit.ranks import Ranks
from train.fit.update import Update

ALONE = Ranks(0, 1, torch.device("cpu"))


class Run:
    """One weight, and what steps it; the loss is the weight times a factor."""

    def __init__(self, *, scale=None, max_grad_norm=None):
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.network.weight, 2.0)
        self.optimiser = torch.optim.SGD(self.network.parameters(), 0.5)
        self.scaler = torch.amp.GradScaler(
            "cpu", init_scale=scale or 1.0, enabled=scale is not None
        )
        self.update = Update(self.network, self.optimiser, self.scaler, ALONE, max_grad_norm)

    def step(self, factor, loss=None):
        total = self.network.weight.sum() * factor
        self.scaler.scale(total).backward()
        self.update(7, {"term": total.detach() if loss is None else torch.tensor(loss)})

    @property
    def weight(self):
        return self.network.weight.item()


def test_a_finite_step_is_taken_and_the_gradient_is_cleared():
    run = Run()
    run.step(1.0)
    assert run.weight == 1.5
    assert run.network.weight.grad is None


def test_a_long_gradient_is_cut_to_the_greatest_norm():
    run = Run(max_grad_norm=1.0)
    run.step(100.0)
    assert run.weight == pytest.approx(1.5, abs=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_no_weight_and_is_named_with_its_step(loss):
    run = Run()
    with pytest.raises(TrainError, match=r"step 7: the loss is no finite number: term \(rank 0\)"):
        run.step(1.0, loss)
    assert run.weight == 2.0


def test_a_gradient_that_is_no_number_changes_no_weight_and_is_named():
    run = Run()
    with pytest.raises(TrainError, match=r"step 7: the gradient is no finite number: weight"):
        run.step(math.nan, 1.0)
    assert run.weight == 2.0


def test_a_gradient_that_overflows_in_fp16_skips_the_step_and_halves_the_scale():
    run = Run(scale=2.0**80)
    for _ in range(2):
        run.step(1e15)
        assert run.weight == 2.0
    assert run.scaler.get_scale() == 2.0**78
    run.step(1e15)
    assert run.weight == pytest.approx(2 - 0.5e15)


def test_a_gradient_that_overflows_at_every_scale_ends_the_run():
    run = Run(scale=4.0)
    for _ in range(3):  # 4, 2, 1
        run.step(math.inf, 1.0)
    with pytest.raises(TrainError, match=r"gradient is no finite .*at a loss scale of 0\.5"):
        run.step(math.inf, 1.0)


def test_in_fp16_a_loss_that_is_no_number_beside_a_finite_gradient_ends_the_run():
    run = Run(scale=4.0)
    with pytest.raises(TrainError, match="the loss is no finite number: term"):
        run.step(1.0, math.nan)
    assert run.weight == 2.0


def test_in_fp16_an_overflow_that_reached_the_running_statistics_ends_the_run():
    run = Run(scale=4.0)
    run.network.register_buffer("running_mean", torch.tensor(math.inf))
    with pytest.raises(TrainError, match="running_mean"):
        run.step(math.inf, 1.0)
