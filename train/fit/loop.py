"""The one training loop: seed, data, model, objective, optimiser, then plain steps."""

from __future__ import annotations

import logging
import math
import signal
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

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
from train.fit.journal import Journal
from train.fit.objective import Objective, detached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from models import AttackModel, FaceBatch
    from train.config import Recipe, ScheduleConfig
    from train.data.selection import Data
    from train.fit.ranks import Ranks

log = logging.getLogger(__name__)

_AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stopped(Exception):  # noqa: N818 - no error: somebody asked
    """SIGTERM came; the checkpoint is written."""


def fit(recipe: Recipe, run: Path, data: Data, ranks: Ranks) -> None:
    """Train, or go on where the run's last checkpoint stopped.

    Rank 0 writes to the run's folder: `checkpoint.pt` (all that going on needs), `best.pt` (the
    weights with the best AUC on dev), `losses.csv`, `validation.csv`, `losses.png` and events for
    TensorBoard. A resumed run computes what an uninterrupted one would have.

    Raises:
        TrainError: a checkpoint of another recipe or number of processes, or a loss that is no
            number.
        Stopped: SIGTERM.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    network = cast("nn.Module", new_model(recipe))
    network.to(ranks.device)
    network.to(memory_format=torch.channels_last)  # measured: 1.7 x faster on a CPU
    if recipe.sync_batchnorm and ranks.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    model = cast("AttackModel", network)
    objective = ranks.wrap(Objective(model, _AUTOCAST[recipe.autocast]))
    optimiser = _optimiser(recipe, network)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate(recipe.schedule, recipe.steps))
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.autocast == "fp16")
    parts: dict[str, Any] = {
        "network": network,
        "optimiser": optimiser,
        "schedule": schedule,
        "scaler": scaler,
    }
    averaged = None
    if recipe.average_decay is not None:
        average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        parts["averaged"] = averaged
    kept = network if averaged is None else averaged.module

    run.mkdir(parents=True, exist_ok=True)
    done, best = load_checkpoint(run / "checkpoint.pt", recipe, ranks.world, parts)
    batches = data.training_batches(recipe, ranks, model.input_spec, first_step=done)
    journal = Journal(run, after_step=done) if ranks.writes else None
    steps = tqdm(
        range(done + 1, recipe.steps + 1),
        initial=done,
        total=recipe.steps,
        unit="step",
        mininterval=5,
        disable=not ranks.writes,
    )
    with _sigterm() as asked:
        for step in steps:
            network.train()
            micro = [_on(ranks.device, next(batches)) for _ in range(recipe.accumulate)]
            # So a resumed run draws the same; after the loader, which draws when it starts.
            torch.manual_seed(_seed(recipe.seed, ranks.rank, step))
            terms, outputs = _pass(objective, micro, scaler)
            _update(recipe, network, optimiser, scaler)
            if isinstance(model, TwoPassModel):
                firsts = [detached(output) for output in outputs]
                progress = step / recipe.steps
                second, _ = _pass(objective, micro, scaler, firsts=firsts, progress=progress)
                _update(recipe, network, optimiser, scaler)
                terms |= {f"second_{name}": term for name, term in second.items()}
            schedule.step()
            if averaged is not None:
                averaged.update_parameters(network)

            last = step == recipe.steps
            stop = ranks.any(asked.is_set())
            if step % recipe.log_every == 0 or last:
                values = _finite(terms, step)
                if journal is not None:
                    rate = float(schedule.get_last_lr()[0])
                    journal.losses(step, {**values, "learning_rate": rate})
                    steps.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
            if data.dev.rows and (step % recipe.validate_every == 0 or last):
                ranks.share_buffers(kept)
                scores = score_part(cast("AttackModel", kept), data, data.dev, recipe, ranks)
                area = video_auc(scores)
                if journal is not None:
                    journal.validation(step, {"dev_auc": area, "faces": len(scores)})
                if best is None or area >= best:  # of equals the latest: it has learned longest
                    best = area
                    if ranks.writes:
                        save_weights(run / "best.pt", recipe, step, kept)
            if step % recipe.checkpoint_every == 0 or last or stop:
                ranks.share_buffers(network)
                if ranks.writes:
                    save_checkpoint(run / "checkpoint.pt", recipe, ranks.world, step, best, parts)
            if stop:
                raise Stopped(f"{run}: stopped by SIGTERM after step {step}; run again to go on")
    if not data.dev.rows and ranks.writes:
        log.warning("%s: no dev faces: the last weights are kept, not the best", run)
        save_weights(run / "best.pt", recipe, recipe.steps, kept)
    if journal is not None:
        journal.close()
    ranks.wait()  # for rank 0's file


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


def _pass(
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


def _update(
    recipe: Recipe,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    if recipe.max_grad_norm is not None:
        scaler.unscale_(optimiser)
        clip_grad_norm_(network.parameters(), recipe.max_grad_norm)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad(set_to_none=True)


def _on(device: torch.device, batch: FaceBatch) -> FaceBatch:
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


def _finite(terms: Mapping[str, Tensor], step: int) -> dict[str, float]:
    values = {name: float(term) for name, term in terms.items()}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise TrainError(
            f"step {step}: the loss is no finite number: {', '.join(wrong)}; lower the learning "
            "rate, set max_grad_norm, or switch autocast off"
        )
    return values


def _optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    config = recipe.optimiser
    weights = [p for p in network.parameters() if p.ndim > 1 or recipe.decay_biases]
    others = [p for p in network.parameters() if not (p.ndim > 1 or recipe.decay_biases)]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    rate, decay = config.learning_rate, config.weight_decay
    if config.kind == "adam":
        return torch.optim.Adam(groups, rate, weight_decay=decay)
    return torch.optim.AdamW(groups, rate, weight_decay=decay, amsgrad=config.amsgrad)


def _rate(config: ScheduleConfig, steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate after a number of finished steps."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.kind == "cosine":
            progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if config.kind == "steps":
            drops = sum(step >= at for at in config.at_steps)
            drops += step // config.every_steps if config.every_steps else 0
            return float(config.gamma**drops)
        return 1.0

    return factor


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event for the time of the run."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
