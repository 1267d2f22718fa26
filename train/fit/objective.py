"""Model and loss as one module: what DDP wraps, so that a loss's parameters are averaged too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from models import in_float32, mapped_tensors
from train.fit.distil import apart

if TYPE_CHECKING:
    from models import AttackModel, DistilledModel, FaceBatch, StagedStudent, TwoPassModel
    from train.fit.distil import Distillation


class Objective(nn.Module):
    """Turns a batch into the terms of a method's loss.

    The network runs under autocast if a type is given; the loss always computes in float32.

    Across ranks, each rank computes its loss on its own samples; the gradients are averaged. For a
    term that is a mean over samples this equals one process with all samples, because every rank
    has the same number of each class. Terms over pairs or triplets of a batch (LGSC, UDR: triplets;
    RECCE: similarities; UDR: correlations) see the pairs within a rank only, as in the original
    code: with more ranks each sample meets fewer others than in one large batch.
    """

    def __init__(
        self,
        model: AttackModel,
        autocast: torch.dtype | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.model = cast("nn.Module", model)
        self._autocast = autocast
        self._distillation = distillation

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
        if self._distillation is not None:
            return self._taught(batch, self._distillation)
        model = cast("AttackModel", self.model)
        images = _normalised(model, batch.images)
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

    def _taught(
        self, batch: FaceBatch, distillation: Distillation
    ) -> tuple[dict[str, Tensor], Any]:
        """Return the terms of a batch that a teacher judges; the method's own of a part of it."""
        model = cast("DistilledModel", self.model)
        lesson = distillation.lesson(batch)
        own = lesson.own
        every = _normalised(model, torch.cat([own.images.float(), lesson.images]))
        staged = cast("StagedStudent", model)
        maps: tuple[Tensor, ...] = ()
        outputs = None
        with torch.autocast(every.device.type, self._autocast, enabled=self._autocast is not None):
            if distillation.stages == "apart":
                maps = in_float32(apart(staged, every, lesson.maps))
                log_odds = staged.logit_of_features(maps[-1])
            elif distillation.stages == "together":
                maps, log_odds, outputs = in_float32(
                    staged.partly_in_stages(every, len(own.labels))
                )
            else:
                log_odds, outputs = in_float32(model.partly(every, len(own.labels)))
        terms = {} if outputs is None else model.loss_terms(outputs, own)
        if maps:
            terms["stages"] = distillation.stages_term(maps, lesson)
        return terms | {"distillation": distillation.term(log_odds, lesson.targets)}, outputs


def _normalised(model: AttackModel, images: Tensor) -> Tensor:
    return model.normalise(images).contiguous(memory_format=torch.channels_last)


def detached(outputs: Any) -> Any:
    """Return a method's outputs cut off from the gradient."""
    return mapped_tensors(outputs, Tensor.detach)
