"""Back ends: one file per runtime, chosen once, imported late."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_GPU: Final = r"^cuda(:\d+)?$"


class OnnxRuntimeConfig(BaseModel, frozen=True, extra="forbid"):
    """Run the networks with ONNX Runtime on the CPU."""

    kind: Literal["onnxruntime"] = "onnxruntime"
    threads: int = Field(1, ge=1, description="Threads within one network run.")


class OpenVinoConfig(BaseModel, frozen=True, extra="forbid"):
    """Run the networks with OpenVINO on the CPU; needs the extra `openvino`."""

    kind: Literal["openvino"] = "openvino"
    threads: int = Field(1, ge=1, description="Threads within one network run.")


class TorchConfig(BaseModel, frozen=True, extra="forbid"):
    """Run the networks with torch, from their weights: slow on a CPU, good on any NVIDIA GPU."""

    kind: Literal["torch"] = "torch"
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda (the first GPU) or cuda:1."
    )
    threads: int = Field(
        1, ge=1, description="Threads within one network run on the CPU (process-wide)."
    )


class TensorRTConfig(BaseModel, frozen=True, extra="forbid"):
    """Run plans that `python -m trt_engines build` made on this machine, on an NVIDIA GPU."""

    kind: Literal["tensorrt"] = "tensorrt"
    device: str = Field("cuda", pattern=_GPU, description="cuda (the first GPU) or cuda:1.")
    key_file: Path | None = Field(
        None,
        description="File with the key that signed the plans; default: the environment's "
        "FACEWARDEN_ENGINE_KEY_FILE or FACEWARDEN_ENGINE_KEY.",
    )
    cuda_graphs: int = Field(
        0,
        ge=0,
        description="Shapes of batches, per network, whose work is recorded as a CUDA graph and "
        "replayed; the one unused for longest gives way. Each costs memory of the GPU.",
    )


class AutoConfig(BaseModel, frozen=True, extra="forbid"):
    """Run each network with the first of tensorrt, torch on a GPU and onnxruntime that can."""

    kind: Literal["auto"] = "auto"
    device: str = Field("cuda", pattern=_GPU, description="The GPU to try: cuda or cuda:1.")
    threads: int = Field(1, ge=1, description="Threads within one network run on the CPU.")


RuntimeConfig: TypeAlias = OnnxRuntimeConfig | OpenVinoConfig | TorchConfig | TensorRTConfig


def _by_kind(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


# In YAML either the options, or the kind alone: `backend: auto`.
_Options: TypeAlias = Annotated[RuntimeConfig | AutoConfig, Field(discriminator="kind")]
_Kind: TypeAlias = Literal["onnxruntime", "openvino", "torch", "tensorrt", "auto"]
BackendConfig = Annotated[
    _Options, BeforeValidator(_by_kind, json_schema_input_type=_Options | _Kind)
]


class Backend(Protocol):
    """One network, ready to run. Not thread-safe: the analysis thread owns it."""

    max_batch: int

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """Run the network.

        Args:
            images: (N, 3, H, W), N in 1..`max_batch`, on any device; dtype and size as the
            manifest's `InputSpec` says.

        Returns:
            The graph's outputs by name, first axis N, on the device of the images; the tensors
            belong to the caller. On a GPU they are ready for the stream that was current.

        Raises:
            EngineError: the runtime fails.
            ValueError: no images, or more than `max_batch` and the runtime does not split them.
        """
        ...

    def close(self) -> None:
        """Release the runtime; a second call does nothing."""
        ...


def open_backend(manifest_path: Path, config: RuntimeConfig | AutoConfig) -> Backend:
    """Load the engine that a manifest describes into a runtime.

    Raises:
        EngineError: manifest or engine missing or unusable.
        EngineMismatchError: the engine is not what its manifest describes.
    """
    match config:
        case AutoConfig(device=device, threads=threads):
            from trt_engines.backends.auto import open_first

            on_gpu = (TensorRTConfig(device=device), TorchConfig(device=device))
            return open_first(
                manifest_path, on_gpu, OnnxRuntimeConfig(threads=threads), open_backend
            )
        case TensorRTConfig():
            from trt_engines.backends.tensorrt_plan import (
                open_tensorrt,
                signed_plans,
                this_machine,
            )

            machine = this_machine(config.device)
            plans = signed_plans(config.key_file, machine)
            return open_tensorrt(manifest_path, config, plans, machine)
        case OnnxRuntimeConfig():
            from trt_engines.backends.onnx_session import open_onnxruntime

            return open_onnxruntime(manifest_path, config)
        case OpenVinoConfig():
            from trt_engines.backends.openvino_model import open_openvino

            return open_openvino(manifest_path, config)
        case TorchConfig():
            from trt_engines.backends.torch_module import open_torch

            return open_torch(manifest_path, config)
