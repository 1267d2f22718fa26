"""MTCNN's three networks, from facenet-pytorch's weights to ONNX.

Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks, 2016, arXiv:1604.02878. The weights are inside the wheel of facenet-pytorch 2.6.0 (MIT);
only the export and the torch back end need that package.

The graphs hold the normalisation and take RGB 0..255. They compute what facenet-pytorch's networks
compute, written so that ONNX Runtime is about twice as fast on the CPU, where its PRelu took half
of the time: PReLU from two rectifiers, the softmax over two classes as a sigmoid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from models import InputSpec
from trt_engines.errors import EngineError
from trt_engines.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LICENCE: Final = "MIT (timesler/facenet-pytorch)"


@dataclass(frozen=True, slots=True)
class _Part:
    """One network of the cascade: what its manifest says."""

    size_px: int
    max_batch: (
        int  # larger ones leave the cache: R-Net at 128 is 1.4 times slower a face than at 32
    )
    outputs: dict[str, str]
    dynamic: dict[int, str]
    example_sizes: tuple[tuple[int, int], ...]  # height and width, pixels


_OFFSETS = "dx1 dy1 dx2 dy2, in box sizes, to add to the box's edges"
PARTS: Final = {
    "pnet": _Part(
        size_px=12,
        max_batch=16,
        outputs={
            "offsets": f"(N, 4, h, w) {_OFFSETS}; cell (i, j) sees the 12x12 pixels at (2i, 2j)",
            "probability": "(N, h, w) 0..1: a face",
        },
        dynamic={0: "N", 2: "H", 3: "W"},
        example_sizes=((40, 53), (12, 12), (33, 16)),
    ),
    "rnet": _Part(
        size_px=24,
        max_batch=32,
        outputs={"offsets": f"(N, 4) {_OFFSETS}", "probability": "(N,) 0..1: a face"},
        dynamic={0: "N"},
        example_sizes=((24, 24),),
    ),
    "onet": _Part(
        size_px=48,
        max_batch=16,
        outputs={
            "offsets": f"(N, 4) {_OFFSETS}",
            "probability": "(N,) 0..1: a face",
            "landmarks": "(N, 10) x of 5 points, then y, in box sizes from its top left corner",
        },
        dynamic={0: "N"},
        example_sizes=((48, 48),),
    ),
}


class CascadeNetwork(nn.Module):
    """One of facenet-pytorch's networks behind the interface of our graphs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that `PARTS` lists, for (N, 3, H, W) float32 RGB 0..255."""
        offsets, *landmarks, probability = self.network((images - 127.5) * 0.0078125)
        return offsets, probability[:, -1], *landmarks  # the last class is the face


def load_network(name: str) -> CascadeNetwork:
    """Return "pnet", "rnet" or "onet" with facenet-pytorch's weights, in evaluation mode.

    Raises:
        EngineError: another name, or facenet-pytorch is not installed.
    """
    if name not in PARTS:
        raise EngineError(f"{name!r} is none of MTCNN's networks: {', '.join(PARTS)}")
    try:
        from facenet_pytorch.models import mtcnn
    except ModuleNotFoundError as error:
        raise EngineError(
            f"MTCNN's weights come with facenet-pytorch, which can't be imported ({error}); "
            "install it with `pip install --no-deps facenet-pytorch==2.6.0`"
        ) from error
    classes = {"pnet": mtcnn.PNet, "rnet": mtcnn.RNet, "onet": mtcnn.ONet}
    return CascadeNetwork(classes[name]()).eval().requires_grad_(False)


def export_mtcnn(folder: Path) -> list[Path]:
    """Write the three networks with their manifests; return the manifests' paths.

    Raises:
        EngineError: a graph differs from facenet-pytorch's network.
    """
    from trt_engines.export import OPSET, checked_difference, to_onnx, write_engine

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


class _RectifiedPReLU(nn.Module):
    """PReLU, bit for bit, in operations that ONNX Runtime vectorises."""

    def __init__(self, slope: Tensor, *, is_map: bool) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope.reshape(-1, 1, 1) if is_map else slope)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) - self.slope * torch.relu(-x)


def _rewritten(cascade: CascadeNetwork) -> CascadeNetwork:
    """Replace, in place, the layers that ONNX Runtime runs slowly."""
    follows_map = True
    for name, layer in list(cascade.network.named_children()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            follows_map = isinstance(layer, nn.Conv2d)
            previous: Any = layer
        elif isinstance(layer, nn.PReLU):
            replacement = _RectifiedPReLU(layer.weight.detach(), is_map=follows_map)
            setattr(cascade.network, name, replacement)
        elif isinstance(layer, nn.Softmax):
            # softmax(a, b)[1] = sigmoid(b - a), and the difference of two linear layers is one.
            for values in ("weight", "bias"):
                two = getattr(previous, values).detach()
                setattr(previous, values, nn.Parameter(two[1:] - two[:1]))
            setattr(cascade.network, name, nn.Sigmoid())
    return cascade.requires_grad_(False)
