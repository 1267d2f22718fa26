import torch
from torch import nn

from models import to_half
from models._precision import Float32Module, float32


class _Exact(Float32Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)


@float32
def _dtype_inside(x):
    return torch.zeros(()) + (x @ x).dtype.itemsize


def test_to_half_leaves_the_weights_of_float32_modules_alone():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2), _Exact())
    to_half(network)
    assert network[0].weight.dtype == torch.float16
    assert network[1].running_var.dtype == torch.float16
    assert network[1].num_batches_tracked.dtype == torch.int64
    assert network[2].inner.weight.dtype == torch.float32


def test_a_float32_function_computes_wide_on_half_precision_input():
    assert _dtype_inside(torch.ones(2, 2, dtype=torch.float16)) == 4


def test_a_float32_function_computes_wide_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert _dtype_inside(torch.ones(2, 2)) == 4
