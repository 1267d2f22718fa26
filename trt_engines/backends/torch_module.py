"""Torch, from a network's weights: for a GPU without TensorRT, and on a CPU for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models import build_model
from trt_engines.backends.gpu import Portions, gpu
from trt_engines.backends.refined import RefinedBackend
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.graphs import AttackGraph, RefinementGraph
from trt_engines.manifest import load_manifest, verified_file
from trt_engines.mtcnn import load_network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from models import RefinedModel
    from trt_engines.backends import Backend, TorchConfig
    from trt_engines.manifest import Manifest


def open_torch(manifest_path: Path, config: TorchConfig) -> Backend:
    """Build the network that a manifest names and load its weights.

    Raises:
        EngineError: no such GPU, no weights, or this code can't build the network.
        EngineMismatchError: the weights are not the manifest's, or not this network's.
    """
    manifest = load_manifest(manifest_path)
    if config.device == "cpu":
        torch.set_num_threads(config.threads)
        device = torch.device("cpu")
    else:
        device = gpu(config.device)
    graph = build_network(manifest_path, manifest).eval()
    first = TorchBackend(graph, manifest.name, list(manifest.outputs), manifest.max_batch, device)
    if manifest.refinement is None:
        return first
    refinement = RefinementGraph(cast("RefinedModel", graph.model)).eval()
    name = f"{manifest.name}'s refinement"
    second = TorchBackend(refinement, name, ["probability"], manifest.max_batch, device)
    return RefinedBackend(first, second, manifest.refinement)


class TorchBackend:
    """Runs one network as a torch module; on a GPU in the stream that is current."""

    def __init__(
        self,
        graph: nn.Module,
        name: str,
        outputs: Sequence[str],
        max_batch: int,
        device: torch.device,
    ) -> None:
        """Take a network in eval mode, and bring it to its device.

        Raises:
            EngineError: it does not fit the GPU, or the GPU fails.
        """
        self.max_batch = max_batch
        self._outputs = outputs
        self._device = device
        self._portions = Portions(name, max_batch)
        try:
            self._graph = graph.to(device)
        except RuntimeError as error:
            raise EngineError(
                f"{name}: can't be brought to {device}: {error}; look at `nvidia-smi`"
            ) from error

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """See `Backend.infer`."""
        if len(images) > self.max_batch:
            raise ValueError(f"at most {self.max_batch} images fit one run, got {len(images)}")
        if self._device.type == "cpu":
            return self._infer(images)
        return self._portions.run(images, self._infer, torch.cuda.empty_cache)

    def _infer(self, images: Tensor) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            outputs: tuple[Tensor, ...] = self._graph(images.to(self._device))
            here = [values.to(images.device) for values in outputs]
        return dict(zip(self._outputs, here, strict=True))

    def close(self) -> None:
        """See `Backend.close`; the weights' memory goes with the object."""


def build_network(manifest_path: Path, manifest: Manifest) -> nn.Module:
    """Build the network that a manifest names, and load its weights in the manifest's precision.

    Raises:
        EngineError: no weights, or this code can't build the network.
        EngineMismatchError: the weights are not the manifest's, or not this network's.
    """
    if manifest.method is None:
        return load_network(manifest.name)
    if manifest.weights is None or manifest.weights_sha256 is None:
        raise EngineError(
            f"{manifest_path}: names no weights, which the torch back end needs; use the "
            "onnxruntime back end, or export the engine with its weights"
        )
    weights = verified_file(manifest_path, manifest.weights, manifest.weights_sha256)
    try:
        model = build_model(manifest.method, manifest.options)
    except ValueError as error:
        raise EngineError(
            f"{manifest_path}: this version can't build {manifest.method!r}: {error}; use the "
            "version that exported it, or export again"
        ) from error
    graph = AttackGraph(model, manifest.precision)
    try:
        state = load_file(weights)
        graph.load_state_dict({f"model.{name}": tensor for name, tensor in state.items()})
    except (SafetensorError, RuntimeError) as error:
        raise EngineMismatchError(
            f"{weights}: not the weights of {manifest.method!r} with the manifest's options: "
            f"{error}; export again"
        ) from error
    return graph
