"""Graphs in float16, int8 and fp8: what changes in them, and what stays."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from trt_engines.backends.onnx_session import open_session
from trt_engines.errors import EngineError
from trt_engines.precision import (
    calibrated,
    float8_graph,
    half_graph,
    int8_graph,
    with_constants_computed,
)

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def _graph(weight=1.0):
    """Normalise, convolve, take the root of the squares, convolve, and give it out twice."""
    rng = np.random.default_rng(0)
    weights = {
        "mean": np.full((1, 3, 1, 1), 0.5, np.float32),
        "first": (rng.normal(size=(4, 3, 3, 3)) * 0.2).astype(np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
        "last": (rng.normal(size=(1, 4, 3, 3)) * weight * 0.2).astype(np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["images", "mean"], ["centred"], "normalise"),
        helper.make_node("Conv", ["centred", "first", "bias"], ["map"], "first_conv"),
        helper.make_node("Relu", ["map"], ["open"], "relu"),
        helper.make_node("Mul", ["open", "open"], ["square"], "square"),
        helper.make_node("Sqrt", ["square"], ["root"], "root"),
        helper.make_node("Conv", ["root", "last"], ["cue"], "last_conv"),
        helper.make_node("Sigmoid", ["cue"], ["probability"], "sigmoid"),
    ]
    images = helper.make_tensor_value_info("images", FLOAT, ["N", 3, 8, 8])
    outputs = [
        helper.make_tensor_value_info(n, FLOAT, ["N", 1, 4, 4]) for n in ("probability", "cue")
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", [images], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model, images):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    return open_session(content, 1, as_written=True).run(None, {"images": images})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((6, 3, 8, 8), np.float32)


@pytest.fixture(scope="module")
def ranges(images):
    return calibrated(_graph().SerializeToString(), [images])


def _types(model):
    """Return the floating-point type that each node's first result has."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    return {node.name: types[node.output[0]] for node in graph.node}


def test_float16_lies_between_the_first_and_the_last_product(images):
    half = half_graph(_graph(), "net")
    types = _types(half)
    assert {types[n] for n in ("first_conv", "relu", "square", "last_conv")} == {HALF}
    assert {types[n] for n in ("normalise", "root", "sigmoid")} == {FLOAT}
    for found, wanted in zip(_run(half, images), _run(_graph(), images), strict=True):
        assert found.dtype == np.float32
        assert 0 < np.abs(found - wanted).max() < 5e-3


def test_a_result_that_other_nodes_go_on_from_may_be_given_out_too(images):
    model = _graph()
    shown = helper.make_tensor_value_info("map", FLOAT, ["N", 4, 6, 6])
    model.graph.output.append(shown)
    found, wanted = (_run(graph, images)[2] for graph in (half_graph(model, "net"), model))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - wanted).max() < 5e-3


def test_a_float16_graph_holds_each_weight_once_and_casts_each_value_once():
    half = half_graph(_graph(), "net")
    assert sorted(t.name for t in half.graph.initializer) == [
        "bias_half", "first_half", "last_half", "mean",
    ]  # fmt: skip
    casts = [node.input[0] for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_a_weight_that_float16_can_not_hold_is_named():
    with pytest.raises(EngineError, match="net: last has values beyond float16's 65504"):
        half_graph(_graph(weight=1e6), "net")


def test_the_graph_that_a_pass_is_given_stays_as_it_is():
    model = _graph()
    half_graph(model, "net")
    assert model == _graph()


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_int8_stays_near_float32(images, ranges, activations):
    graph = int8_graph(_graph().SerializeToString(), ranges, activations)
    (found, _), (wanted, _) = _run(graph, images), _run(_graph(), images)
    assert 0 < np.abs(found - wanted).max() < 0.05


def test_int8_for_tensorrt_is_symmetric_and_wraps_products_alone(ranges):
    model = onnx.load_from_string(int8_graph(_graph().SerializeToString(), ranges, "int8"))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    rounded = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert rounded
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored[node.input[2]]
            assert zero.dtype == np.int8  # TensorRT knows no other
            assert not zero.any()
    assert {n.input[0] for n in rounded} == {"centred", "root"}  # inputs of products


def test_int8_for_onnxruntime_has_weights_that_no_cpu_overflows(ranges):
    model = onnx.load_from_string(int8_graph(_graph().SerializeToString(), ranges, "uint8"))
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in {"first_quantized", "last_quantized"}
    ]
    assert len(weights) == 2
    # Two products of unsigned and signed 8 bits, added in 16: 2 * 255 * 64 < 2**15.
    assert all(np.abs(weight.astype(int)).max() in (63, 64) for weight in weights)


