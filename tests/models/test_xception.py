"""Xception's units: what the published weights presuppose."""

import pytest
import torch
from torch.nn import functional as F

from models._xception import SeparableConv, Xception, XceptionBlock, from_cadene


def test_a_separable_convolution_is_depthwise_then_pointwise_without_anything_between():
    conv = SeparableConv(2, 3)
    x = torch.randn(1, 2, 5, 5)
    channels = [
        F.conv2d(x[:, i : i + 1], conv.conv1.weight[i : i + 1], padding=1) for i in range(2)
    ]
    expected = torch.einsum(
        "oi,nihw->nohw", conv.pointwise.weight[..., 0, 0], torch.cat(channels, 1)
    )
    torch.testing.assert_close(conv(x), expected)


def test_the_first_relu_leaves_the_skip_path_alone():
    block = XceptionBlock(4, 4, 3).eval()
    x = -torch.rand(1, 4, 6, 6)  # nothing passes the ReLU, so the units see zeros
    with torch.inference_mode():
        torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(("grow_first", "middle"), [(True, 6), (False, 4)])
def test_a_block_widens_where_it_is_told_to(grow_first, middle):
    block = XceptionBlock(4, 6, 2, stride=2, grow_first=grow_first)
    units = [layer for layer in block.rep if isinstance(layer, SeparableConv)]
    assert [unit.pointwise.out_channels for unit in units] == [middle, 6]
    assert block.eval()(torch.randn(1, 4, 7, 7)).shape == (1, 6, 4, 4)


def test_the_trunk_has_the_published_sizes_at_256_px():
    trunk = Xception().eval()
    with torch.inference_mode():
        first = F.relu(trunk.stem1(torch.zeros(1, 3, 256, 256)))
        second = F.relu(trunk.stem2(first))
        middle = trunk.blocks(second, 1, 3)
        last = trunk.blocks(middle, 4, 12)
        tail = trunk.tail(last)
    assert first.shape == (1, 32, 127, 127)
    assert second.shape == (1, 64, 125, 125)
    assert middle.shape == (1, 728, 16, 16)
    assert last.shape == (1, 1024, 8, 8)
    assert tail.shape == (1, 2048, 8, 8)


def test_a_published_file_loses_its_classifier_and_gains_the_spatial_axes():
    state = {
        "conv3.pointwise.weight": torch.zeros(1536, 1024),
        "bn3.weight": torch.ones(1536),
        "fc.weight": torch.zeros(1000, 2048),
        "last_linear.bias": torch.zeros(1000),
    }
    found = from_cadene(state)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "conv3.pointwise.weight": (1536, 1024, 1, 1),
        "bn3.weight": (1536,),
    }
