"""The constant matrices against torch's operators, the frequency branch against its formula."""

import pytest
import torch
from torch.nn import functional as F

from models import to_half
from models._spectrum import (
    PaddedConv2d,
    RealDft2d,
    Resample,
    SpatialFrequencyConv,
    average_pool_matrix,
    bilinear_matrix,
)

SIZES = [2, 5, 12, 48, 95]


def _normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _close(found, expected):
    torch.testing.assert_close(found, expected.float(), atol=2e-6, rtol=1e-5)


def _inverse(spectrum, size):
    """What an inverse transform means for any half spectrum, after its definition."""
    real, imaginary = spectrum.double().chunk(2, dim=1)
    rows = torch.fft.ifft(torch.complex(real, imaginary), dim=2, norm="ortho")
    own_mirror = torch.zeros(rows.shape[-1], dtype=torch.bool)
    own_mirror[0] = True
    if size % 2 == 0:
        own_mirror[-1] = True
    rows = torch.where(own_mirror, rows.real.to(rows.dtype), rows)
    return torch.fft.irfft(rows, n=size, dim=3, norm="ortho")


@pytest.mark.parametrize("size", SIZES)
def test_the_transform_equals_torchs(size):
    x = _normal(2, 3, size, size)
    expected = torch.fft.rfft2(x.double(), norm="ortho")
    _close(RealDft2d(size)(x), torch.cat([expected.real, expected.imag], dim=1))


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_ignores_what_no_real_map_has(size):
    spectrum = _normal(2, 6, size, size // 2 + 1)
    _close(RealDft2d(size).inverse(spectrum), _inverse(spectrum, size))


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_undoes_the_transform(size):
    x, dft = _normal(2, 3, size, size), RealDft2d(size)
    _close(dft.inverse(dft(x)), x)


@pytest.mark.parametrize(("size", "pooled"), [(95, 48), (24, 12), (5, 3)])
def test_a_pooled_inverse_equals_adaptive_pooling_after_the_inverse(size, pooled):
    spectrum = _normal(1, 4, size, size // 2 + 1)
    expected = F.adaptive_avg_pool2d(_inverse(spectrum, size), pooled)
    _close(RealDft2d(size, pooled).inverse(spectrum), expected)


@pytest.mark.parametrize(("source", "target"), [(95, 48), (128, 32), (16, 8), (7, 7), (5, 2)])
def test_the_pooling_matrix_equals_adaptive_pooling(source, target):
    x = _normal(1, 2, source, source)
    found = Resample(average_pool_matrix(source, target))(x)
    _close(found, F.adaptive_avg_pool2d(x, target))


@pytest.mark.parametrize(("source", "target"), [(192, 380), (192, 12), (380, 12), (2, 64), (6, 6)])
def test_the_resize_matrix_equals_bilinear_interpolation_with_aligned_corners(source, target):
    x = _normal(1, 2, source, source)
    # In float64, because torch computes the positions in the type of the map.
    expected = F.interpolate(x.double(), (target, target), mode="bilinear", align_corners=True)
    _close(Resample(bilinear_matrix(source, target))(x), expected)


def test_zero_padding_may_differ_between_the_ends():
    conv = PaddedConv2d(1, 1, 3, 2, (0, 1))
    x = _normal(1, 1, 6, 6)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, stride=2)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups"),
    [(8, 1, (1, 1), 1), (8, 2, (0, 1), 4), (7, 2, (1, 1), 4)],
)
def test_a_convolution_is_mixed_with_its_frequency_branch_by_the_gate(
    size, stride, padding, groups
):
    torch.manual_seed(0)
    conv = SpatialFrequencyConv(4, 4, 3, stride, padding, groups, size=size)
    conv.sf_coef.data.fill_(0.4)
    x = _normal(2, 4, size, size)
    padded = F.pad(x, (padding[0], padding[1]) * 2)
    spatial = F.conv2d(padded, conv.weight, stride=stride, groups=groups)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    mixed = conv.freq_conv(torch.cat([spectrum.real, spectrum.imag], dim=1))
    frequency = F.adaptive_avg_pool2d(_inverse(mixed, size).float(), spatial.shape[-1])
    gate = torch.sigmoid(torch.tensor(0.4))
    _close(conv(x), (1 - gate) * spatial + gate * frequency)
    conv.prune()
    _close(conv(x), (1 - gate) * spatial)
    assert "freq_conv.weight" not in conv.state_dict()


def test_a_new_gate_is_almost_closed():
    conv = SpatialFrequencyConv(2, 2, 3, 1, (1, 1), size=4)
    assert conv.sf_coef.sigmoid().item() == pytest.approx(4.54e-5, rel=1e-3)


def test_matrices_are_no_part_of_the_weights_and_stay_float32_in_a_half_network():
    conv = to_half(SpatialFrequencyConv(2, 2, 3, 1, (1, 1), size=4))
    assert not any("dft" in name for name in conv.state_dict())
    assert {tensor.dtype for tensor in conv.dft.buffers()} == {torch.float32}
    assert conv(_normal(1, 2, 4, 4).half()).dtype == torch.float16
