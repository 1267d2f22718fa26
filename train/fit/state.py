"""Everything of a run that training changes, and one step of it."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import (
    CheckpointError,
    TwoPassModel,
    build_model,
    import_checkpoint,
    load_imagenet_encoders,
    load_method,
)
from train.errors import TrainError
from train.evaluation.score_model import score_part
from train.evaluation.scores import video_auc
from train.fit.checkpoint import load_checkpoint, save_checkpoint, save_weights
from train.fit.describe import faces_digest
from train.fit.distil import Distillation
from train.fit.objective import Objective, detached
from train.fit.optimise import open_optimiser, set_learning_rate
from train.fit.standing import Standing
from train.fit.update import Update

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from models import AttackModel, FaceBatch
    from train.config import Recipe
    from train.data.selection import Data
    from train.fit.checkpoint import Change
    from train.fit.ranks import Ranks

log = logging.getLogger(__name__)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingState:
    """Network, average, optimiser and standing of a run, alike on all ranks.

    Attributes:
        model: the network that learns.
        kept: the one that is validated and kept: `model`, or its average.
        standing: on dev.
        faces: digest of what is learned from.
    """

    def __init__(self, recipe: Recipe, run: Path, data: Data, ranks: Ranks) -> None:
        """Build what the recipe asks for, with the weights that training starts from.

        Raises:
            TrainError: as `new_model`, `frozen_norms` and `Distillation`.
        """
        self._recipe, self._run, self._data, self._ranks = recipe, run, data, ranks
        self._checkpoint = run / "checkpoint.pt"
        resumes = ranks.any(self._checkpoint.exists())
        model = build_model(recipe.method, recipe.options) if resumes else new_model(recipe)
        network = cast("nn.Module", model)
        network.to(ranks.device)
        network.to(memory_format=torch.channels_last)  # measured: 1.7 x faster on a CPU
        if recipe.sync_batchnorm and ranks.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self._network = network
        self._frozen = frozen_norms(network, recipe.frozen_norms)
        self.model = cast("AttackModel", network)
        teacher = None if recipe.distil is None else Distillation(recipe.distil, self.model)
        self._objective = ranks.wrap(Objective(self.model, _AUTOCAST[recipe.autocast], teacher))
        self._optimiser = open_optimiser(recipe, network)
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.autocast == "fp16")
        self._update = Update(network, self._optimiser, self._scaler, ranks, recipe.max_grad_norm)
        self.standing = Standing()
        self._parts: dict[str, Any] = {
            "network": network,
            "optimiser": self._optimiser,
            "scaler": self._scaler,
            "standing": self.standing,
        }
        self._averaged = None
        if recipe.average_decay is not None:
            average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
            self._averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
            self._parts["averaged"] = self._averaged
        self.kept = network if self._averaged is None else self._averaged.module
        self.faces = faces_digest(data)

    def resume(self) -> tuple[int, list[Change]]:
        """Take up the run's checkpoint; return the finished steps, and what changed since.

        Raises:
            TrainError: as `load_checkpoint`.
        """
        return load_checkpoint(
            self._checkpoint, self._recipe, self._ranks.world, self.faces, self._parts
        )

    def learn(self, step: int, micro: Sequence[FaceBatch]) -> dict[str, Tensor | float]:
        """Take one step; return the terms of the loss, the learning rate and, with fp16, its scale.

        Args:
            step: the first is 1.
            micro: batches whose gradients are accumulated.

        Raises:
            TrainError: a loss or the gradient is no finite number; nothing was learned from it.
        """
        recipe = self._recipe
        self._network.train()
        for norm in self._frozen:
            norm.eval()
        rate = set_learning_rate(self._optimiser, recipe, step)
        # So a resumed run draws the same; after the loader, which draws when it starts.
        torch.manual_seed(_seed(recipe.seed, self._ranks.rank, step))
        batches = [_on(self._ranks.device, batch) for batch in micro]
        terms, outputs = accumulate(self._objective, batches, self._scaler)
        self._update(step, terms)
        if isinstance(self.model, TwoPassModel):
            firsts = [detached(output) for output in outputs]
            progress = step / recipe.steps
            second, _ = accumulate(
                self._objective, batches, self._scaler, firsts=firsts, progress=progress
            )
            second = {f"second_{name}": term for name, term in second.items()}
            self._update(step, second)
            terms |= second
        if self._averaged is not None:
            self._averaged.update_parameters(self._network)
        values: dict[str, Tensor | float] = {**terms, "learning_rate": rate}
        if self._scaler.is_enabled():
            values["loss_scale"] = self._scaler.get_scale()
        return values

    def save(self, step: int) -> None:
        """Write the checkpoint; all ranks must ask together.

        Raises:
            TrainError: as `save_checkpoint`, on every rank.
        """
        self._ranks.share_buffers(self._network)
        self._ranks.on_first(
            lambda: save_checkpoint(
                self._checkpoint, self._recipe, self._ranks.world, self.faces, step, self._parts
            )
        )

    def validate(self, step: int) -> dict[str, float]:
        """Score dev, keep the weights if they are among the best, and return dev's row.

        Raises:
            TrainError: as `score_part` and `save_weights`.
        """
        self._ranks.share_buffers(self.kept)
        model = cast("AttackModel", self.kept)
        scores = score_part(model, self._data, self._data.dev, self._recipe, self._ranks)
        area = video_auc(scores)
        self.standing.add(step, area, keep=self._recipe.keep)
        self._ranks.on_first(lambda: self._keep(step))
        return {"dev_auc": area, "faces": len(scores)}

    def keep_last(self, step: int) -> None:
        """Keep the weights of a run without dev.

        Raises:
            TrainError: as `save_weights`.
        """
        self._ranks.on_first(
            lambda: save_weights(self._run / "best.pt", self._recipe, step, self.kept)
        )

    def _keep(self, step: int) -> None:
        if self.standing.is_best(step):
            save_weights(self._run / "best.pt", self._recipe, step, self.kept)
        if self._recipe.keep > 1:
            folder = self._run / "kept"
            names = {at: f"step-{at:08d}.pt" for _, at in self.standing.kept}
            if step in names:
                save_weights(folder / names[step], self._recipe, step, self.kept)
            for path in folder.glob("step-*.pt"):
                if path.name not in names.values():
                    path.unlink()


def new_model(recipe: Recipe) -> AttackModel:
    """Return the recipe's network with the weights that training starts from.

    Raises:
        TrainError: no network that `imagenet` has weights for, or `start_from` is no checkpoint of
            this method with these options.
    """
    if recipe.start_from == "random":
        return build_model(recipe.method, recipe.options)
    if recipe.start_from != "imagenet":
        try:
            imported = import_checkpoint(recipe.method, recipe.start_from, **recipe.options)
        except CheckpointError as error:
            raise TrainError(f"start_from: {error}") from error
        config = load_method(recipe.method).config
        if config.model_validate(imported.options) != config.model_validate(recipe.options):
            raise TrainError(
                f"start_from: {recipe.start_from} ({imported.layout}) is of a network with the "
                f"options {imported.options}; put them into the recipe's `options`"
            )
        log.info("%s: %s", recipe.start_from, imported.report())
        return cast("AttackModel", imported.model)
    model = build_model(recipe.method, recipe.options)
    if not load_imagenet_encoders(cast("nn.Module", model)):
        raise TrainError(
            f"start_from: imagenet has weights for an EfficientNet-Lite0 encoder only, and "
            f"{recipe.method} with these options has none; give a checkpoint's path, or random"
        )
    return model


def frozen_norms(network: nn.Module, starts: Sequence[str]) -> list[nn.Module]:
    """Return the batch norms whose names begin in one of these ways.

    Raises:
        TrainError: no batch norm's name begins so.
    """
    norms = {n: m for n, m in network.named_modules() if isinstance(m, _BATCH_NORMS)}
    for start in starts:
        if not any(name.startswith(start) for name in norms):
            raise TrainError(f"frozen_norms: no batch norm's name begins with {start!r}")
    return [norm for name, norm in norms.items() if name.startswith(tuple(starts))]


def accumulate(
    objective: nn.Module,
    micro: list[FaceBatch],
    scaler: torch.amp.GradScaler,
    firsts: list[Any] | None = None,
    progress: float = 0.0,
) -> tuple[dict[str, Tensor], list[Any]]:
    """Accumulate the gradient of some batches; return the mean terms, and each batch's outputs."""
    summed: dict[str, Tensor] = {}
    kept = []
    for i, batch in enumerate(micro):
        last = i == len(micro) - 1
        later = isinstance(objective, DistributedDataParallel) and not last
        with objective.no_sync() if later else nullcontext():  # type: ignore[operator]
            first = None if firsts is None else firsts[i]
            terms, outputs = objective(batch, first=first, progress=progress)
            total = torch.stack(list(terms.values())).sum() / len(micro)
            torch.autograd.backward(scaler.scale(total))
        kept.append(outputs)
        for name, term in terms.items():
            summed[name] = summed.get(name, 0) + term.detach() / len(micro)
    return summed, kept


def _on(device: torch.device, batch: FaceBatch) -> FaceBatch:
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
