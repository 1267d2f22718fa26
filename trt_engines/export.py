"""From torch to ONNX: trace, prove that the graph computes the same, write it with its manifest."""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
from torch import nn

from models import RefinedModel, packed_weights, whole_file
from trt_engines.backends.onnx_session import open_session
from trt_engines.errors import EngineError
from trt_engines.graphs import AttackGraph, RefinementGraph
from trt_engines.half_precision import TensorCores
from trt_engines.manifest import Manifest, Refinement, save_manifest
from trt_engines.operators import check_operators
from trt_engines.rectified import rectify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from models import AttackModel
    from trt_engines.manifest import DecisionThresholds, Family, Precision

OPSET: Final = 18
INPUT_NAME: Final = "images"
# Of any output, 0..1, from torch in float32. Usual are 1e-6 and, in fp16, 1e-3; but a map of what
# high-pass filters leave of a smooth picture moves by 3e-2 when its pixels are rounded to float16.
MAX_DIFFERENCE: Final[Mapping[Precision, float]] = {"fp32": 1e-4, "fp16": 5e-2}
# A refinement may branch on signs many times in a row, which multiplies rounding: FGHV's evidence
# differs by up to 1e-5, and fitted log-odds can weigh that a hundred times.
MAX_REFINEMENT_DIFFERENCE: Final = 1e-3
ATTACK_OUTPUTS: Final = {
    "probability": "(N,) 0..1, calibrated: the face is an attack",
    "explanation": "(N, 1, H, W) 0..1: where in the crop the evidence lies",
}
FEATURE_OUTPUT: Final = {"feature": "(N, D) what the refinement takes of each face"}


def export_engine(
    model: AttackModel,
    *,
    method: str,
    options: Mapping[str, object],
    examples: Tensor,
    folder: Path,
    licence: str,
    thresholds: DecisionThresholds | None,
    max_batch: int = 16,
    with_weights: bool = True,
    precision: Precision = "fp32",
    family: Family | None = None,
) -> Manifest:
    """Write `<method>.onnx`, `<method>.safetensors` and `<method>.manifest.json`.

    A `RefinedModel` gets a second graph, `<method>.refinement.onnx`. The model itself is left as it
    is. Nothing is written unless all graphs pass.

    Args:
        model: the trained network, a `torch.nn.Module`.
        method: its name in `models`.
        options: what `build_model` needs to make the same network.
        examples: (N, 3, S, S) uint8 RGB face crops, N >= 2, on which ONNX and torch are compared.
        folder: made if missing.
        licence: of the weights, one line.
        thresholds: operating point; None if not chosen yet.
        max_batch: most faces in one run.
        with_weights: write the state dict too, which the torch back end and further training need;
            float32 in any case.
        precision: "fp16" computes in float16 but for the parts that `models._precision` marks.
        family: of the attacks it was trained to see; None: both, or unknown.

    Raises:
        EngineError: the graph can't be traced, needs an operator that TensorRT may lack, or differs
            from torch in float32 by more than `MAX_DIFFERENCE`; or the files can't be written.
        ValueError: unfit examples.
    """
    size = model.input_spec.size_px
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if precision not in MAX_DIFFERENCE:
        raise ValueError(
            f"torch exports {', '.join(MAX_DIFFERENCE)}, not {precision}, which "
            "`python -m trt_engines export` makes of an fp32 engine"
        )
    if len(examples) < 2 or examples.shape[1:] != (3, size, size) or examples.dtype != torch.uint8:
        raise ValueError(
            f"examples must be (N >= 2, 3, {size}, {size}) uint8, got {tuple(examples.shape)} "
            f"{examples.dtype}"
        )
    reference = AttackGraph(copy.deepcopy(model).cpu()).eval()
    graph = AttackGraph(copy.deepcopy(model).cpu(), precision).eval()
    outputs = dict(ATTACK_OUTPUTS)
    refinement, refinement_bytes = None, None
    if isinstance(reference.model, RefinedModel):
        outputs |= FEATURE_OUTPUT
        with torch.inference_mode():
            features = reference(examples)[-1].clone()
        refinement, refinement_bytes = _refinement(reference.model, features, method)
    onnx_bytes = to_onnx(graph, examples, outputs=list(outputs), dynamic={0: "N"})
    limit = MAX_DIFFERENCE[precision]
    difference = checked_difference(onnx_bytes, reference, [examples], name=method, limit=limit)
    if precision == "fp16":
        rounding = _rounding(graph, reference, examples, name=method)
        difference = max(difference, rounding)
    weights = packed_weights(model.state_dict(), method, options) if with_weights else None
    manifest = Manifest(
        name=method,
        method=method,
        options=dict(options),
        family=family,
        input=model.input_spec,
        outputs=outputs,
        onnx=f"{method}.onnx",
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        weights=f"{method}.safetensors" if weights else None,
        weights_sha256=hashlib.sha256(weights).hexdigest() if weights else None,
        opset=OPSET,
        precision=precision,
        max_batch=max_batch,
        onnx_torch_max_abs=difference,
        thresholds=thresholds,
        refinement=refinement,
        licence=licence,
        cost_ms=round(cost_ms(onnx_bytes, examples[:1]), 2),
    )
    write_engine(folder, manifest, onnx_bytes, weights, refinement_bytes)
    return manifest


