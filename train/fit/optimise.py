"""A recipe's optimiser, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from train.config import AdamConfig, AdamWConfig, SgdConfig

if TYPE_CHECKING:
    from torch import nn

    from train.config import Recipe, ScheduleConfig


def open_optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser; biases and norms are a group of their own, last."""
    weights = [p for p in network.parameters() if p.ndim > 1 or recipe.decay_biases]
    others = [p for p in network.parameters() if not (p.ndim > 1 or recipe.decay_biases)]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
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
    """Set the learning rate of a step, the first being 1, and return it."""
    rate = recipe.optimiser.learning_rate * factor(recipe.schedule, recipe.steps, step - 1)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


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
