"""EfficientNet-b4 with frequency branches, UniDefense's trunk; the module names of lukemelas' port.

Tan, Le; ICML 2019. The padding is TensorFlow's "same", which depends on the size of the input.
"""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models._spectrum import PaddedConv2d, SpatialFrequencyConv, half_up


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "same" padding before and after an axis of this size.

    >>> same_padding(380, 3, 2), same_padding(95, 5, 2), same_padding(24, 5, 2)
    ((0, 1), (2, 2), (1, 2))
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """Mobile inverted bottleneck with squeeze-excitation.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the depthwise kernel.
        stride: 1 or 2.
        expand: expansion; 1 has no expanding convolution.
        size: H = W of the input.
        spectral: the depthwise convolution has a frequency branch.
        drop: probability that training leaves the block's residual path out, per sample.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expand: int,
        *,
        size: int,
        spectral: bool,
        drop: float,
    ) -> None:
        super().__init__()
        middle, squeezed = inputs * expand, inputs // 4
        self._expand_conv: nn.Module | None = None
        if expand != 1:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = _norm(middle)
        padding = same_padding(size, kernel, stride)
        self._depthwise_conv: nn.Module = (
            SpatialFrequencyConv(middle, middle, kernel, stride, padding, middle, size=size)
            if spectral
            else PaddedConv2d(middle, middle, kernel, stride, padding, middle)
        )
        self._bn1 = _norm(middle)
        self._se_reduce = nn.Conv2d(middle, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, middle, 1)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self._residual = stride == 1 and inputs == outputs
        self._keep = 1 - drop

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H', W')."""
        y = x
        if self._expand_conv is not None:
            y = F.silu(self._bn0(self._expand_conv(y)))
        y = F.silu(self._bn1(self._depthwise_conv(y)))
        excitation = self._se_expand(F.silu(self._se_reduce(y.mean(dim=(2, 3), keepdim=True))))
        y = cast("Tensor", self._bn2(self._project_conv(excitation.sigmoid() * y)))
        if not self._residual:
            return y
        if self.training:
            kept = torch.rand(len(y), 1, 1, 1, device=y.device) < self._keep
            y = y * kept / self._keep
        return x + y


class EfficientNetB4(nn.Module):
    """The trunk, cut where UniDefense takes its features: after stage 4, stage 5 and the head.

    Args:
        size: of the square input, pixels.
    """

    # repeats, kernel, stride, expansion, output channels, frequency branch
    _STAGES: Final = (
        (2, 3, 1, 1, 24, False),
        (4, 3, 2, 6, 32, False),
        (4, 5, 2, 6, 56, True),
        (6, 3, 2, 6, 112, True),
        (6, 5, 1, 6, 160, True),
        (8, 5, 2, 6, 272, True),
        (2, 3, 1, 6, 448, False),
    )
    _CUTS: Final = (22, 30)  # first blocks of stages 5 and 6
    _DROP: Final = 0.2

    channels: Final = 160  # of `features`
    depth: Final = 272  # of `embed`
    width: Final = 1792  # of `summarise`

    def __init__(self, size: int) -> None:
        super().__init__()
        self._conv_stem = PaddedConv2d(3, 48, 3, 2, same_padding(size, 3, 2))
        self._bn0 = _norm(48)
        size = half_up(size)
        inputs = 48
        total = sum(repeats for repeats, *_ in self._STAGES)
        blocks: list[nn.Module] = []
        sizes = []
        for repeats, kernel, stage_stride, expand, outputs, spectral in self._STAGES:
            for i in range(repeats):
                stride = stage_stride if i == 0 else 1
                blocks.append(
                    MBConv(
                        inputs,
                        outputs,
                        kernel,
                        stride,
                        expand,
                        size=size,
                        spectral=spectral,
                        drop=self._DROP * len(blocks) / total,
                    )
                )
                inputs = outputs
                size = half_up(size) if stride == 2 else size
                sizes.append(size)
        self._blocks = nn.ModuleList(blocks)
        self.size, self.embedding_size = (sizes[cut - 1] for cut in self._CUTS)
        self._conv_head = nn.Conv2d(inputs, self.width, 1, bias=False)
        self._bn1 = _norm(self.width)

    def features(self, images: Tensor) -> Tensor:
        """Return stage 4's output (N, 160, ~S/16, ~S/16) for images (N, 3, S, S)."""
        return self._run(F.silu(self._bn0(self._conv_stem(images))), 0, self._CUTS[0])

    def embed(self, features: Tensor) -> Tensor:
        """Return stage 5's output (N, 272, ~S/32, ~S/32)."""
        return self._run(features, *self._CUTS)

    def summarise(self, embedded: Tensor) -> Tensor:
        """Return (N, 1792): stage 6 and the head, averaged over positions."""
        x = self._run(embedded, self._CUTS[1], len(self._blocks))
        return F.silu(cast("Tensor", self._bn1(self._conv_head(x)))).mean(dim=(2, 3))

    def _run(self, x: Tensor, first: int, end: int) -> Tensor:
        for block in self._blocks[first:end]:
            x = block(x)
        return x
