"""A float32 graph in a lower precision, by changes to the graph alone.

TensorRT 11 has no switches for precision: what computes in float16, int8 or fp8 is what the graph
says. So the same graph means the same to every runtime, and a CPU can measure what it does to the
scores. Pixels come in and outputs leave as before; only what lies between changes.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Activations: TypeAlias = Literal["int8", "uint8"]

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Of these no result is much larger than what went in, or they only move values. Sums along axes,
# exponentials, logarithms, roots, powers and quotients stay in float32.
_ALSO_HALF: Final = """
    Add AveragePool Clip Concat DepthToSpace Expand Flatten Gather GlobalMaxPool HardSigmoid
    HardSwish Identity LeakyRelu MaxPool Mul Neg PRelu Pad Relu Reshape Resize Sigmoid Slice
    SpaceToDepth Split Squeeze Sub Tanh Tile Transpose Unsqueeze
"""
_HALF: Final = PRODUCTS.union(_ALSO_HALF.split())
_ONLY_FIRST_IN_HALF: Final = frozenset({"Resize"})  # its region and scales are float32 always
_OPSET_WITH_FLOAT8: Final = 19  # all that it changes in our operators is what else they accept
_FLOAT8_MAX: Final = 448.0  # of E4M3 as ONNX has it: no infinities


@dataclass(frozen=True, slots=True)
class Ranges:
    """What values a graph's tensors have.

    Attributes:
        largest: name -> largest magnitude.
        of_onnxruntime: the same with both ends, as its quantiser stores them.
    """

    largest: Mapping[str, float]
    of_onnxruntime: bytes


def half_graph(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a float32 graph with float16 between its first and its last product.

    For graphs whose network is not at hand; an export from torch knows the method's own marks.

    Args:
        model: left as it is.
        name: for error messages.

    Raises:
        EngineError: a weight is out of float16's range.
    """
    model = _without_constants(model)
    graph = model.graph
    types = _types(model)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    between = _between_products(graph)
    outputs = {value.name for value in graph.output}
    casts = _Casts()
    nodes: list[onnx.NodeProto] = []
    half: set[str] = set()  # values that are float16 now
    for number, node in enumerate(graph.node):
        is_half = number in between and node.op_type in _HALF
        for place, value in enumerate(node.input):
            wanted = is_half and not (place and node.op_type in _ONLY_FIRST_IN_HALF)
            if types.get(value) != TensorProto.FLOAT or wanted == (value in half):
                continue
            if value in weights:
                node.input[place] = _halved(graph, weights[value], name)
            else:
                kind = TensorProto.FLOAT16 if wanted else TensorProto.FLOAT
                node.input[place] = casts.cast(value, kind, nodes)
        nodes.append(node)
        for place, value in enumerate(node.output):
            if is_half and types.get(value, TensorProto.FLOAT) == TensorProto.FLOAT:
                if value in outputs:
                    # Not `_half`: so `casts` names the copy for nodes that go on from here.
                    inner = f"{value}_computed"
                    node.output[place] = inner
                    half.add(inner)
                    nodes.append(
                        helper.make_node(
                            "Cast", [inner], [value], f"cast_{value}", to=TensorProto.FLOAT
                        )
                    )
                else:
                    half.add(value)
    return _rebuilt(model, nodes)


def with_constants_computed(onnx_bytes: bytes) -> bytes:
    """Return a graph in which what is made of weights alone is a weight.

    A product of two weights takes no rounding, and no kernel of 8 bits computes it.

    Args:
        onnx_bytes: the graph.
    """
    model = _without_constants(onnx.load_from_string(onnx_bytes))
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if not node.input or not known.keys() >= set(node.input):
            kept.append(node)
            continue
        values = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input})
        for name, value in zip(node.output, values, strict=True):
            known[name] = np.asarray(value)
            model.graph.initializer.append(numpy_helper.from_array(known[name], name))
    return bytes(_rebuilt(model, kept).SerializeToString(deterministic=True))


def calibrated(onnx_bytes: bytes, batches: Iterable[NDArray[Any]]) -> Ranges:
    """Return the ranges of a float32 graph's values over what it is given.

    Args:
        onnx_bytes: the graph; one input.
        batches: of that input. The least and the largest value of each count, so a few dozen faces
            that differ say as much as hundreds.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.quantize import save_tensors_data
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    weights = {tensor.name for tensor in onnx.load_from_string(onnx_bytes).graph.initializer}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path, ranges = Path(folder) / "graph.onnx", Path(folder) / "ranges.json"
        path.write_bytes(onnx_bytes)
        calibrator = create_calibrator(
            path,
            sorted({*QDQRegistry, *QLinearOpsRegistry}),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(onnx_bytes, batches))
        found = calibrator.compute_data()
        save_tensors_data(found, ranges)
        largest = {
            name: float(max(abs(end) for end in np.ravel(data.range_value)))
            for name, data in found.items()
            if name not in weights
        }
        return Ranges(largest, ranges.read_bytes())


def int8_graph(onnx_bytes: bytes, ranges: Ranges, activations: Activations) -> bytes:
    """Return a float32 graph with int8 weights and 8-bit activations, by Q/DQ pairs.

    Args:
        onnx_bytes: the graph; one input.
        ranges: of its values.
        activations: "int8", symmetric, what products take alone: for TensorRT. "uint8", every
            operator that has an 8-bit kernel: what ONNX Runtime is fast with on x86. Weights have 7
            bits there: a CPU without VNNI adds two products of 8 bits in 16, which overflow.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    for_tensorrt = activations == "int8"
    with tempfile.TemporaryDirectory() as folder, _quiet():
        known, path = Path(folder) / "ranges.json", Path(folder) / "quantised.onnx"
        known.write_bytes(ranges.of_onnxruntime)
        quantize_static(
            onnx.load_from_string(onnx_bytes),
            path,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(PRODUCTS) if for_tensorrt else None,
            per_channel=True,
            reduce_range=not for_tensorrt,
            activation_type=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": for_tensorrt,
                "WeightSymmetric": True,
                "QuantizeBias": not for_tensorrt,
                # Before an activation has cut it, a result's range says nothing.
                "OpTypesToExcludeOutputQuantization": sorted(PRODUCTS) if for_tensorrt else [],
            },
            calibration_cache_path=known,
        )
        model = onnx.load(path)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


