"""What every method promises, and what its numbers mean.

Attack is the positive class everywhere: labels are `BONA_FIDE` = 0 and `ATTACK` = 1, scores lie in
0..1 and grow with the evidence of an attack. Data sets and checkpoints that use the reverse are
converted on reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BONA_FIDE: Final = 0
ATTACK: Final = 1


class InputSpec(BaseModel, frozen=True, extra="forbid"):
    """The pixels a network was trained on, and therefore must be given."""

    size_px: int = Field(gt=0, description="Side S of the square crop, pixels.")
    margin: float = Field(
        1.3, gt=0, description="Side of the crop over the longer side of the face box."
    )
    dtype: Literal["uint8", "float32"] = Field(
        "uint8", description="Type of the graph's input; values are RGB 0..255 in either case."
    )


class FaceBatch(NamedTuple):
    """One training batch."""

    images: Tensor  # (N, 3, S, S) uint8 RGB
    labels: Tensor  # (N,) int64, BONA_FIDE or ATTACK


class AttackModel(Protocol):
    """A network with its loss; every method's is one, and a `torch.nn.Module`."""

    input_spec: InputSpec

    def normalise(self, images: Tensor) -> Tensor:
        """Turn (N, 3, S, S) RGB 0..255 of any dtype into the float32 input of `forward`."""
        ...

    def __call__(self, images: Tensor) -> Any:
        """Return the method's outputs, a `NamedTuple`, for normalised images (N, 3, S, S)."""
        ...

    def attack_logit(self, outputs: Any) -> Tensor:
        """Return (N,) calibrated log-odds that each face is an attack."""
        ...

    def explanation(self, outputs: Any) -> Tensor:
        """Return (N, 1, H, W), 0..1: where in the crop the evidence lies."""
        ...

    def loss_terms(self, outputs: Any, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the weighted scalar terms whose sum is minimised."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """One published method: what `models.<name>.METHOD` is.

    Attributes:
        config: pydantic class of the method's options.
        build: makes the network, weights random, from an instance of `config`.
    """

    config: type[BaseModel]
    build: Callable[[Any], AttackModel]
