"""A graph that is kept stands for the same network only."""

import copy

import pytest
import torch
from torch import nn

from tests.kept_exports import KeptExports


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)
        self.rate = 0.5
        self.limits = [torch.tensor(1.0)]


@pytest.fixture
def kept(tmp_path):
    """What counts its graphs, `kept.traced`, and says which one it gives."""

    def trace(module, example, **how):
        kept.traced += 1
        return str(kept.traced).encode()

    kept = KeptExports(trace, tmp_path)
    kept.traced = 0
    return kept


def test_the_same_network_is_traced_once_by_all_who_share_the_folder(kept, tmp_path):
    network, example = Network().eval(), torch.zeros(2, 3, 8, 8)
    assert kept(network, example, outputs=["p"]) == b"1"
    other = KeptExports(kept.real, tmp_path)
    assert other(copy.deepcopy(network), example + 1, outputs=["p"]) == b"1"
    assert kept.traced == 1


@pytest.mark.parametrize("change", ["weight", "option", "constant", "mode", "type", "code"])
def test_a_network_that_differs_is_traced(kept, change):
    network, example = Network().eval(), torch.zeros(2, 3, 8, 8)
    kept(network, example)
    match change:
        case "weight":
            network.layer.weight.data[0, 0, 0, 0] += 1e-6
        case "option":
            network.rate = 0.25
        case "constant":
            network.limits = [torch.tensor(2.0)]
        case "mode":
            network.train()
        case "type":
            network.half()
        case "code":
            network.layer.__class__ = type("Other", (nn.Conv2d,), {})
    assert kept(network, example) == b"2"


def test_another_size_or_other_names_are_traced(kept):
    network, example = Network(), torch.zeros(2, 3, 8, 8)
    graphs = [kept(network, example), kept(network, torch.zeros(2, 3, 9, 9))]
    graphs.append(kept(network, example, outputs=["p", "q"]))
    assert graphs == [b"1", b"2", b"3"]