def test_fp8_rounds_what_products_take_and_nothing_else(images, ranges):
    model = onnx.load_from_string(float8_graph(_graph().SerializeToString(), ranges))
    rounded = [n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert rounded == ["centred", "root"]
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert {kinds[f"{w}_fp8"] for w in ("first", "last")} == {TensorProto.FLOAT8E4M3FN}
    assert kinds["bias"] == FLOAT
    assert model.opset_import[0].version >= 19  # before it, there was no fp8
    (found, _), (wanted, _) = _run(model, images), _run(_graph(), images)
    assert 0 < np.abs(found - wanted).max() < 0.05


def test_fp8_scales_the_largest_value_to_the_largest_that_fp8_has(images, ranges):
    model = onnx.load_from_string(float8_graph(_graph().SerializeToString(), ranges))
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert ranges.largest["centred"] == pytest.approx(np.abs(images - 0.5).max(), rel=1e-5)
    assert scales["centred_scale"] == pytest.approx(ranges.largest["centred"] / 448, rel=1e-5)


def test_the_same_gives_the_same_bytes(images, ranges):
    source = _graph().SerializeToString()
    assert float8_graph(source, ranges) == float8_graph(source, ranges)
    assert int8_graph(source, ranges, "int8") == int8_graph(source, ranges, "int8")


def test_float16_is_rounded_as_torch_rounds_it(images):
    """ONNX Runtime computes such graphs with float16's rounding, so that a CPU can judge them."""
    model = _graph()
    weights = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    x = (torch.tensor(images) - 0.5).half()
    x = torch.nn.functional.conv2d(x, weights["first"].half(), weights["bias"].half()).relu()
    x = (x * x).float().sqrt().half()
    wanted = torch.nn.functional.conv2d(x, weights["last"].half()).float()
    found = torch.tensor(_run(half_graph(model, "net"), images)[1])
    exact = torch.tensor(_run(model, images)[1])
    assert (found - wanted).abs().mean() < 0.7 * (found - exact).abs().mean()


def _places_graph():
    """Two layers, and what each input adds to their result: a product of both layers' weights."""
    rng = np.random.default_rng(2)
    weights = {
        "embedding": rng.normal(size=(6, 4)).astype(np.float32),
        "embedding_bias": rng.normal(size=6).astype(np.float32),
        "decision": rng.normal(size=(2, 6)).astype(np.float32),
        "decision_bias": rng.normal(size=2).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["images", "embedding", "embedding_bias"], ["embedded"], "embed",
                         transB=1),
        helper.make_node("Gemm", ["embedded", "decision", "decision_bias"], ["decided"], "decide",
                         transB=1),
        helper.make_node("MatMul", ["decision", "embedding"], ["product"], "product"),
        helper.make_node("Gemm", ["images", "product"], ["added"], "add", transB=1),
    ]  # fmt: skip
    images = helper.make_tensor_value_info("images", FLOAT, ["N", 4])
    outputs = [helper.make_tensor_value_info(n, FLOAT, ["N", 2]) for n in ("decided", "added")]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", [images], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("precision", ["uint8", "int8", "fp8"])
def test_product_of_two_weights_is_computed_before_rounding(precision):
    images = np.random.default_rng(3).random((16, 4), np.float32)
    plain = _places_graph().SerializeToString()
    source = with_constants_computed(plain)
    assert [n.name for n in onnx.load_from_string(source).graph.node] == ["embed", "decide", "add"]
    ranges = calibrated(source, [images])
    made = (
        float8_graph(source, ranges)
        if precision == "fp8"
        else int8_graph(source, ranges, precision)
    )
    for exact, wanted in zip(_run(source, images), _run(plain, images), strict=True):
        np.testing.assert_allclose(exact, wanted, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(_run(made, images), _run(plain, images), strict=True):
        assert 0 < np.abs(found - wanted).max() < 0.2 * np.abs(wanted).max()
