"""From a network's log-odds to log-odds that mean what they say."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Calibration(nn.Module):
    """Maps attack log-odds to calibrated ones; fitted on development data after training.

    The map is affine, (x - offset) / scale: temperature scaling where the offset is 0, Platt's
    otherwise. It is part of the network's state, so checkpoints and exported graphs hold it. Until
    it is fitted it changes nothing, and the probability is the network's own.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, logit: Tensor) -> Tensor:
        """Return calibrated log-odds (N,) for the network's (N,)."""
        return (logit - self.offset) / self.scale
