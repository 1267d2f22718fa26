"""Soft labels: a network learns a teacher's log-odds, of the faces and of what is made of them.

A teacher has seen attacks that nobody may train on; its opinion of open pictures may be learned
(Hinton, Vinyals, Dean, arXiv:1503.02531; here log-odds, by a smooth L1 distance). The pictures are
those of the batch, mixed, cut, zoomed, blurred and tinted: what they show matters less than that
they are many, for the teacher has an opinion of each.

A student that is a chain of the same stages learns the teacher's maps as well (Romero et al.,
FitNets, arXiv:1412.6550), and may begin with each stage apart: a shallow problem, of which every
place of every picture is an example (docs/decisions/0067).
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch
from torch.nn import functional as F

from models import (
    ATTACK,
    BONA_FIDE,
    CheckpointError,
    DistilledModel,
    FaceBatch,
    StagedModel,
    StagedStudent,
    import_checkpoint,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from models import AttackModel
    from train.config import DistilConfig

log = logging.getLogger(__name__)

_NEAR: Final = 0.1  # by which the margins of teacher and student may differ, of the student's


class Lesson(NamedTuple):
    """What one batch teaches."""

    own: FaceBatch  # as they are, for the method's own loss; may be empty
    images: Tensor  # (M, 3, S, S) float32, 0..255: what is only scored
    targets: Tensor  # (own + M,) log-odds of the teacher
    maps: Sequence[Tensor]  # what each stage of the teacher gives for own + M; empty: not asked for


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
        self.stages = config.stages
        if config.stages != "off":
            _check_stages(student, self._teacher)
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
        targets, maps = self._answers(torch.cat([own.images.float(), images]))
        return Lesson(own, images, targets, maps)

    def term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted loss of log-odds (N,) against the teacher's."""
        return self._config.weight * F.smooth_l1_loss(logits, targets)

    def stages_term(self, maps: Sequence[Tensor], lesson: Lesson) -> Tensor:
        """Return the weighted loss of the student's maps: the shares not explained, summed.

        Args:
            maps: what each stage gives for the lesson's pictures.
            lesson: with the teacher's.
        """
        shares = [
            F.mse_loss(ours, its) / its.transpose(0, 1).flatten(1).var(dim=1).mean()
            for ours, its in zip(maps, lesson.maps, strict=True)
        ]
        return self._config.weight_stages * torch.stack(shares).sum()

    @torch.no_grad()
    def _answers(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        size = self._teacher.input_spec.size_px
        seen = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        seen = self._teacher.normalise(seen).contiguous(memory_format=torch.channels_last)
        limit = self._config.limit
        maps: tuple[Tensor, ...] = ()
        if self._config.stages == "off":
            log_odds = self._teacher.attack_logit(self._teacher(seen))
        else:
            maps = maps_of(cast("StagedModel", self._teacher), seen)
            log_odds = cast("StagedModel", self._teacher).logit_of_features(maps[-1])
        return log_odds.clamp(-limit, limit), maps


def maps_of(model: StagedModel, images: Tensor) -> tuple[Tensor, ...]:
    """Return what each stage gives for normalised images (N, 3, S, S)."""
    maps = []
    x = images
    for stage in model.stages():
        x = stage(x)
        maps.append(x)
    return tuple(maps)


def apart(student: StagedModel, images: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what each stage of a student makes of what the teacher's stage before it gave.

    Args:
        student: whose stages have the teacher's shapes.
        images: (N, 3, S, S), normalised.
        maps: of the teacher.
    """
    given = [images, *maps[:-1]]
    return tuple(stage(x) for stage, x in zip(student.stages(), given, strict=True))


@torch.no_grad()
def _check_stages(student: DistilledModel, teacher: AttackModel) -> None:
    """Refuse a pair whose stages do not have the same shapes.

    Raises:
        TrainError: they differ, or one of the two is no chain of stages.
    """
    shapes = []
    for model in (student, teacher):
        if not isinstance(model, StagedStudent if model is student else StagedModel):
            raise TrainError(
                f"distil.stages: {type(model).__name__} is no chain of stages; set it to off"
            )
        size = model.input_spec.size_px
        network = cast("nn.Module", model)
        training = network.training
        network.eval()
        try:
            blank = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
            shapes.append([tuple(m.shape[1:]) for m in maps_of(model, model.normalise(blank))])
        except ValueError as error:
            raise TrainError(f"distil.stages: {error}") from error
        finally:
            network.train(training)
    if shapes[0] != shapes[1]:
        raise TrainError(
            f"distil.stages: the student's maps are {shapes[0]}, the teacher's {shapes[1]}; set "
            "the student's options so that they agree, or stages to off"
        )


def blended(images: Tensor) -> Tensor:
    """Return as many pictures made of a batch's: stretched, mixed, pasted, blurred, toned, grainy.

    Three in ten are stretched at most.

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

    plain = _stretched(images, chosen(0.6).flatten())
    partner = plain[torch.randperm(n, device=device)]
    kept = torch.rand(n, 1, 1, 1, device=device)
    mixes = chosen(0.2)
    x = torch.where(mixes, kept * plain + (1 - kept) * partner, plain)
    x = torch.where(_rectangles(images) & chosen(0.15) & ~mixes, partner, x)
    soft, softer = _blurred(x, 2), _blurred(x, 4)
    sharper = x + (0.3 + kept) * (x - soft)
    x = torch.where(chosen(0.2), torch.where(chosen(0.3), softer, soft), x)
    x = torch.where(chosen(0.12), sharper, x)
    x = _toned(x * (1 + 0.3 * kept * chosen(0.12) * _gratings(images)), chosen)
    sigma = 14 * torch.rand(n, 1, 1, 1, device=device) * chosen(0.3)
    x = (x + sigma * torch.randn_like(x)).clamp(0, 255)
    return torch.where(chosen(0.3), plain, x)


def _blurred(x: Tensor, px: int) -> Tensor:
    small = F.avg_pool2d(x, px)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _toned(x: Tensor, chosen: Callable[[float], Tensor]) -> Tensor:
    """Return pictures, 0..255, with other tone curves, contrasts, colours and brightness.

    Args:
        x: (N, 3, S, S).
        chosen: draws a share of the pictures, (N, 1, 1, 1) bool.
    """
    n, device = len(x), x.device

    def normal(channels: int = 1) -> Tensor:
        return torch.randn(n, channels, 1, 1, device=device)

    x = 255 * (x.clamp(0, 255) / 255) ** torch.exp(0.35 * normal() * chosen(0.4))
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = (x - mean) * torch.exp(0.3 * normal() * chosen(0.4)) + mean
    x = x * torch.exp(0.13 * normal(3) * chosen(0.6)) + 12 * normal() * chosen(0.6)
    grey = x.mean(dim=1, keepdim=True)
    saturation = (1 + 0.5 * normal() * chosen(0.3)) * ~chosen(0.04)
    return grey + saturation * (x - grey)


def _gratings(images: Tensor) -> Tensor:
    """Return (N, 1, S, S), -1..1: waves of 2 to 33 pixels in any direction."""
    n, size, device = len(images), images.shape[-1], images.device
    draws = torch.rand(n, 3, 1, 1, device=device)
    cycles = torch.exp(math.log(0.03) + draws[:, 0] * math.log(0.5 / 0.03))  # a pixel
    turn, phase = math.pi * draws[:, 1], 2 * math.pi * draws[:, 2]
    at = torch.arange(size, device=device)
    across = torch.cos(turn) * at[None, None, :] + torch.sin(turn) * at[None, :, None]
    return torch.sin(2 * math.pi * cycles * across + phase)[:, None]


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
