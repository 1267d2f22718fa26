"""Parsing and building with TensorRT-RTX, which needs no GPU."""

import sys

import pytest
from onnx import TensorProto, helper

from trt_engines.aot import TARGETS, build_plan, tensorrt_rtx
from trt_engines.errors import EngineError
from trt_engines.manifest import SHIPPED, load_manifest


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra aot")


def _model(*kinds):
    nodes = [
        helper.make_node(kind, [f"x{i}"], [f"x{i + 1}"], name=f"node_{i}")
        for i, kind in enumerate(kinds)
    ]
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", 3, 8, 8])
    last = helper.make_tensor_value_info(f"x{len(kinds)}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [first], [last])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.manifest.json")), ids=lambda p: p.name)
def test_shipped_engines_build(trt, path):
    manifest = load_manifest(path)
    onnx_bytes = (path.parent / manifest.onnx).read_bytes()
    axes = {"N": (1, 8, manifest.max_batch), "H": (12, 108, 640), "W": (12, 192, 640)}
    plan = build_plan(trt, onnx_bytes, name=manifest.name, axes=axes, targets=TARGETS)
    assert len(plan) > len(onnx_bytes) / 2


@pytest.mark.parametrize("kind", ["FooOp", "Det", "NonZero"])
def test_unsupported_node_is_named_with_its_operator(trt, kind):
    with pytest.raises(EngineError, match=rf"tiny: .*{kind} \(node_1\)"):
        build_plan(trt, _model("Relu", kind), name="tiny", axes={"N": (1, 2, 4)})


def test_file_that_is_no_graph_is_an_engine_error(trt):
    with pytest.raises(EngineError, match="tiny: TensorRT does not support the graph"):
        build_plan(trt, b"not a graph", name="tiny", axes={})


def test_dynamic_axis_without_sizes_is_named(trt):
    with pytest.raises(EngineError, match="axis 0 of input 'x0', named 'N', is dynamic"):
        build_plan(trt, _model("Relu"), name="tiny", axes={"H": (1, 2, 4)})


def test_sizes_out_of_order_are_refused_with_this_builds_messages_only(trt):
    for _ in range(2):
        with pytest.raises(EngineError, match=r"tiny: sizes .*\(4, 2, 1\).* are refused") as caught:
            build_plan(trt, _model("Relu"), name="tiny", axes={"N": (4, 2, 1)}, targets=TARGETS)
        assert str(caught.value).count("MIN<=OPT<=MAX") == 1


def test_target_that_this_version_does_not_know_is_named(trt):
    with pytest.raises(EngineError, match="does not build for SM11"):
        build_plan(trt, _model("Relu"), name="tiny", axes={"N": (1, 2, 4)}, targets=["SM11"])


def test_missing_package_is_an_engine_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match="extra `aot`"):
        tensorrt_rtx()
