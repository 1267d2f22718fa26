"""`python -m trt_engines check`: does each network export, equal torch, and suit TensorRT?

Weights are random (`trt_engines.variants.seeded_model`): this is about graphs, not about scores.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from trt_engines.builder import axes_for, build_plan, open_flavour
from trt_engines.export import export_engine
from trt_engines.manifest import load_manifest, shipped_engines, verified_file
from trt_engines.operators import check_operators
from trt_engines.variants import VARIANTS, clouds, seeded_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from trt_engines.manifest import Manifest, Precision, Refinement
    from trt_engines.variants import Variant


@dataclass(frozen=True, slots=True)
class GraphCheck:
    """A graph that passed.

    Attributes:
        name: variant, or shipped engine.
        precision: of the graph.
        nodes: how many.
        operators: how many of each kind.
        onnx_mb: size of the graph with its weights, 1e6 bytes.
        difference: largest |ONNX - torch in float32| over all outputs.
        build_s: wall time of parsing and building for all targets, seconds.
        plan_mb: size of the plan, 1e6 bytes.
    """

    name: str
    precision: Precision
    nodes: int
    operators: Mapping[str, int]
    onnx_mb: float
    difference: float
    build_s: float
    plan_mb: float


def checks(
    only: Iterable[str], precisions: Iterable[Precision]
) -> Iterator[tuple[str, Callable[[], list[GraphCheck]]]]:
    """Yield name and check of every variant and precision, and of every shipped engine.

    Args:
        only: names to keep; none: all.
        precisions: of the variants; shipped engines have theirs.
    """
    wanted = set(only)
    for variant in VARIANTS:
        for precision in precisions:
            if not wanted or variant.name in wanted:
                yield f"{variant.name} {precision}", partial(_exported, variant, precision)
    for engine in shipped_engines():
        name = f"shipped-{engine.label}"
        if not wanted or name in wanted:
            yield name, partial(_graphs, engine.path, name)


def _exported(variant: Variant, precision: Precision) -> list[GraphCheck]:
    model = seeded_model(variant.method, variant.options)
    with tempfile.TemporaryDirectory() as folder:
        export_engine(
            model,
            method=variant.method,
            options=variant.options,
            examples=clouds(model.input_spec)[:3],
            folder=Path(folder),
            licence="random weights",
            thresholds=None,
            with_weights=False,
            precision=precision,
        )
        return _graphs(Path(folder) / f"{variant.method}.manifest.json", variant.name)


def _graphs(path: Path, name: str) -> list[GraphCheck]:
    """Check an engine's graphs.

    Raises:
        EngineError: one does not pass.
    """
    manifest = load_manifest(path)
    files: list[tuple[str, Precision, Manifest | Refinement]]
    files = [(name, manifest.precision, manifest)]
    if manifest.refinement is not None:
        files.append((f"{name}-refinement", "fp32", manifest.refinement))
    flavour = open_flavour("tensorrt_rtx")
    axes = axes_for(manifest.max_batch)
    found = []
    for label, precision, part in files:
        onnx_bytes = verified_file(path, part.onnx, part.onnx_sha256).read_bytes()
        model = onnx.load_from_string(onnx_bytes)
        check_operators(model, label)
        started = time.monotonic()
        plan = build_plan(flavour, onnx_bytes, name=label, axes=axes).plan
        found.append(
            GraphCheck(
                name=label,
                precision=precision,
                nodes=len(model.graph.node),
                operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
                onnx_mb=round(len(onnx_bytes) / 1e6, 2),
                difference=part.onnx_torch_max_abs,
                build_s=round(time.monotonic() - started, 2),
                plan_mb=round(len(plan) / 1e6, 2),
            )
        )
    return found
