"""A recipe's optimiser, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from train.config import AdamConfig, AdamWConfig, SgdConfig
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from train.config import Recipe, ScheduleConfig


def open_optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser; biases and norms are a group of their own, last.

    Raises:
        TrainError: `recipe.rates` names weights that the network does not have.
    """
    named = list(network.named_parameters())
    groups: list[dict[str, Any]] = []
    for start, rate in {"": 1.0, **recipe.rates}.items():
        mine = [p for name, p in named if _rated(name, recipe.rates) == start]
        if start and not mine:
            raise TrainError(
                f"rates: no weight's name begins with {start!r}; those of {recipe.method} begin "
                f"with {', '.join(sorted({name.split('.')[0] for name, _ in named}))}"
            )
        weights = [p for p in mine if p.ndim > 1 or recipe.decay_biases]
        others = [p for p in mine if not (p.ndim > 1 or recipe.decay_biases)]
        groups.append({"params": weights, "rate": rate})
        groups.append({"params": others, "rate": rate, "weight_decay": 0.0})
    match recipe.optimiser:
        case AdamConfig() as config:
            return torch.optim.Adam(groups, config.learning_rate, weight_decay=config.weight_decay)
        case AdamWConfig() as config:
            return torch.optim.AdamW(
                groups,
                config.learning_rate,
                weight_decay=config.weight_decay,
                amsgrad=config.amsgrad,
            )
        case SgdConfig() as config:
            return torch.optim.SGD(
                groups,
                config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.nesterov,
            )


def set_learning_rate(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> float:
    """Set the learning rates of a step, the first being 1; return that of factor 1."""
    rate = recipe.optimiser.learning_rate * factor(recipe.schedule, recipe.steps, step - 1)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate"]
    return rate


def _rated(name: str, rates: Mapping[str, float]) -> str:
    """Return the longest beginning of a weight's name that has a rate of its own; "": none."""
    return max((start for start in rates if name.startswith(start)), key=len, default="")


def factor(config: ScheduleConfig, steps: int, done: int) -> float:
    """Return the factor on the learning rate after a number of finished steps.

    Args:
        config: which schedule.
        steps: of the whole run.
        done: finished steps.
    """
    if done < config.warmup_steps:
        return (done + 1) / config.warmup_steps
    if config.kind == "cosine":
        progress = (done - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.kind == "steps":
        drops = sum(done >= at for at in config.at_steps)
        drops += done // config.every_steps if config.every_steps else 0
        return float(config.gamma**drops)
    return 1.0
