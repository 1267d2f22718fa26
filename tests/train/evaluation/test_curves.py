"""A run's journal as curves."""

import numpy as np
import pytest

from train.errors import TrainError
from train.evaluation.curves import Curve, read_curves


def test_a_journal_is_read_by_column(tmp_path):
    (tmp_path / "losses.csv").write_text("step,loss,learning_rate\n1,0.5,0.1\n3,0.25,0.1\n")
    curves = read_curves(tmp_path)
    assert curves.losses["loss"].steps.tolist() == [1, 3]
    assert curves.losses["loss"].values.tolist() == [0.5, 0.25]
    assert curves.validation == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [("step,loss\n1,0.5\n2,zero\n", 3), ("loss\n0.5\n", 2), ("step,loss\n1,2,3\n", 2)],
)
def test_a_damaged_journal_is_named_with_its_line(text, line, tmp_path):
    (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(TrainError, match=rf"losses\.csv: line {line}: can't read"):
        read_curves(tmp_path)


def test_smoothing_takes_as_many_neighbours_on_both_sides():
    line = np.arange(100.0)
    smoothed = Curve(np.arange(100), line).smoothed()
    assert smoothed[10:-10] == pytest.approx(line[10:-10])
    noisy = np.tile([0.0, 1.0], 500)
    assert Curve(np.arange(1000), noisy).smoothed()[100:-100] == pytest.approx(0.5, abs=0.02)
