"""Torch, from a network's weights: slow, for comparison and for methods that ONNX can't hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models import build_model
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
        EngineError: no weights, or this code can't build the network.
        EngineMismatchError: the weights are not the manifest's, or not this network's.
    """
    manifest = load_manifest(manifest_path)
    torch.set_num_threads(config.threads)
    graph = build_network(manifest_path, manifest).eval()
    first = TorchBackend(graph, list(manifest.outputs), manifest.max_batch)
    if manifest.refinement is None:
        return first
    second = RefinementGraph(cast("RefinedModel", graph.model)).eval()
    return RefinedBackend(
        first, TorchBackend(second, ["probability"], manifest.max_batch), manifest.refinement
    )


class TorchBackend:
    """Runs one network as a torch module."""

    def __init__(self, graph: nn.Module, outputs: Sequence[str], max_batch: int) -> None:
        """Take a network in eval mode and the names of its outputs."""
        self.max_batch = max_batch
        self._outputs = outputs
        self._graph = graph

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """See `Backend.infer`."""
        if len(images) > self.max_batch:
            raise ValueError(f"at most {self.max_batch} images fit one run, got {len(images)}")
        with torch.inference_mode():
            outputs: tuple[Tensor, ...] = self._graph(images)
        return dict(zip(self._outputs, outputs, strict=True))

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
