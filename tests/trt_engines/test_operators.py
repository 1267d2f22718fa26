import onnx
import pytest
from onnx import TensorProto, helper

from trt_engines.errors import EngineError
from trt_engines.manifest import SHIPPED
from trt_engines.operators import check_operators


def _graph(*kinds, domain=""):
    nodes = [
        helper.make_node(kind, [f"x{i}"], [f"x{i + 1}"], name=f"node_{i}", domain=domain)
        for i, kind in enumerate(kinds)
    ]
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1])
    last = helper.make_tensor_value_info(f"x{len(kinds)}", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(nodes, "graph", [first], [last]))


@pytest.mark.parametrize(
    "kind", ["NonZero", "Unique", "If", "Loop", "Scan", "RandomNormal", "RandomUniformLike", "DFT"]
)
def test_operator_that_tensorrt_may_lack_is_named_with_its_place(kind):
    with pytest.raises(EngineError, match=rf"tiny: the graph uses {kind} \(node_1\)"):
        check_operators(_graph("Relu", kind, "Relu"), "tiny")


def test_every_foreign_operator_is_named_once():
    with pytest.raises(EngineError, match=r"uses Det \(node_0\), NonZero \(node_2\), which"):
        check_operators(_graph("Det", "Relu", "NonZero", "Det"), "tiny")


def test_operator_of_a_runtimes_own_domain_is_foreign():
    with pytest.raises(EngineError, match=r"uses com\.microsoft\.Relu"):
        check_operators(_graph("Relu", domain="com.microsoft"), "tiny")


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.onnx")), ids=lambda path: path.stem)
def test_shipped_graphs_use_allowed_operators(path):
    check_operators(onnx.load(path), path.stem)
