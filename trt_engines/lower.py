"""An engine in a lower precision: made from one in float32, judged on faces, then written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import onnx
import torch

from trt_engines.backends import OnnxRuntimeConfig
from trt_engines.backends.onnx_session import OnnxRuntimeBackend
from trt_engines.backends.refined import RefinedBackend
from trt_engines.backends.torch_module import build_network
from trt_engines.drift import check_drift, judged
from trt_engines.errors import EngineError
from trt_engines.export import cost_ms, to_onnx, write_engine
from trt_engines.faces import shown
from trt_engines.manifest import Manifest, Origin, load_manifest, only_as_written, verified_file
from trt_engines.precision import (
    calibrated,
    float8_graph,
    half_graph,
    int8_graph,
    with_constants_computed,
)
from trt_engines.rectified import rectify

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from trt_engines.backends import Backend
    from trt_engines.faces import FaceSet
    from trt_engines.manifest import Precision, Runtime
    from trt_engines.precision import Activations, Ranges

# Raise it when a pass makes other graphs of the same input: what was made before is made anew.
_RECIPE: Final = 3
_CALIBRATED_ON: Final = 32  # faces
_MADE_BY: Final = ("onnx", "onnxruntime", "torch")


@dataclass(frozen=True, slots=True)
class Lowered:
    """An engine in another precision, not yet accepted.

    Attributes:
        manifest: with its drift; None has the float32 engine itself.
        onnx_bytes: the graph.
        refinement: the second graph of an engine that has one; always float32.
        seconds: that making and comparing took.
    """

    manifest: Manifest
    onnx_bytes: bytes
    refinement: bytes | None
    seconds: float


def lowered(path: Path, precision: Precision, runtime: Runtime, faces: FaceSet | None) -> Lowered:
    """Make an engine in another precision, and compare it with float32.

    Args:
        path: manifest of an engine in float32.
        precision: that it shall have; "fp32" gives it as it is, for ONNX Runtime with rectifiers.
        runtime: what shall run it; int8 differs.
        faces: the first half gives ranges, the second is compared on; None for "fp32" alone.

    Raises:
        EngineError: the engine is unusable, not in float32, or can't be made; or no faces.
    """
    started = time.monotonic()
    manifest = load_manifest(path)
    source = verified_file(path, manifest.onnx, manifest.onnx_sha256).read_bytes()
    refinement = None
    if manifest.refinement is not None:
        second = manifest.refinement
        refinement = verified_file(path, second.onnx, second.onnx_sha256).read_bytes()
    if manifest.precision != "fp32":
        raise EngineError(f"{path}: in {manifest.precision}; name the engine in fp32 instead")
    if precision == "fp32":
        same, onnx_bytes = _in_float32(manifest, source, runtime)
        return Lowered(same, onnx_bytes, refinement, time.monotonic() - started)
    if faces is None:
        raise EngineError(
            f"{manifest.name}: {precision} is calibrated and judged on faces: name a face file "
            "with --faces (`python -m benchmarks.engine_faces` makes one)"
        )
    seen = shown(manifest, faces.half(0).some(_CALIBRATED_ON))
    if precision == "fp16":
        onnx_bytes = _half(path, manifest, source, seen[0][:2])
    else:
        source = with_constants_computed(source)
        ranges = _ranges(source, manifest.model_dump_json(), faces)
        for_runtime: Activations = "uint8" if runtime == "onnxruntime" else "int8"
        onnx_bytes = (
            float8_graph(source, ranges)
            if precision == "fp8"
            else int8_graph(source, ranges, for_runtime)
        )
    sha256 = hashlib.sha256(onnx_bytes).hexdigest()
    as_written = only_as_written(precision, runtime)
    candidate = _open(onnx_bytes, refinement, manifest, as_written=as_written)
    drift = judged(path, candidate, shown(manifest, faces.half(1)))
    candidate.close()
    made = _named(manifest, sha256).model_copy(
        update={
            "opset": onnx.load_from_string(onnx_bytes).opset_import[0].version,
            "precision": precision,
            "onnx_torch_max_abs": max(manifest.onnx_torch_max_abs, drift.largest),
            "cost_ms": None if as_written else round(cost_ms(onnx_bytes, seen[0][:1]), 2),
            "made_from": _origin(manifest, precision, runtime, faces),
            "drift": drift,
        }
    )
    return Lowered(made, onnx_bytes, refinement, time.monotonic() - started)


def write_lowered(made: Lowered, folder: Path) -> Path:
    """Write an engine if it is close enough to float32; return its manifest's path.

    Graphs have names of their own content, and the manifest is replaced last, in one step: until
    then the engine before is whole.

    Raises:
        DriftError: it is not; the engine before stays.
        EngineError: it can't be written.
    """
    manifest = made.manifest
    if manifest.drift is not None:
        check_drift(manifest.drift, manifest.precision, manifest.name)
    path = write_engine(folder, manifest, made.onnx_bytes, None, made.refinement)
    named = {manifest.onnx, manifest.refinement.onnx if manifest.refinement is not None else None}
    for old in folder.glob(f"{manifest.name}.*.onnx"):
        if old.name not in named:
            old.unlink(missing_ok=True)
    return path


def up_to_date(
    path: Path, precision: Precision, runtime: Runtime, faces: FaceSet | None, folder: Path
) -> Path | None:
    """Return the manifest that `write_lowered` wrote, if nothing has changed since.

    Args:
        path: manifest of the engine in float32.
        precision: wanted.
        runtime: wanted.
        faces: wanted.
        folder: where it would be.
    """
    source = load_manifest(path)
    try:
        written = folder / path.name
        found = load_manifest(written)
        verified_file(written, found.onnx, found.onnx_sha256)
        if found.refinement is not None:
            verified_file(written, found.refinement.onnx, found.refinement.onnx_sha256)
    except EngineError:
        return None
    if precision == "fp32":
        faces = None
    same = found.made_from == _origin(source, precision, runtime, faces) or (
        precision == "fp32" and found.onnx_sha256 == source.onnx_sha256
    )
    # Thresholds and the like belong to the engine in float32, and may change alone.
    kept = ("thresholds", "input", "outputs", "max_batch", "refinement", "family", "licence")
    return written if same and all(getattr(found, k) == getattr(source, k) for k in kept) else None


def _in_float32(manifest: Manifest, source: bytes, runtime: Runtime) -> tuple[Manifest, bytes]:
    """Return the engine as it is or, exported before exports did so, with rectifiers."""
    graph = onnx.load_from_string(source)
    if runtime != "onnxruntime" or all(node.op_type != "PRelu" for node in graph.graph.node):
        return _named(manifest, manifest.onnx_sha256), source
    rectify(graph)
    onnx_bytes = bytes(graph.SerializeToString(deterministic=True))
    spec = manifest.input
    face = torch.zeros((1, 3, spec.size_px, spec.size_px), dtype=getattr(torch, spec.dtype))
    made = _named(manifest, hashlib.sha256(onnx_bytes).hexdigest()).model_copy(
        update={
            "cost_ms": round(cost_ms(onnx_bytes, face), 2),
            "made_from": _origin(manifest, "fp32", runtime, None),
        }
    )
    return made, onnx_bytes


def _half(path: Path, manifest: Manifest, source: bytes, examples: Tensor) -> bytes:
    if manifest.weights is None:
        half = half_graph(onnx.load_from_string(source), manifest.name)
        return bytes(half.SerializeToString(deterministic=True))
    # The method knows which of its parts need float32.
    network = build_network(path, manifest.model_copy(update={"precision": "fp16"}))
    return to_onnx(network.eval(), examples, outputs=list(manifest.outputs), dynamic={0: "N"})


@lru_cache(maxsize=1)  # int8 and fp8 of one engine follow each other
def _ranges(source: bytes, manifest_json: str, faces: FaceSet) -> Ranges:
    manifest = Manifest.model_validate_json(manifest_json)
    seen = shown(manifest, faces.half(0).some(_CALIBRATED_ON))
    return calibrated(source, [batch.numpy() for batch in seen])


def _named(manifest: Manifest, onnx_sha256: str) -> Manifest:
    """Return the manifest of a graph named by its content, without the weights of float32."""
    return manifest.model_copy(
        update={
            "onnx": f"{manifest.name}.{onnx_sha256[:12]}.onnx",
            "onnx_sha256": onnx_sha256,
            "weights": None,
            "weights_sha256": None,
        }
    )


def _origin(
    manifest: Manifest, precision: Precision, runtime: Runtime, faces: FaceSet | None
) -> Origin:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _MADE_BY)
    return Origin(
        onnx_sha256=manifest.onnx_sha256,
        faces_sha256=None if faces is None else faces.sha256,
        runtime=runtime,
        recipe=f"{precision}, recipe {_RECIPE}; {versions}",
    )


def _open(
    onnx_bytes: bytes, refinement: bytes | None, manifest: Manifest, *, as_written: bool
) -> Backend:
    config = OnnxRuntimeConfig()
    first = OnnxRuntimeBackend(
        onnx_bytes, manifest.outputs, manifest.max_batch, config, as_written=as_written
    )
    if manifest.refinement is None or refinement is None:
        return first
    second = OnnxRuntimeBackend(refinement, ["probability"], manifest.max_batch, config)
    return RefinedBackend(first, second, manifest.refinement)
