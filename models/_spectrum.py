"""Fourier transforms, resizes and poolings of maps of a fixed size, as constant matrices.

A spectrum here is real: (N, 2C, H, W // 2 + 1), the real parts of all channels and then the
imaginary ones, orthonormal ("ortho"). Unlike FFT operators, matrix products exist in every
runtime, and the inverse is defined alike everywhere for spectra that no real map has: a layer that
mixes real and imaginary parts makes such, and FFT libraries differ on them (pytorch issue 154496).
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models._precision import Float32Module, float32


def half_up(size: int) -> int:
    """Return the size of a map after a layer of stride 2, which rounds up."""
    return (size + 1) // 2


def average_pool_matrix(source: int, target: int) -> Tensor:
    """Return (target, source) float64: adaptive average pooling of one axis.

    Row i is the mean of positions floor(i source / target) to ceil((i + 1) source / target) - 1;
    neighbouring rows overlap where the sizes do not divide.
    """
    position = torch.arange(source)
    row = torch.arange(target)[:, None]
    first = row * source // target
    end = -(-(row + 1) * source // target)
    inside = ((position >= first) & (position < end)).double()
    return inside / inside.sum(1, keepdim=True)


def bilinear_matrix(source: int, target: int) -> Tensor:
    """Return (target, source) float64: linear interpolation of one axis with aligned corners."""
    at = torch.linspace(0, source - 1, target, dtype=torch.float64)[:, None]
    return (1 - (at - torch.arange(source)).abs()).clamp_min(0)


class Resample(Float32Module):
    """Maps every row and every column by one matrix: y = M x M^T; in and out float32."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        """Take the (target, source) matrix of `average_pool_matrix` or `bilinear_matrix`."""
        super().__init__()
        self.register_buffer("matrix", matrix.float(), persistent=False)

    @float32
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, target, target) for (N, C, source, source)."""
        return self.matrix @ (x @ self.matrix.T)


class RealDft2d(Float32Module):
    """Fourier transform of square maps and its inverse, without complex numbers; float32.

    Args:
        size: H = W of the maps.
        pooled: size that the inverse's result is average-pooled to; the pooling is part of the
            inverse's matrices and costs nothing.
    """

    columns: Tensor
    rows: Tensor
    inverse_rows: Tensor
    inverse_columns: Tensor

    def __init__(self, size: int, pooled: int | None = None) -> None:
        super().__init__()
        k = size // 2 + 1
        step = torch.arange(size)
        # The product modulo the size is exact; the cosine of a large angle would not be.
        angle = (step[:, None] * step % size).double() * (2 * pi / size)
        cos, sin = angle.cos() / sqrt(size), angle.sin() / sqrt(size)
        # The half spectrum stands for both halves, but for the columns that are their own mirror.
        weight = torch.full((k, 1), 2.0, dtype=torch.float64)
        weight[0] = 1
        if size % 2 == 0:
            weight[-1] = 1
        pool = average_pool_matrix(size, pooled or size)
        for name, matrix in {
            "columns": torch.cat([cos[:, :k], -sin[:, :k]], 1),  # (W, 2K)
            "rows": _complex_rows(cos, -sin),  # (2H, 2H)
            "inverse_rows": _complex_rows(pool @ cos, pool @ sin),  # (2P, 2H)
            "inverse_columns": torch.cat([weight * cos[:k], -weight * sin[:k]]) @ pool.T,  # (2K, P)
        }.items():
            self.register_buffer(name, matrix.float(), persistent=False)

    @float32
    def forward(self, x: Tensor) -> Tensor:
        """Return the half spectrum (N, 2C, H, W // 2 + 1) of maps (N, C, H, W)."""
        along_rows = torch.cat((x @ self.columns).chunk(2, dim=3), dim=2)  # (N, C, 2H, K)
        return torch.cat((self.rows @ along_rows).chunk(2, dim=2), dim=1)

    @float32
    def inverse(self, spectrum: Tensor) -> Tensor:
        """Return maps (N, C, P, P), P the pooled size, of half spectra (N, 2C, H, W // 2 + 1).

        The imaginary part along the rows of columns 0 and, for even W, W / 2 drops out.
        """
        along_rows = self.inverse_rows @ torch.cat(spectrum.chunk(2, dim=1), dim=2)  # (N, C, 2P, K)
        return torch.cat(along_rows.chunk(2, dim=2), dim=3) @ self.inverse_columns


def _complex_rows(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return the matrix that multiplies by a complex one, real parts above imaginary ones."""
    return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])


class PaddedConv2d(nn.Conv2d):
    """Convolution without bias, its zero padding given for both ends of an axis.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side.
        stride: of both axes.
        padding: pixels above and left, pixels below and right; the second may be larger.
        groups: as in `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: tuple[int, int],
        groups: int = 1,
    ) -> None:
        before, after = padding
        super().__init__(inputs, outputs, kernel, stride, before, groups=groups, bias=False)
        self._surplus = after - before

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H', W')."""
        surplus = self._surplus
        return super().forward(F.pad(x, (0, surplus, 0, surplus)) if surplus else x)


class SpatialFrequencyConv(PaddedConv2d):
    """Convolution with a second branch on the Fourier spectrum, mixed in by one gate.

    y = (1 - g) conv(x) + g irfft2(W rfft2(x)), g = sigmoid(sf_coef); UniDefense (IJCV 2024). W is
    dense over the channels even where the convolution is depthwise, and holds most weights.

    Args:
        size: H = W of the maps; the other arguments are those of `PaddedConv2d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: tuple[int, int],
        groups: int = 1,
        *,
        size: int,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, groups)
        self.sf_coef = nn.Parameter(torch.tensor(-10.0))  # closed at first: g = 4.5e-5
        self.freq_conv: nn.Conv2d | None = nn.Conv2d(2 * inputs, 2 * outputs, 1, bias=False)
        self.dft = RealDft2d(size, half_up(size) if stride == 2 else size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H', W')."""
        spatial = super().forward(x)
        gate = self.sf_coef.sigmoid()
        if self.freq_conv is None:
            return (1 - gate) * spatial
        spectrum: Tensor = self.freq_conv(self.dft(x).to(x.dtype))
        frequency = self.dft.inverse(spectrum)
        return (1 - gate) * spatial + gate * frequency.to(spatial.dtype)

    def prune(self) -> None:
        """Leave the frequency branch out from now on; the gate still scales the convolution."""
        self.freq_conv = None
