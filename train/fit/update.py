"""One optimiser step, taken only if every rank's loss and the gradient are finite numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from train.fit.ranks import Ranks

_NAMED: Final = 3  # tensors that an error names before it counts the rest


class Update:
    """Steps an optimiser.

    With fp16, a gradient that overflows is no error: `scaler` leaves the step out and halves the
    scale of the loss. It is one once the scale is below 1, because then the scale is not to blame.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ranks: Ranks,
        max_grad_norm: float | None,
    ) -> None:
        """Take what belongs to a run.

        Args:
            network: whose gradients are the same on all ranks.
            optimiser: of its parameters.
            scaler: of the loss; disabled but for fp16.
            ranks: this process among those of the run.
            max_grad_norm: longest gradient; None: any.
        """
        self._network = network
        self._optimiser = optimiser
        self._scaler = scaler
        self._ranks = ranks
        self._max_grad_norm = max_grad_norm

    def __call__(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Step by the accumulated gradient, and clear it.

        Args:
            step: for messages.
            terms: the loss that the gradient is of, this rank's.

        Raises:
            TrainError: a loss or the gradient is no finite number; on every rank. The weights are
                those of the step before.
        """
        self._scaler.unscale_(self._optimiser)
        parameters = [p for p in self._network.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        numbers = torch.stack([norm, *terms.values()])
        if self._ranks.any(not bool(numbers.isfinite().all())):
            self._check(step, terms)
        elif self._max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)

    def _check(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Raise, unless it is an overflow that the scaler deals with."""
        losses = not_finite(terms.items())
        gradients = not_finite(
            (name, p.grad) for name, p in self._network.named_parameters() if p.grad is not None
        )
        scale = self._scaler.get_scale()
        if self._scaler.is_enabled() and gradients and scale >= 1:
            poisoned = not_finite(self._network.named_buffers())
            if not poisoned:
                return
            losses = poisoned
        found = self._ranks.gathered(losses)
        blamed = [f"{some(names)} (rank {rank})" for rank, names in enumerate(found) if names]
        what = (
            f"the loss is no finite number: {', '.join(blamed)}"
            if blamed
            else f"the gradient is no finite number: {some(gradients) or 'its norm'}"
        )
        at_scale = f", at a loss scale of {scale:g}" if self._scaler.is_enabled() else ""
        raise TrainError(
            f"step {step}: {what}{at_scale}. Nothing was learned from this step, and the checkpoint"
            " before it is kept; lower the learning rate, set max_grad_norm, or switch autocast off"
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors if not bool(tensor.isfinite().all())]


def some(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