def _refinement(model: RefinedModel, features: Tensor, method: str) -> tuple[Refinement, bytes]:
    """Trace and check the second graph, which computes in float32 whatever the first does."""
    graph = RefinementGraph(model).eval()
    onnx_bytes = to_onnx(
        graph, features, input_name="feature", outputs=["probability"], dynamic={0: "N"}
    )
    name = f"{method}.refinement"
    lower, upper = model.refinement_band
    refinement = Refinement(
        onnx=f"{name}.onnx",
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        lower=lower,
        upper=upper,
        onnx_torch_max_abs=checked_difference(
            onnx_bytes, graph, [features], name=name, limit=MAX_REFINEMENT_DIFFERENCE
        ),
        cost_ms=round(cost_ms(onnx_bytes, features[:1]), 2),
    )
    return refinement, onnx_bytes


def write_engine(
    folder: Path,
    manifest: Manifest,
    onnx_bytes: bytes,
    weights: bytes | None,
    refinement: bytes | None = None,
) -> Path:
    """Write an engine's files and, last, its manifest; return the manifest's path.

    Raises:
        EngineError: they can't be written.
    """
    files = {manifest.onnx: onnx_bytes}
    if manifest.weights is not None and weights is not None:
        files[manifest.weights] = weights
    if manifest.refinement is not None and refinement is not None:
        files[manifest.refinement.onnx] = refinement
    path = folder / f"{manifest.name}.manifest.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with whole_file(folder / name) as partial:
                partial.write_bytes(content)
        save_manifest(path, manifest)
    except OSError as error:
        raise EngineError(f"{folder}: can't write the engine: {error}") from error
    return path


