"""Export the face detector's networks to ONNX, written so that ONNX Runtime is fast.

The graphs hold the normalisation and take RGB 0..255. They compute what facenet-pytorch's networks
compute, the softmax over two classes as a sigmoid.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from models import InputSpec
from trt_engines.export import OPSET, checked_difference, to_onnx, write_engine
from trt_engines.manifest import Manifest
from trt_engines.mtcnn import PARTS, CascadeNetwork, load_network

if TYPE_CHECKING:
    from pathlib import Path

LICENCE: Final = "MIT (timesler/facenet-pytorch)"


def export_mtcnn(folder: Path) -> list[Path]:
    """Write the three networks with their manifests; return the manifests' paths.

    Raises:
        EngineError: a graph differs from facenet-pytorch's network.
    """
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name, part in PARTS.items():
        examples = [
            torch.rand((3, 3, height, width), generator=generator) * 255
            for height, width in part.example_sizes
        ]
        onnx_bytes = to_onnx(
            _rewritten(load_network(name)),
            examples[0],
            outputs=list(part.outputs),
            dynamic=part.dynamic,
        )
        manifest = Manifest(
            name=name,
            input=InputSpec(size_px=part.size_px, margin=1.0, dtype="float32"),
            outputs=part.outputs,
            onnx=f"{name}.onnx",
            onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
            opset=OPSET,
            max_batch=part.max_batch,
            onnx_torch_max_abs=checked_difference(
                onnx_bytes, load_network(name), examples, name=name
            ),
            licence=LICENCE,
        )
        paths.append(write_engine(folder, manifest, onnx_bytes, weights=None))
    return paths


def _rewritten(cascade: CascadeNetwork) -> CascadeNetwork:
    """Replace, in place, the layers that ONNX Runtime runs slowly."""
    for name, layer in list(cascade.network.named_children()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            previous: Any = layer
        elif isinstance(layer, nn.Softmax):
            # softmax(a, b)[1] = sigmoid(b - a), and the difference of two linear layers is one.
            for values in ("weight", "bias"):
                two = getattr(previous, values).detach()
                setattr(previous, values, nn.Parameter(two[1:] - two[:1]))
            setattr(cascade.network, name, nn.Sigmoid())
    return cascade.requires_grad_(False)
