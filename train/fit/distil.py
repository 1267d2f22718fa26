"""Soft labels: a network learns a teacher's log-odds, of the faces and of what is made of them.

A teacher has seen attacks that nobody may train on; its opinion of open pictures may be learned
(Hinton, Vinyals, Dean, arXiv:1503.02531; here log-odds, by a smooth L1 distance). The pictures are
those of the batch, mixed, cut, zoomed, blurred and tinted: what they show matters less than that
they are many, for the teacher has an opinion of each.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch
from torch.nn import functional as F

from models import ATTACK, BONA_FIDE, CheckpointError, DistilledModel, FaceBatch, import_checkpoint
from train.errors import TrainError

if TYPE_CHECKING:
    from torch import Tensor

    from models import AttackModel
    from train.config import DistilConfig

log = logging.getLogger(__name__)

_NEAR: Final = 0.1  # by which the margins of teacher and student may differ, of the student's


class Lesson(NamedTuple):
    """What one batch teaches."""

    own: FaceBatch  # as they are, for the method's own loss; may be empty
    images: Tensor  # (M, 3, S, S) float32, 0..255: what is only scored
    targets: Tensor  # (own + M,) log-odds of the teacher


class Distillation:
    """Makes lessons of batches; random by torch's state."""

    def __init__(self, config: DistilConfig, student: AttackModel) -> None:
        """Load the teacher onto the student's device.

        Raises:
            TrainError: its weights can't be read, the two see different windows, or the student has
                no log-odds that can be taught.
        """
        if not isinstance(student, DistilledModel):
            raise TrainError(
                f"distil: {type(student).__name__} is no method that can be taught; lgsc is one"
            )
        try:
            imported = import_checkpoint(config.method, config.teacher, **config.options)
        except CheckpointError as error:
            raise TrainError(f"distil.teacher: {error}") from error
        log.info("teacher: %s", imported.report())
        device = next(imported.model.parameters()).device
        self._teacher = cast("AttackModel", imported.model.to(device).requires_grad_(False))
        self._config = config
        ours, its = student.input_spec, self._teacher.input_spec
        if ours.window != its.window or abs(ours.margin - its.margin) > _NEAR * ours.margin:
            raise TrainError(
                f"distil: the teacher sees windows of the rule {its.window!r} and margin "
                f"{its.margin:g}, the student {ours.window!r} and {ours.margin:g}; set the "
                "student's options to the teacher's"
            )

    def lesson(self, batch: FaceBatch) -> Lesson:
        """Return what a batch of uint8 or float images 0..255 teaches."""
        is_own = torch.zeros(len(batch.labels), dtype=torch.bool, device=batch.labels.device)
        sides = [torch.nonzero(batch.labels == label)[:, 0] for label in (BONA_FIDE, ATTACK)]
        order = torch.randperm(min(map(len, sides)))  # of synthetic attacks, the pairs stay pairs
        for side in sides:
            is_own[side[order[: self._config.own_pairs].to(side.device)]] = True
        own = FaceBatch(batch.images[is_own], batch.labels[is_own])
        rest = batch.images[~is_own].float()
        images = blended(rest.repeat(self._config.repeats, 1, 1, 1))
        return Lesson(own, images, self._targets(torch.cat([own.images.float(), images])))

    def term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted loss of log-odds (N,) against the teacher's."""
        return self._config.weight * F.smooth_l1_loss(logits, targets)

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        size = self._teacher.input_spec.size_px
        seen = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        outputs = self._teacher(self._teacher.normalise(seen))
        limit = self._config.limit
        return self._teacher.attack_logit(outputs).clamp(-limit, limit)


def blended(images: Tensor) -> Tensor:
    """Return as many pictures made of a batch's: stretched, mixed, pasted, blurred, tinted, grainy.

    Args:
        images: (N, 3, S, S), 0..255.

    Returns:
        (N, 3, S, S) float32, 0..255.
    """
    n, device = len(images), images.device
    if not n:
        return images

    def chosen(share: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, device=device) < share

    x = _stretched(images, chosen(0.6).flatten())
    partner = x[torch.randperm(n, device=device)]
    kept = torch.rand(n, 1, 1, 1, device=device)
    mixes = chosen(0.4)
    x = torch.where(mixes, kept * x + (1 - kept) * partner, x)
    x = torch.where(_rectangles(images) & chosen(0.25) & ~mixes, partner, x)
    soft = F.interpolate(
        F.avg_pool2d(x, 2), size=x.shape[-2:], mode="bilinear", align_corners=False
    )
    softer, sharper = chosen(0.2), chosen(0.15)
    x = torch.where(softer, soft, torch.where(sharper, x + 0.7 * (x - soft), x))
    gains = torch.exp(0.12 * torch.randn(n, 3, 1, 1, device=device))
    x = x * gains + 10 * torch.randn(n, 1, 1, 1, device=device)
    sigma = 12 * torch.rand(n, 1, 1, 1, device=device) * chosen(0.3)
    return (x + sigma * torch.randn_like(x)).clamp(0, 255)


def _stretched(images: Tensor, which: Tensor) -> Tensor:
    """Return the pictures, of some of them a part, half of each side or more, as a square.

    Real faces often fill the frame: then the window shows no surroundings, and is stretched.
    """
    n = len(images)
    kept = 0.5 + 0.5 * torch.rand(n, 2, device=images.device)
    scale = torch.where(which[:, None], kept, 1.0)
    shift = (1 - scale) * (2 * torch.rand(n, 2, device=images.device) - 1)
    matrix = torch.zeros(n, 2, 3, device=images.device)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale[:, 0], scale[:, 1]
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _rectangles(images: Tensor) -> Tensor:
    """Return (N, 1, S, S) bool: a rectangle in each, a fifth to four fifths of its sides."""
    n, size = len(images), images.shape[-1]
    sides = 0.2 + 0.6 * torch.rand(n, 2, device=images.device)
    starts = torch.rand(n, 2, device=images.device) * (1 - sides)
    at = (torch.arange(size, device=images.device) + 0.5) / size
    inside = (at >= starts[..., None]) & (at < (starts + sides)[..., None])  # (N, 2, S)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
