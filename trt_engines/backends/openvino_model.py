"""OpenVINO on the CPU: the same graphs as ONNX Runtime, by Intel's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trt_engines.backends.refined import with_refinement
from trt_engines.errors import EngineError
from trt_engines.manifest import check_outputs, load_manifest, verified_file

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import Tensor

    from trt_engines.backends import Backend, OpenVinoConfig


def open_openvino(manifest_path: Path, config: OpenVinoConfig) -> Backend:
    """Verify and load the graph that a manifest names, with its refinement if it has one.

    Raises:
        EngineError: OpenVINO is not installed, or a graph is missing or refused.
        EngineMismatchError: a file is not the manifest's, or has other outputs.
    """
    manifest = load_manifest(manifest_path)
    path = verified_file(manifest_path, manifest.onnx, manifest.onnx_sha256)
    first = OpenVinoBackend(path, manifest.outputs, manifest.max_batch, config)
    return with_refinement(
        manifest_path,
        manifest,
        first,
        lambda second: OpenVinoBackend(second, ["probability"], manifest.max_batch, config),
    )


class OpenVinoBackend:
    """Runs one ONNX graph."""

    def __init__(
        self, path: Path, outputs: Collection[str], max_batch: int, config: OpenVinoConfig
    ) -> None:
        """Load a verified graph.

        Raises:
            EngineError: OpenVINO is not installed, or refuses the graph.
            EngineMismatchError: it has other outputs than its manifest says.
        """
        try:
            import openvino
        except ImportError as error:
            raise EngineError(
                f"OpenVINO can't be imported ({error}); install the extra `openvino`, or take "
                "`backend: onnxruntime`"
            ) from error
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": config.threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the CPU has it
        }
        try:
            model = openvino.Core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            raise EngineError(
                f"{path}: OpenVINO can't load it: {error}; take `backend: onnxruntime`"
            ) from error
        self.max_batch = max_batch
        self._outputs = [output.any_name for output in model.outputs]
        check_outputs(str(path), self._outputs, outputs)
        self._request = model.create_infer_request()

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """See `Backend.infer`."""
        if not 0 < len(images) <= self.max_batch:
            raise ValueError(f"1 to {self.max_batch} images fit one run, got {len(images)}")
        found = self._request.infer([images.cpu().contiguous().numpy()])
        return {
            name: torch.from_numpy(found[index].copy()).to(images.device)
            for index, name in enumerate(self._outputs)
        }

    def close(self) -> None:
        """See `Backend.close`; the model's memory goes with the object."""
