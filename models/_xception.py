"""Xception's units, with the module names of the published ImageNet checkpoint (Cadene).

Chollet, CVPR 2017. A block's first ReLU does not act on its skip path. `highfreq.py` uses two
streams of them, `recce.py` one and the blocks of its decoder.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping


class SeparableConv(nn.Module):
    """Depthwise 3 x 3, then pointwise 1 x 1, nothing in between; no biases."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H, W)."""
        y: Tensor = self.pointwise(self.conv1(x))
        return y


class XceptionBlock(nn.Module):
    """Separable convolutions with batch norm, then a max-pool if strided, plus a skip path.

    Args:
        inputs: channels.
        outputs: channels.
        units: separable convolutions.
        stride: 1 or 2; 2 halves the size, rounding up.
        starts_with_relu: False in the first block, which a ReLU precedes.
        grow_first: widen in the first unit; otherwise in the last one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        units: int,
        *,
        stride: int = 1,
        starts_with_relu: bool = True,
        grow_first: bool = True,
    ) -> None:
        super().__init__()
        middle = outputs if grow_first else inputs
        widths = [inputs, *[middle] * (units - 1), outputs]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ReLU(), SeparableConv(before, after), nn.BatchNorm2d(after)]
        if not starts_with_relu:
            layers = layers[1:]
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers)
        self.skip: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H', W')."""
        skip = x if self.skip is None else self.skipbn(self.skip(x))
        y: Tensor = self.rep(x) + skip
        return y


class Xception(nn.Module):
    """The trunk without its 1000-class layer: its parts are called one by one by the methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = XceptionBlock(64, 128, 2, stride=2, starts_with_relu=False)
        self.block2 = XceptionBlock(128, 256, 2, stride=2)
        self.block3 = XceptionBlock(256, 728, 2, stride=2)
        for i in range(4, 12):
            self.add_module(f"block{i}", XceptionBlock(728, 728, 3))
        self.block12 = XceptionBlock(728, 1024, 2, stride=2, grow_first=False)
        self.conv3 = SeparableConv(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)

    def stem1(self, x: Tensor) -> Tensor:
        """Return conv1 with batch norm, before its ReLU: (N, 32, ~S/2, ~S/2)."""
        y: Tensor = self.bn1(self.conv1(x))
        return y

    def stem2(self, x: Tensor) -> Tensor:
        """Return conv2 with batch norm, before its ReLU: (N, 64, ~S/2, ~S/2)."""
        y: Tensor = self.bn2(self.conv2(x))
        return y

    def blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run block `first` to block `last`, both included."""
        for i in range(first, last + 1):
            x = self.get_submodule(f"block{i}")(x)
        return x

    def tail(self, x: Tensor) -> Tensor:
        """Return (N, 2048, ~S/32, ~S/32) of block12's output; without the last ReLU."""
        x = F.relu(self.bn3(self.conv3(x)))
        y: Tensor = self.bn4(self.conv4(x))
        return y


def from_cadene(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trunk's tensors of a published ImageNet checkpoint.

    Pointwise kernels are stored there as (out, in), without the two spatial axes.

    Args:
        state: names as in `Xception`, and the 1000-class `fc` or `last_linear`, which is left out.
    """
    return {
        name: value[:, :, None, None] if value.ndim == 2 else value
        for name, value in state.items()
        if not name.startswith(("fc.", "last_linear."))
    }