def to_onnx(
    module: nn.Module,
    example: Tensor,
    *,
    outputs: Sequence[str],
    dynamic: Mapping[int, str],
    input_name: str = INPUT_NAME,
) -> bytes:
    """Trace a module into a self-contained ONNX file.

    The same module gives the same bytes: file names, line numbers and stack traces of the exporting
    machine, which torch writes into the graph, are taken out.

    Args:
        module: takes one tensor, returns a tuple.
        example: input; more than 1 along each dynamic axis, or torch would fix it at 1.
        outputs: names, one per element of the tuple.
        dynamic: axis of the input -> name of its size.
        input_name: in the graph.

    Raises:
        EngineError: torch can't trace or translate the module, or the graph would need an operator
            that TensorRT may lack.
    """
    axes = {axis: torch.export.Dim(name) for axis, name in dynamic.items()}
    try:
        with _warnings_only("onnx_ir", "onnxscript"):
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=outputs,
                dynamic_shapes=(axes,),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise EngineError(
            f"{type(module).__name__}: torch can't export it to ONNX: {error}"
        ) from error
    assert program is not None  # only the old exporter returns None
    model: onnx.ModelProto = program.model_proto
    check_operators(model, type(module).__name__)
    rectify(model)
    _strip(model)
    return bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _warnings_only(*names: str) -> Iterator[None]:
    """Keep loggers quiet that tell every constant they fold and every tensor they merge."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def checked_difference(
    onnx_bytes: bytes,
    reference: nn.Module,
    batches: Sequence[Tensor],
    *,
    name: str,
    limit: float = MAX_DIFFERENCE["fp32"],
) -> float:
    """Return the largest |ONNX - torch| over all outputs, images run together and one by one.

    Raises:
        EngineError: it exceeds `limit`, is not a number, shapes differ, or the graph does not run.
    """
    session = open_session(onnx_bytes, threads=1)
    input_name = session.get_inputs()[0].name
    largest = 0.0
    for images in batches:
        with torch.inference_mode():
            expected = [output.numpy() for output in reference(images)]
        for rows in (slice(None), *(slice(i, i + 1) for i in range(len(images)))):
            try:
                found = session.run(None, {input_name: images[rows].numpy()})
            except Exception as error:  # onnxruntime's exceptions have no common public base
                raise EngineError(
                    f"{name}: ONNX Runtime can't run the graph on {len(images[rows])} images: "
                    f"{error}; does the network squeeze its batch axis?"
                ) from error
            for got, want in zip(found, (array[rows] for array in expected), strict=True):
                if got.shape != want.shape:
                    raise EngineError(
                        f"{name}: ONNX gives an output of shape {got.shape} where torch gives "
                        f"{want.shape}; does the network squeeze its batch axis?"
                    )
                largest = max(largest, float(np.abs(got - want).max(initial=0)), key=_nan_last)
    if not largest <= limit:
        raise EngineError(
            f"{name}: ONNX and torch differ by {largest:.2g}, expected at most "
            f"{limit:.0e}, for images run together and one by one; is the network in eval "
            "mode, and each image scored independently of the others?"
        )
    return largest


def _rounding(graph: AttackGraph, reference: AttackGraph, images: Tensor, *, name: str) -> float:
    """Return how far float16 takes the outputs from those in float32, at most.

    ONNX Runtime on the CPU, which `checked_difference` asks, computes float16 graphs in float32.

    Raises:
        EngineError: it exceeds `MAX_DIFFERENCE["fp16"]` or is not a number.
    """
    with torch.no_grad():
        with TensorCores():  # type: ignore[no-untyped-call]  # torch does not type it
            found = graph(images)
        largest = max(
            (float((f - w).abs().max()) for f, w in zip(found, reference(images), strict=True)),
            key=_nan_last,
        )
    if not largest <= MAX_DIFFERENCE["fp16"]:
        raise EngineError(
            f"{name}: float16 moves an output by {largest:.2g}, expected at most "
            f"{MAX_DIFFERENCE['fp16']:.0e}; which part overflows or sums up much? Mark it as "
            "models/_precision.py says, or export fp32"
        )
    return largest


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value


def cost_ms(onnx_bytes: bytes, images: Tensor) -> float:
    """Return the CPU time of a batch, ms, so that other work on the machine does not count."""
    session = open_session(onnx_bytes, threads=1)
    feed = {session.get_inputs()[0].name: images.numpy()}
    times = []
    for _ in range(25):
        started = time.thread_time()  # one intra-op thread is the caller's own
        session.run(None, feed)
        times.append(time.thread_time() - started)
    return median(times[5:]) * 1e3  # the first runs allocate


def _strip(model: onnx.ModelProto) -> None:
    """Take out everything that names the exporting machine's files."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    parts: list[Any] = [model, graph, *graph.node, *values]
    for function in model.functions:
        parts += [function, *function.node, *function.value_info]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