def float8_graph(onnx_bytes: bytes, ranges: Ranges) -> bytes:
    """Return a float32 graph whose products take fp8 (E4M3) from both sides, by Q/DQ pairs.

    Args:
        onnx_bytes: the graph; one input.
        ranges: of its values.
    """
    model = _without_constants(onnx.load_from_string(onnx_bytes))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            for place in (0, 1):
                value = node.input[place]
                if value not in done:
                    done[value] = _through_float8(
                        model.graph, value, weights.get(value), ranges.largest, nodes
                    )
                node.input[place] = done[value]
        nodes.append(node)
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = max(opset.version, _OPSET_WITH_FLOAT8)
    return bytes(_rebuilt(model, nodes).SerializeToString(deterministic=True))


def _through_float8(
    graph: onnx.GraphProto,
    value: str,
    weight: onnx.TensorProto | None,
    largest: Mapping[str, float],
    nodes: list[onnx.NodeProto],
) -> str:
    """Add the nodes that take a value to fp8 and back; return the result's name."""
    array = None if weight is None else numpy_helper.to_array(weight)
    peak = largest[value] if array is None else float(np.abs(array).max(initial=0))
    scale = np.float32(max(peak, 1e-12) / _FLOAT8_MAX)
    names = {part: f"{value}_{part}" for part in ("scale", "zero", "fp8", "back")}
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale), names["scale"]))
    zero = helper.make_tensor(names["zero"], TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    graph.initializer.append(zero)
    if array is None:
        nodes.append(
            helper.make_node(
                "QuantizeLinear",
                [value, names["scale"], names["zero"]],
                [names["fp8"]],
                f"quantise_{value}",
            )
        )
    else:
        kind = TensorProto.FLOAT8E4M3FN
        content = (array / scale).astype(helper.tensor_dtype_to_np_dtype(kind)).tobytes()
        graph.initializer.append(
            helper.make_tensor(names["fp8"], kind, array.shape, content, raw=True)
        )
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [names["fp8"], names["scale"], names["zero"]],
            [names["back"]],
            f"dequantise_{value}",
        )
    )
    return names["back"]


class _Reader:
    """Gives ONNX Runtime's quantiser one batch after the other."""

    def __init__(self, onnx_bytes: bytes, batches: Iterable[NDArray[Any]]) -> None:
        graph = onnx.load_from_string(onnx_bytes).graph
        weights = {tensor.name for tensor in graph.initializer}
        (self._input,) = (v.name for v in graph.input if v.name not in weights)
        self._batches: Iterator[NDArray[Any]] = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._input: batch}


class _Casts:
    """One cast per value and type, where it is first needed."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], str] = {}

    def cast(self, value: str, kind: int, nodes: list[onnx.NodeProto]) -> str:
        if (value, kind) not in self._made:
            name = f"{value}_{'half' if kind == TensorProto.FLOAT16 else 'float'}"
            nodes.append(helper.make_node("Cast", [value], [name], f"cast_{name}", to=kind))
            self._made[value, kind] = name
        return self._made[value, kind]


def _halved(graph: onnx.GraphProto, weight: onnx.TensorProto, name: str) -> str:
    """Add a weight in float16, if it is not there; return its name."""
    half = f"{weight.name}_half"
    if all(tensor.name != half for tensor in graph.initializer):
        with np.errstate(over="ignore"):
            array = numpy_helper.to_array(weight).astype(np.float16)
        if not np.isfinite(array).all():
            raise EngineError(
                f"{name}: {weight.name} has values beyond float16's 65504; build it in fp32"
            )
        graph.initializer.append(numpy_helper.from_array(array, half))
    return half


def _between_products(graph: onnx.GraphProto) -> set[int]:
    """Return the numbers of the products, and of every node that lies between two of them."""
    after: set[str] = set()
    for node in graph.node:
        if node.op_type in PRODUCTS or after.intersection(node.input):
            after.update(node.output)
    before: set[str] = set()
    between = set()
    for number, node in reversed(list(enumerate(graph.node))):
        is_product = node.op_type in PRODUCTS
        leads_on = before.intersection(node.output)
        if is_product or leads_on:
            before.update(node.input)
        if is_product or (leads_on and after.issuperset(node.output)):
            between.add(number)
    return between


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with constants among the weights, where a pass finds them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = []
    for node in copy.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            copy.graph.initializer.append(value)
        else:
            kept.append(node)
    return _with_nodes(copy, kept)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {t.name: t.data_type for t in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _rebuilt(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """Put the nodes in place, and leave weights out that nothing uses any more."""
    used = Counter(value for node in nodes for value in node.input)
    weights = [tensor for tensor in model.graph.initializer if used[tensor.name]]
    del model.graph.value_info[:]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return _with_nodes(model, nodes)


def _with_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser from advising on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
