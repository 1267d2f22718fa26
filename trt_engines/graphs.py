"""What an attack detector's engine computes, as torch modules: bytes in, probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from models import RefinedModel, to_half

if TYPE_CHECKING:
    from torch import Tensor

    from models import AttackModel
    from trt_engines.manifest import Precision


class AttackGraph(nn.Module):
    """What an attack detector's engine computes, whatever the runtime; the exporter traces this."""

    def __init__(self, model: AttackModel, precision: Precision = "fp32") -> None:
        """Take the model; for "fp16" its weights become half precision in place.

        Bytes in and probabilities out stay exact: pixels are normalised in float32, the calibration
        and the sigmoid are float32.
        """
        super().__init__()
        if precision == "fp16":
            to_half(cast("nn.Module", model))
        self.model = model
        self.dtype = torch.float16 if precision == "fp16" else torch.float32

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Score crops.

        Args:
            images: (N, 3, S, S) uint8 RGB.

        Returns:
            (N,) probability of an attack, and (N, 1, H, W) explanation, 0..1, float32; from a
            `RefinedModel` also what its refinement takes, (N, D).
        """
        outputs = self.model(self.model.normalise(images).to(self.dtype))
        logit = self.model.attack_logit(outputs).float()
        probability = torch.sigmoid(self.model.calibration(logit))
        explanation = self.model.explanation(outputs).float()
        if isinstance(self.model, RefinedModel):
            return probability, explanation, self.model.refinement_features(outputs)
        return probability, explanation


class RefinementGraph(nn.Module):
    """What the second graph of a `RefinedModel` computes."""

    def __init__(self, model: RefinedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """Return (N,) probability of an attack for the model's `refinement_features` (N, D)."""
        return (torch.sigmoid(self.model.refine(features)),)
