"""The one recipe: seed, data, model, optimiser, then a plain loop of steps."""

from __future__ import annotations

import csv
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from models._backbones import EfficientNetLite0, load_imagenet_lite0
from models._registry import build_model
from train.checkpoint import load_checkpoint, save_checkpoint
from train.datasets.pairs import AttackPairs, collate
from train.datasets.prepared import open_prepared

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from models._contract import AttackModel, FaceBatch
    from train.config import Recipe

log = logging.getLogger(__name__)


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


def fit(recipe: Recipe, run: Path) -> nn.Module:
    """Train, or go on where the run's last checkpoint stopped; returns the averaged network.

    The data of step i depend on the seed and i alone, so a resumed run sees what an uninterrupted
    one would have seen.

    Raises:
        TrainError: no data, or a checkpoint of another recipe.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    model = build_model(recipe.method, recipe.options)
    network = cast("nn.Module", model)
    if recipe.imagenet:
        for module in network.modules():
            if isinstance(module, EfficientNetLite0):
                load_imagenet_lite0(module)
    network.to(memory_format=torch.channels_last)  # measured: 1.7 x faster on a CPU
    average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe))
    states: dict[str, _Stateful] = {
        "network": network,
        "averaged": averaged,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    path = run / "checkpoint.pt"
    first = 0
    if path.exists():
        checkpoint = load_checkpoint(path, recipe)
        first = checkpoint["step"]
        for name, part in states.items():
            part.load_state_dict(checkpoint[name])
        torch.set_rng_state(checkpoint["random"]["torch"])
        log.info("%s: going on at step %d", run, first)
    network.train()
    batches = _batches(recipe, model, first)
    progress = tqdm(batches, initial=first, total=recipe.steps, unit="step", mininterval=10)
    with (run / "losses.csv").open("a", newline="", encoding="utf-8") as file:
        losses = csv.writer(file)
        started = time.monotonic()
        for step, batch in enumerate(progress, start=first + 1):
            terms = _step(model, network, batch, optimiser, recipe)
            schedule.step()
            averaged.update_parameters(network)
            if step % recipe.log_every == 0 or step == recipe.steps:
                if file.tell() == 0:
                    losses.writerow(["step", "seconds", *terms])
                losses.writerow([step, round(time.monotonic() - started), *terms.values()])
                file.flush()
                progress.set_postfix({k: f"{v:.3f}" for k, v in terms.items()})
            if step % recipe.checkpoint_every == 0 or step == recipe.steps:
                save_checkpoint(
                    path,
                    recipe,
                    step,
                    **{name: part.state_dict() for name, part in states.items()},
                    random={"torch": torch.get_rng_state()},
                )
    return averaged.module


def averaged_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the averaged network's state dict of a checkpoint that `fit` wrote."""
    prefix = "module."  # of `AveragedModel`
    return {
        name.removeprefix(prefix): value
        for name, value in checkpoint["averaged"].items()
        if name.startswith(prefix)
    }


def _step(
    model: AttackModel,
    network: nn.Module,
    batch: FaceBatch,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
) -> dict[str, float]:
    images = model.normalise(batch.images).contiguous(memory_format=torch.channels_last)
    terms = model.loss_terms(model(images), batch)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    clip_grad_norm_(network.parameters(), recipe.max_grad_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {name: float(term.detach()) for name, term in terms.items()}


def _batches(recipe: Recipe, model: AttackModel, first: int) -> Iterable[FaceBatch]:
    pairs = AttackPairs(
        open_prepared(recipe.faces),
        "train",
        model.input_spec,
        group_weights=recipe.group_weights,
        attack_weights=recipe.attack_weights,
        length=recipe.steps * recipe.pairs_per_step,
        seed=recipe.seed,
    )
    left = Subset(pairs, range(first * recipe.pairs_per_step, len(pairs)))
    loader: DataLoader[Any] = DataLoader(
        left,
        batch_size=recipe.pairs_per_step,
        collate_fn=collate,
        num_workers=recipe.workers,
        worker_init_fn=_one_thread,
        persistent_workers=recipe.workers > 0,
    )
    return loader


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _rate(step: int, recipe: Recipe) -> float:
    """Return the factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
