"""The one training loop: plain steps between a checkpoint and the next."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from train.fit.describe import describe_run
from train.fit.journal import Journal
from train.fit.optimise import factor
from train.fit.state import TrainingState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from train.config import Recipe
    from train.data.selection import Data
    from train.fit.checkpoint import Change
    from train.fit.ranks import Ranks
    from train.fit.standing import Standing

log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - no error: somebody asked
    """SIGTERM came; the checkpoint is written."""


def fit(recipe: Recipe, run: Path, data: Data, ranks: Ranks) -> Standing:
    """Train, or go on where the run's last checkpoint stopped; return how the run stands on dev.

    Rank 0 writes to the run's folder: `checkpoint.pt` (all that going on needs), `best.pt` (the
    weights with the best AUC on dev) and `kept/` (more of them), `recipe.yaml` and `run.json`
    (where it comes from), `losses.csv`, `validation.csv`, `changes.csv`, `losses.png` and events
    for TensorBoard. A resumed run computes what an uninterrupted one would have.

    Raises:
        TrainError: a checkpoint of another recipe, of other faces or number of processes; a loss,
            gradient or weight that is no finite number; a disk that is full.
        Stopped: SIGTERM.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    run.mkdir(parents=True, exist_ok=True)
    state = TrainingState(recipe, run, data, ranks)
    done, changes = state.resume()
    if ranks.writes:
        describe_run(run, recipe, data, ranks, state.faces)
        _tell(changes, recipe, done)
    batches = data.training_batches(recipe, ranks, state.model.input_spec, first_step=done)
    with (
        closing(batches),
        _journal(state, recipe, run, ranks, done) as journal,
        _bar(recipe, ranks, done) as bar,
        logging_redirect_tqdm(),
        _sigterm() as asked_to_stop,
    ):
        if journal is not None:
            journal.changes(done, changes)
        left = range(done + 1, recipe.steps + 1)
        if _validates(recipe, data, done) and state.standing.validated < done:
            _validate(state, done, journal)  # the run was cut off before it was
            if not left:
                state.save(done)
        stale = state.standing.stale(recipe.patience)
        shown: dict[str, str] = {}
        for step in () if stale else left:
            values = state.learn(step, [next(batches) for _ in range(recipe.accumulate)])
            bar.update()
            last = step == recipe.steps
            validates = _validates(recipe, data, step)
            stop = ranks.any(asked_to_stop.is_set())
            if (step % recipe.log_every == 0 or last) and journal is not None:
                numbers = {name: float(value) for name, value in values.items()}
                journal.losses(step, numbers)
                shown |= {name: f"{value:.3g}" for name, value in numbers.items()}
            # Before the validation: if that is cut off, the run goes on with it.
            if step % recipe.checkpoint_every == 0 or validates or last or stop:
                state.save(step)
            if stop:
                raise Stopped(f"{run}: stopped by SIGTERM after step {step}; run again to go on")
            if validates:
                shown["dev_auc"] = f"{_validate(state, step, journal):.4f}"
                stale = state.standing.stale(recipe.patience)
                if last or stale:
                    state.save(step)
            bar.set_postfix(shown, refresh=False)
            if stale:
                log.info("dev AUC has not risen for %d validations: done", recipe.patience)
                break
        if not data.dev.rows:
            log.warning("%s: no dev faces: the last weights are kept, not the best", run)
            state.keep_last(recipe.steps)
    ranks.wait()  # for rank 0's files
    return state.standing


def _bar(recipe: Recipe, ranks: Ranks, done: int) -> Any:
    return tqdm(
        initial=done, total=recipe.steps, unit="step", mininterval=5, disable=not ranks.writes
    )


def _validates(recipe: Recipe, data: Data, step: int) -> bool:
    """Whether dev is scored after a step."""
    due = step % recipe.validate_every == 0 or step == recipe.steps
    return bool(step and due and data.dev.rows)


def _validate(state: TrainingState, step: int, journal: Journal | None) -> float:
    """Validate, and write and tell the result; return dev AUC."""
    row = state.validate(step)
    if journal is not None:
        journal.validation(step, row)
        best, best_step = state.standing.kept[0]
        log.info(
            "step %d: dev AUC %.4f; best %.4f, of step %d", step, row["dev_auc"], best, best_step
        )
    return row["dev_auc"]


@contextmanager
def _journal(
    state: TrainingState, recipe: Recipe, run: Path, ranks: Ranks, done: int
) -> Iterator[Journal | None]:
    """Open the journal on rank 0, the others have none."""
    opened: list[Journal] = []
    ranks.on_first(lambda: opened.append(Journal(run, recipe, done, state.standing.validated)))
    if not opened:
        yield None
        return
    with opened[0] as journal:
        yield journal


def _tell(changes: Sequence[Change], recipe: Recipe, done: int) -> None:
    """Log what is different in a run that goes on, and what that does to its schedule."""
    for change in changes:
        log.info("the recipe has changed: %s", change)
        if change.key == "steps" and recipe.schedule.kind == "cosine":
            before, now = (factor(recipe.schedule, n, done) for n in (change.before, change.now))
            log.warning(
                "the cosine schedule is now that of %d steps: after step %d the learning rate is "
                "%.3g, and would have been %.3g",
                change.now,
                done,
                now * recipe.optimiser.learning_rate,
                before * recipe.optimiser.learning_rate,
            )


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event for the time of the run."""
    asked_to_stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    try:
        yield asked_to_stop
    finally:
        signal.signal(signal.SIGTERM, before)
