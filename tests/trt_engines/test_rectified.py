"""PReLU in graphs: from two rectifiers, and the same to the bit."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_engines.backends.onnx_session import open_session
from trt_engines.manifest import shipped_engines
from trt_engines.rectified import rectify


def _prelu(slope):
    """Return a graph of one PRelu, whose slopes are weights, or its second input."""
    shape = ["N", 5, 4, 3]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    stored = []
    if slope is None:
        values.append(helper.make_tensor_value_info("slope", TensorProto.FLOAT, [5, 1, 1]))
    else:
        stored.append(numpy_helper.from_array(slope.astype(np.float32), "slope"))
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "slope"], ["y"], "bend")],
        "graph",
        values,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model, x):
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString(), 1).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "slope",
    [
        np.array([0.25, -1.3, 4.7, 0.0, 1.0]).reshape(5, 1, 1),
        np.array([0.25, -1.3, 4.7, 0.0, 1.0]).reshape(1, 5, 1, 1),
        np.array([0.1]),
    ],
    ids=["by channel", "by channel with a batch axis", "one for all"],
)
def test_rectifiers_compute_a_prelu_bit_for_bit(slope):
    x = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32) * 100
    x[0] = 0.0
    before, after = _prelu(slope), _prelu(slope)
    rectify(after)
    assert "PRelu" not in {node.op_type for node in after.graph.node}
    assert "slope" not in {tensor.name for tensor in after.graph.initializer}
    np.testing.assert_array_equal(_run(after, x), _run(before, x))


def test_prelu_whose_slopes_are_computed_stays():
    model = _prelu(None)
    rectify(model)
    assert [node.op_type for node in model.graph.node] == ["PRelu"]


def test_no_shipped_graph_has_an_operator_that_onnxruntime_is_slow_with():
    for engine in shipped_engines():
        graph = onnx.load(engine.path.with_name(engine.label.split("/")[1] + ".onnx")).graph
        assert Counter(node.op_type for node in graph.node)["PRelu"] == 0, engine.label
