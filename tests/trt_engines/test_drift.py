from itertools import pairwise

import pytest
import torch

from trt_engines.drift import LIMITS, DriftError, check_drift, measured_drift, open_reference
from trt_engines.errors import EngineError
from trt_engines.manifest import DecisionThresholds

THRESHOLDS = DecisionThresholds(enter=0.7, leave=0.4, source="made up")


class _Scores:
    """A back end that scores crops by a rule."""

    max_batch = 100

    def __init__(self, rule):
        self.rule = rule

    def infer(self, images):
        scores = self.rule(images)
        return {"probability": scores, "explanation": scores[:, None] / 2}

    def close(self):
        pass


def _drift(rule, scores):
    parts = torch.as_tensor(scores, dtype=torch.float64).split(40)
    return measured_drift(
        _Scores(lambda x: x), _Scores(rule), parts, thresholds=THRESHOLDS, computed_by="torch"
    )


def test_the_same_scores_do_not_drift():
    drift = _drift(lambda x: x, torch.linspace(0, 1, 100))
    assert (drift.scores, drift.mean, drift.p99, drift.max, drift.flips) == (100, 0, 0, 0, 0)
    assert drift.rank_agreement == pytest.approx(1)
    assert drift.others == {"explanation": 0}
    check_drift(drift, "fp32", "net")


def test_drift_is_measured_over_all_batches():
    drift = _drift(lambda x: torch.where(x > 0.985, x - 0.5, x + 0.01), torch.linspace(0, 1, 100))
    assert drift.mean == pytest.approx(0.01 + 2 * 0.49 / 100, abs=1e-6)
    assert drift.max == drift.largest == pytest.approx(0.5)
    assert 0.01 < drift.p99 <= 0.5
    assert drift.others["explanation"] == pytest.approx(drift.mean / 2)
    assert drift.rank_agreement < 1


def test_a_verdict_flips_where_a_score_crosses_a_threshold():
    # attack -> none, bona fide -> none, none -> attack; the others stay what they are
    moved = {0.71: 0.69, 0.39: 0.41, 0.65: 0.7, 0.9: 0.8, 0.1: 0.3}
    scores = list(moved)
    new = torch.tensor(list(moved.values()), dtype=torch.float64)
    assert _drift(lambda x: new, scores).flips == pytest.approx(3 / 5)


def test_order_is_not_asked_of_scores_that_are_alike():
    drift = _drift(lambda x: x.flip(0), torch.linspace(0, 0.0004, 10))
    assert drift.rank_agreement == 1
    assert _drift(lambda x: 1 - x, torch.linspace(0, 1, 10)).rank_agreement == pytest.approx(-1)


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("mean", 0.021),
        ("p99", 0.11),
        ("max", 0.26),
        ("flips", 0.03),
        ("rank_agreement", 0.97),
        ("others", {"explanation": 0.06}),
    ],
)
def test_each_limit_alone_refuses(measure, value):
    drift = _drift(lambda x: x, torch.linspace(0, 1, 10))
    check_drift(drift, "int8", "net")
    name = "explanation" if measure == "others" else measure
    with pytest.raises(DriftError, match=f"net: int8 moves the results too far.* {name}"):
        check_drift(drift.model_copy(update={measure: value}), "int8", "net")


def test_limits_are_wider_for_lower_precisions():
    order = [LIMITS[p] for p in ("fp32", "fp16", "int8")]
    for finer, coarser in pairwise(order):
        assert finer.mean < coarser.mean
        assert finer.max < coarser.max
        assert finer.rank_agreement > coarser.rank_agreement


def test_what_is_no_number_is_refused():
    with pytest.raises(DriftError, match="no number comes out of probability, explanation"):
        _drift(lambda x: x / 0, torch.linspace(0, 1, 10))


def test_float32_is_torch_where_the_weights_are(engine):
    before = torch.get_num_threads()
    assert open_reference(engine)[1] == "torch"
    torch.set_num_threads(before)
    text = engine.read_text()
    engine.write_text(text.replace('"tiny.safetensors"', "null"))
    assert open_reference(engine)[1] == "onnx"
    engine.write_text(text.replace('"fp32"', '"fp16"'))
    with pytest.raises(EngineError, match="expected an engine in fp32"):
        open_reference(engine)
