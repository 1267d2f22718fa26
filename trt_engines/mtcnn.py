"""MTCNN's three networks, with facenet-pytorch's weights.

Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks, 2016, arXiv:1604.02878. The weights are inside the wheel of facenet-pytorch 2.6.0 (MIT);
only the export and the torch back end need that package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from torch import nn

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
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
    "pnet": Part(
        size_px=12,
        max_batch=16,
        outputs={
            "offsets": f"(N, 4, h, w) {_OFFSETS}; cell (i, j) sees the 12x12 pixels at (2i, 2j)",
            "probability": "(N, h, w) 0..1: a face",
        },
        dynamic={0: "N", 2: "H", 3: "W"},
        example_sizes=((40, 53), (12, 12), (33, 16)),
    ),
    "rnet": Part(
        size_px=24,
        max_batch=32,
        outputs={"offsets": f"(N, 4) {_OFFSETS}", "probability": "(N,) 0..1: a face"},
        dynamic={0: "N"},
        example_sizes=((24, 24),),
    ),
    "onet": Part(
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
