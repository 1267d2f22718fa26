"""Blocks of MobileFaceNet: inverted bottlenecks of depthwise convolutions, with learnt rectifiers.

Chen et al., arXiv:1804.07573. The names of the layers are those of MiniFASNet's checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence


def normed(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise; a channel of one value has no statistics, so there the running ones serve."""
    if norm.training and x.numel() == x.shape[1]:
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    result: Tensor = norm(x)
    return result


class LinearConv(nn.Module):
    """Convolution without bias, and batch norm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, padding: int = 0
    ) -> None:
        """Make it depthwise if the kernel is larger than 1 and it keeps the number of channels."""
        super().__init__()
        groups = inputs if kernel > 1 and inputs == outputs else 1
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.bn, self.conv(x))


class Conv(LinearConv):
    """The same, and a rectifier with one slope a channel."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding)
        self.prelu = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        rectified: Tensor = self.prelu(super().forward(x))
        return rectified


class SqueezeExcitation(nn.Module):
    """Weigh the channels by what their means say together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels // 4)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        inner = F.relu(normed(self.bn1, self.fc1(pooled)))
        return x * torch.sigmoid(normed(self.bn2, self.fc2(inner)))


class DepthWise(nn.Module):
    """Widen, filter each channel, narrow."""

    def __init__(self, inputs: int, width: int, outputs: int, *, stride: int = 2) -> None:
        super().__init__()
        self.conv = Conv(inputs, width)
        self.conv_dw = Conv(width, width, 3, stride=stride, padding=1)
        self.project = LinearConv(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.project(self.conv_dw(self.conv(x)))
        return narrowed


class Residual(DepthWise):
    """The same, added to its input."""

    def __init__(self, channels: int, width: int, *, squeezed: bool = False) -> None:
        super().__init__(channels, width, channels, stride=1)
        self.se_module = SqueezeExcitation(channels) if squeezed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.se_module(super().forward(x))
        return x + changed


class Chain(nn.Module):
    """Residual blocks, of which the last may weigh its channels."""

    def __init__(self, channels: int, widths: Sequence[int], *, squeezed: bool = False) -> None:
        super().__init__()
        last = len(widths) - 1
        self.model = nn.Sequential(
            *(Residual(channels, w, squeezed=squeezed and i == last) for i, w in enumerate(widths))
        )

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = self.model(x)
        return refined
