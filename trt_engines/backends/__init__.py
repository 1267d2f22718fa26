"""Back ends: one file per runtime, chosen once, imported late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


class OnnxRuntimeConfig(BaseModel, frozen=True, extra="forbid"):
    """Run the networks with ONNX Runtime on the CPU."""

    kind: Literal["onnxruntime"] = "onnxruntime"
    threads: int = Field(1, ge=1, description="Threads within one network run.")


class TorchConfig(BaseModel, frozen=True, extra="forbid"):
    """Run the networks with torch, from their weights: slow, for comparison."""

    kind: Literal["torch"] = "torch"
    threads: int = Field(1, ge=1, description="Threads within one network run (process-wide).")


BackendConfig = Annotated[OnnxRuntimeConfig | TorchConfig, Field(discriminator="kind")]


class Backend(Protocol):
    """One network, ready to run. Not thread-safe: the analysis thread owns it."""

    max_batch: int

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """Run the network.

        Args:
            images: (N, 3, H, W), N in 1..`max_batch`; dtype and size as the manifest's `InputSpec`
            says.

        Returns:
            The graph's outputs by name, first axis N; the tensors belong to the caller.

        Raises:
            ValueError: more images than `max_batch`.
        """
        ...

    def close(self) -> None:
        """Release the runtime; a second call does nothing."""
        ...


def open_backend(manifest_path: Path, config: OnnxRuntimeConfig | TorchConfig) -> Backend:
    """Load the engine that a manifest describes into a runtime.

    Raises:
        EngineError: manifest or engine missing or unusable.
        EngineMismatchError: the engine is not what its manifest describes.
    """
    match config:
        case OnnxRuntimeConfig():
            from trt_engines.backends.onnx_session import open_onnxruntime

            return open_onnxruntime(manifest_path, config)
        case TorchConfig():
            from trt_engines.backends.torch_module import open_torch

            return open_torch(manifest_path, config)
