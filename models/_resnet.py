"""ResNet-18 and -50 with frequency branches, UniDefense's trunks; torchvision's module names.

He et al., CVPR 2016. They end with layer 3; two blocks of UniDefense's own follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models._spectrum import (
    PaddedConv2d,
    Resample,
    SpatialFrequencyConv,
    average_pool_matrix,
    half_up,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Shape(NamedTuple):
    repeats: tuple[int, int, int]  # blocks of layers 1 to 3
    expand: int  # width of a layer's output over that of its 3 x 3 convolutions
    depth: int  # channels of `embed` and `summarise`


_SHAPES = {18: _Shape((2, 2, 2), 1, 512), 50: _Shape((3, 4, 6), 4, 2048)}


class ResidualBlock(nn.Module):
    """Convolutions, each with batch norm and all but the last with ReLU, around a shortcut."""

    def __init__(self, convs: Sequence[nn.Conv2d], downsample: nn.Module | None) -> None:
        """Name the convolutions `conv1`, `conv2`, ... and their norms `bn1`, `bn2`, ..."""
        super().__init__()
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))
        self._count = len(convs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H', W')."""
        y = x
        for i in range(1, self._count + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self._count:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _conv3(inputs: int, outputs: int, stride: int, size: int, *, spectral: bool) -> nn.Conv2d:
    """Return a 3 x 3 convolution; with a frequency branch only where the width stays."""
    if spectral and inputs == outputs:
        return SpatialFrequencyConv(inputs, outputs, 3, stride, (1, 1), size=size)
    return PaddedConv2d(inputs, outputs, 3, stride, (1, 1))


def _conv1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class ResNet(nn.Module):
    """The trunk: layers 1 to 3, and the blocks before and after the attention.

    Args:
        layers: 18, whose features are three layers' and whose stem does not pool; or 50.
        size: of the square input, pixels.
    """

    def __init__(self, layers: Literal[18, 50], size: int) -> None:
        super().__init__()
        self._shape = _SHAPES[layers]
        expand, depth = self._shape.expand, self._shape.depth
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self._pools_early = layers == 50
        size = half_up(half_up(size)) if self._pools_early else half_up(size)
        first, second, third = self._shape.repeats
        self.layer1 = self._layer(first, 64, 64, 1, size, spectral=False)
        self.layer2 = self._layer(second, 64 * expand, 128, 2, size, spectral=True)
        self.size = half_up(half_up(size))
        self.layer3 = self._layer(third, 128 * expand, 256, 2, half_up(size), spectral=True)
        self.channels = 256 * expand
        if not self._pools_early:
            self.channels += 64 + 128
            self.shrink1 = Resample(average_pool_matrix(size, self.size))
            self.shrink2 = Resample(average_pool_matrix(half_up(size), self.size))
        self.depth = self.width = depth
        self.embedding_size = half_up(self.size)
        shortcut = nn.Sequential(
            _conv1(self.channels, depth), nn.BatchNorm2d(depth), nn.MaxPool2d(3, 2, 1)
        )
        self.emb_block1 = ResidualBlock(
            self._convs(self.channels, 512, 2, self.size, spectral=True), shortcut
        )
        # Its second 3 x 3 convolution, if there are two, has no frequency branch.
        last = self._convs(depth, 512, 1, self.embedding_size, spectral=True)
        if expand == 1:
            last[1] = _conv3(512, 512, 1, self.embedding_size, spectral=False)
        self.emb_block2 = ResidualBlock(last, None)

    def _layer(
        self, repeats: int, inputs: int, width: int, stride: int, size: int, *, spectral: bool
    ) -> nn.Sequential:
        blocks = []
        for i in range(repeats):
            convs = self._convs(inputs, width, stride if i == 0 else 1, size, spectral=spectral)
            outputs = convs[-1].out_channels
            downsample = None
            if i == 0 and (stride != 1 or inputs != outputs):
                downsample = nn.Sequential(_conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
            blocks.append(ResidualBlock(convs, downsample))
            inputs = outputs
            if i == 0 and stride == 2:
                size = half_up(size)
        return nn.Sequential(*blocks)

    def _convs(
        self, inputs: int, width: int, stride: int, size: int, *, spectral: bool
    ) -> list[nn.Conv2d]:
        """Return a basic block's two convolutions, or a bottleneck's three."""
        expand = self._shape.expand
        if expand == 1:
            after = half_up(size) if stride == 2 else size
            return [
                _conv3(inputs, width, stride, size, spectral=spectral),
                _conv3(width, width, 1, after, spectral=spectral),
            ]
        return [
            _conv1(inputs, width),
            _conv3(width, width, stride, size, spectral=spectral),
            _conv1(width, width * expand),
        ]

    def features(self, images: Tensor) -> Tensor:
        """Return (N, 448, S/8, S/8), or (N, 1024, S/16, S/16) of ResNet-50, for (N, 3, S, S)."""
        x = F.relu(self.bn1(self.conv1(images)))
        one: Tensor = self.layer1(F.max_pool2d(x, 3, 2, 1) if self._pools_early else x)
        two: Tensor = self.layer2(one)
        three: Tensor = self.layer3(two)
        if self._pools_early:
            return three
        pooled = (self.shrink1(one), self.shrink2(two))
        return torch.cat([*(p.to(three.dtype) for p in pooled), three], dim=1)

    def embed(self, features: Tensor) -> Tensor:
        """Return (N, 512, S/16, S/16), or (N, 2048, S/32, S/32) of ResNet-50."""
        x: Tensor = self.emb_block1(features)
        return x

    def summarise(self, embedded: Tensor) -> Tensor:
        """Return (N, 512) or (N, 2048), averaged over positions."""
        x: Tensor = self.emb_block2(embedded)
        return x.mean(dim=(2, 3))
