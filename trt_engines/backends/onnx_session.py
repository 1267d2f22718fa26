"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime as ort
import torch

from trt_engines.backends.refined import with_refinement
from trt_engines.errors import EngineError
from trt_engines.manifest import check_outputs, load_manifest, only_as_written, verified_file

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import Tensor

    from trt_engines.backends import Backend, OnnxRuntimeConfig


def open_onnxruntime(manifest_path: Path, config: OnnxRuntimeConfig) -> Backend:
    """Verify and load the graph that a manifest names, with its refinement if it has one.

    Raises:
        EngineError: a graph is missing or ONNX Runtime refuses it.
        EngineMismatchError: a file is not the manifest's, or has other outputs.
    """
    manifest = load_manifest(manifest_path)
    path = verified_file(manifest_path, manifest.onnx, manifest.onnx_sha256)
    made_from = manifest.made_from
    as_written = made_from is not None and only_as_written(manifest.precision, made_from.runtime)
    first = OnnxRuntimeBackend(
        path, manifest.outputs, manifest.max_batch, config, as_written=as_written
    )
    return with_refinement(
        manifest_path,
        manifest,
        first,
        lambda second: OnnxRuntimeBackend(second, ["probability"], manifest.max_batch, config),
    )


class OnnxRuntimeBackend:
    """Runs one ONNX graph."""

    def __init__(
        self,
        model: Path | bytes,
        outputs: Collection[str],
        max_batch: int,
        config: OnnxRuntimeConfig,
        *,
        as_written: bool = False,
    ) -> None:
        """Load a verified graph.

        Raises:
            EngineError: ONNX Runtime refuses it.
            EngineMismatchError: it has other outputs than its manifest says.
        """
        name = "a graph in memory" if isinstance(model, bytes) else model
        try:
            self._session = open_session(model, config.threads, as_written=as_written)
        except Exception as error:  # onnxruntime's exceptions have no common public base
            raise EngineError(
                f"{name}: ONNX Runtime can't load it: {error}; export it again"
            ) from error
        self.max_batch = max_batch
        self._outputs = [output.name for output in self._session.get_outputs()]
        check_outputs(str(name), self._outputs, outputs)
        (self._input,) = (node.name for node in self._session.get_inputs())

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """See `Backend.infer`."""
        if len(images) > self.max_batch:
            raise ValueError(f"at most {self.max_batch} images fit one run, got {len(images)}")
        pixels = images.cpu().contiguous().numpy()
        arrays = self._session.run(self._outputs, {self._input: pixels})
        return {
            name: torch.from_numpy(values).to(images.device)
            for name, values in zip(self._outputs, arrays, strict=True)
        }

    def close(self) -> None:
        """See `Backend.close`; the session's memory goes with the object."""


def open_session(
    model: Path | bytes, threads: int, *, as_written: bool = False
) -> ort.InferenceSession:
    """Load an ONNX graph, from a file or from its bytes, to run on the CPU.

    Args:
        model: the graph.
        threads: within one run.
        as_written: fuse nothing, but compute in float32 between the roundings; see
            `only_as_written`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads must not spin: decoding shares the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
