"""Which ONNX operators a graph may use: those that every runtime of ours has, TensorRT first.

TensorRT knows more of them, and some of its own versions only: what is left out here depends on the
data for its output's size (NonZero, Unique), branches or repeats (If, Loop, Scan), is random, is
missing in some TensorRT (DFT, Det), or nobody needed it yet. `python -m trt_engines check` proves
the rest by a real parser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    import onnx

_SHAPES_AND_COPIES: Final = """
    Cast Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND
    Identity Pad Range Reshape Resize Shape Slice SpaceToDepth Split Squeeze Tile Transpose
    Unsqueeze Where
"""
_ELEMENT_BY_ELEMENT: Final = """
    Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish LeakyRelu Less LessOrEqual Log Max Min Mod Mul Neg Not Or Pow PRelu Reciprocal Relu
    Round Selu Sigmoid Sign Sin Softplus Sqrt Sub Tanh Xor
"""
_ALONG_AXES: Final = """
    ArgMax ArgMin CumSum LogSoftmax LpNormalization ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK
"""
_LAYERS: Final = """
    AveragePool BatchNormalization Conv ConvTranspose Einsum Gemm GlobalAveragePool GlobalMaxPool
    GroupNormalization InstanceNormalization LayerNormalization MatMul MaxPool
"""
ALLOWED: Final = frozenset(
    (_SHAPES_AND_COPIES + _ELEMENT_BY_ELEMENT + _ALONG_AXES + _LAYERS).split()
)


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """Refuse a graph with an operator that is not `ALLOWED`.

    Raises:
        EngineError: names the operators and where the first of each kind stands.
    """
    foreign: dict[str, str] = {}
    for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        kind = f"{node.domain}.{node.op_type}".lstrip(".")
        called = any((f.domain, f.name) == (node.domain, node.op_type) for f in model.functions)
        if kind not in ALLOWED and not called:
            foreign.setdefault(kind, node.name)
    if foreign:
        listed = ", ".join(f"{kind} ({where})" for kind, where in sorted(foreign.items()))
        raise EngineError(
            f"{name}: the graph uses {listed}, which TensorRT may lack; write the network with "
            "other operations, or, if TensorRT has it, add it to trt_engines/operators.py"
        )
