"""Model and loss as one module: what DDP wraps, so that a loss's parameters are averaged too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from models import in_float32, mapped_tensors

if TYPE_CHECKING:
    from models import AttackModel, FaceBatch, TwoPassModel


class Objective(nn.Module):
    """Turns a batch into the terms of a method's loss.

    The network runs under autocast if a type is given; the loss always computes in float32.

    Across ranks, each rank computes its loss on its own samples; the gradients are averaged. For a
    term that is a mean over samples this equals one process with all samples, because every rank
    has the same number of each class. Terms over pairs or triplets of a batch (LGSC, UDR: triplets;
    RECCE: similarities; UDR: correlations) see the pairs within a rank only, as in the original
    code: with more ranks each sample meets fewer others than in one large batch.
    """

    def __init__(self, model: AttackModel, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = cast("nn.Module", model)
        self._autocast = autocast

    def forward(
        self, batch: FaceBatch, first: Any = None, progress: float = 0.0
    ) -> tuple[dict[str, Tensor], Any]:
        """Return the weighted terms, and the model's outputs.

        Args:
            batch: faces, on the model's device.
            first: outputs of the clean pass, for the second pass of a `TwoPassModel`; None: this is
                the first pass.
            progress: share of the steps done, 0..1.
        """
        model = cast("AttackModel", self.model)
        images = model.normalise(batch.images).contiguous(memory_format=torch.channels_last)
        device = images.device.type
        enabled = self._autocast is not None
        if first is None:
            with torch.autocast(device, self._autocast, enabled=enabled):
                outputs = in_float32(model(images))
            return model.loss_terms(outputs, batch), outputs
        twice = cast("TwoPassModel", model)
        perturbed = twice.perturb(images, batch.labels)
        with torch.autocast(device, self._autocast, enabled=enabled):
            outputs = in_float32(twice(perturbed, images))
        return (
            twice.second_loss_terms(outputs, batch, first=first, progress=progress),
            outputs,
        )


def detached(outputs: Any) -> Any:
    """Return a method's outputs cut off from the gradient."""
    return mapped_tensors(outputs, Tensor.detach)
