"""From a network's log-odds to log-odds that mean what they say."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from models._precision import Float32Module

KNOTS: Final = 17  # of the piecewise linear map: one more than its segments


class Calibration(Float32Module):
    """Maps attack log-odds to calibrated ones; fitted on development data after training.

    The map is (x - offset) / scale + sum of slopes * clamp(x - starts, 0, widths). Without the sum
    it is temperature scaling (offset 0) or Platt's; the sum bends it at `KNOTS` places, which holds
    what isotonic regression finds. The map is strictly increasing whatever was fitted, so it never
    changes the order of faces. It is part of the network's state, so checkpoints and exported
    graphs hold it. Until it is fitted it changes nothing, and the probability is the network's own.
    """

    offset: Tensor
    scale: Tensor
    starts: Tensor  # (KNOTS - 1,) where each segment begins, in the network's log-odds
    widths: Tensor  # (KNOTS - 1,) its length, 0 of one that is not used
    slopes: Tensor  # (KNOTS - 1,) what it adds to the slope 1 / scale

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        for name in ("starts", "widths", "slopes"):
            self.register_buffer(name, torch.zeros(KNOTS - 1))

    def forward(self, logit: Tensor) -> Tensor:
        """Return calibrated log-odds (N,) for the network's (N,)."""
        inside = (logit[:, None] - self.starts).clamp(min=0).minimum(self.widths)  # (N, KNOTS - 1)
        return (logit - self.offset) / self.scale + (inside * self.slopes).sum(dim=1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take a state of before the segments, which was affine, as one without them."""
        if f"{prefix}offset" in state_dict:
            for name in ("starts", "widths", "slopes"):
                state_dict.setdefault(f"{prefix}{name}", torch.zeros(KNOTS - 1))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
