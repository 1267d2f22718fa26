"""What every method promises, and what its numbers mean.

Attack is the positive class everywhere: labels are `BONA_FIDE` = 0 and `ATTACK` = 1, scores lie in
0..1 and grow with the evidence of an attack. Data sets and checkpoints that use the reverse are
converted on reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from models._calibration import Calibration

BONA_FIDE: Final = 0
ATTACK: Final = 1


class InputSpec(BaseModel, frozen=True, extra="forbid"):
    """The pixels a network was trained on, and therefore must be given."""

    size_px: int = Field(gt=0, description="Side S of the square crop, pixels.")
    margin: float = Field(
        1.3, gt=0, description="Side of the crop over the longer side of the face box."
    )
    window: Literal["pad", "inside"] = Field(
        "pad",
        description="`pad`: a square about the face; outside the frame the border is repeated. "
        "`inside`: of the box's proportions, stretched to a square; where it would leave the frame "
        "it is shifted, and no larger than the frame.",
    )
    resize: Literal["area", "bilinear"] = Field(
        "area",
        description="`area`: of a face larger than the crop every pixel counts. `bilinear`: four "
        "pixels of the frame make one, as for networks that were trained on such crops.",
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
    calibration: Calibration  # probability = sigmoid(calibration(attack_logit(outputs)))

    def normalise(self, images: Tensor) -> Tensor:
        """Turn (N, 3, S, S) RGB 0..255 of any dtype into the float32 input of `forward`."""
        ...

    def __call__(self, images: Tensor) -> Any:
        """Return the method's outputs, a `NamedTuple`, for normalised images (N, 3, S, S)."""
        ...

    def attack_logit(self, outputs: Any) -> Tensor:
        """Return (N,) log-odds, not yet calibrated, that each face is an attack."""
        ...

    def explanation(self, outputs: Any) -> Tensor:
        """Return (N, 1, H, W), 0..1: where in the crop the evidence lies."""
        ...

    def loss_terms(self, outputs: Any, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the weighted scalar terms whose sum is minimised."""
        ...


@runtime_checkable
class TwoPassModel(AttackModel, Protocol):
    """A method that steps twice on each batch: on the clean faces, then on perturbed copies.

    The training loop asks `isinstance(model, TwoPassModel)` (docs/decisions/0013).
    """

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return perturbed copies of normalised images (N, 3, S, S); random by torch's state."""
        ...

    def __call__(self, images: Tensor, clean: Tensor | None = None) -> Any:
        """Return the outputs for `images`; `clean` are the images they were made from, if others.

        Args:
            images: (N, 3, S, S), normalised.
            clean: of the same shape; the perturbed pass compares its reconstruction with these.
        """
        ...

    def second_loss_terms(
        self, outputs: Any, batch: FaceBatch, *, first: Any, progress: float
    ) -> dict[str, Tensor]:
        """Return the weighted terms of the perturbed pass.

        Args:
            outputs: of the perturbed images.
            batch: the clean images and their labels.
            first: outputs of the clean pass, made before its step; without gradient.
            progress: share of the training's steps done, 0..1.
        """
        ...


@runtime_checkable
class DistilledModel(AttackModel, Protocol):
    """A method whose log-odds can be taught: they are computed without what only its loss needs.

    `train/fit/distil.py` asks `isinstance(model, DistilledModel)`.
    """

    def partly(self, images: Tensor, n_whole: int) -> tuple[Tensor, Any | None]:
        """Run all images through what decides, and the first of them through all.

        In one pass: batch norm sees them together.

        Args:
            images: (N, 3, S, S), normalised.
            n_whole: 0..N.

        Returns:
            (N,) log-odds, as `attack_logit`; the outputs of the first `n_whole`, None for 0.
        """
        ...


@runtime_checkable
class StagedModel(AttackModel, Protocol):
    """A method that is a chain of stages, each of which can teach, or learn, alone.

    Two that have maps of the same shapes teach and learn from each other stage by stage
    (docs/decisions/0067).
    """

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the stages; the first takes normalised images, each other what the last one gave.

        The last gives (N, D), from which `logit_of_features` follows.
        """
        ...

    def logit_of_features(self, features: Tensor) -> Tensor:
        """Return (N,), as `attack_logit`, for what the last stage gives, (N, D)."""
        ...


@runtime_checkable
class StagedStudent(StagedModel, DistilledModel, Protocol):
    """A method that is taught in stages."""

    def partly_in_stages(
        self, images: Tensor, n_whole: int
    ) -> tuple[tuple[Tensor, ...], Tensor, Any | None]:
        """Return what each stage gives, and what `partly` returns, of one pass.

        Args:
            images: (N, 3, S, S), normalised.
            n_whole: 0..N.
        """
        ...


@runtime_checkable
class AdaptableModel(AttackModel, Protocol):
    """A method whose last layer can be fitted alone, to a site's own faces (`train adapt`)."""

    def last_layer(self) -> nn.Module | None:
        """Return the layer; None: with these options nothing so small decides."""
        ...

    def last_features(self, images: Tensor) -> Tensor:
        """Return (N, D), what that layer is given for normalised images (N, 3, S, S)."""
        ...

    def logit_of_features(self, features: Tensor) -> Tensor:
        """Return (N,), as `attack_logit`, for `last_features` (N, D)."""
        ...


@runtime_checkable
class RefinedModel(AttackModel, Protocol):
    """A method that looks again, at a cost, at faces which its probability leaves undecided.

    The second look is a graph of its own, which back ends run for those faces alone; whoever needs
    to know asks `isinstance(model, RefinedModel)` (docs/decisions/0014).
    """

    refinement_band: tuple[float, float]  # probabilities, inclusive, that leave a face undecided

    def refinement_features(self, outputs: Any) -> Tensor:
        """Return (N, D) float32, all that `refine` needs to know of each face; values about 1."""
        ...

    def refine(self, features: Tensor) -> Tensor:
        """Return (N,) log-odds of an attack, calibrated, for `refinement_features` (N, D).

        In float32, after `to_half` too: its parts are `Float32Module`s.
        """
        ...

    def fit_refinement(self, features: Tensor, labels: Tensor) -> None:
        """Calibrate `refine` on development data.

        Args:
            features: (N, D), of `refinement_features`.
            labels: (N,), BONA_FIDE or ATTACK.

        Raises:
            ValueError: only one of the classes is there.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one kind of published checkpoint names the tensors of a method.

    Attributes:
        name: for people: "official", "DeepfakeBench", "Cadene Xception (ImageNet)".
        marks: names that together only such a file holds (`module.` and `model.` taken off).
        translate: its tensors under our names. What it leaves out is reported as ignored.
        options: the method's options that such weights need; a caller's own take precedence.
        ignored: pattern of a name in the file (`re.match`) -> why nothing uses it.
        fills: prefixes of our names that it fills; the others keep their initial values, and that
            is reported. Empty: the file must fill the whole network.
    """

    name: str
    marks: frozenset[str]
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    options: Mapping[str, object] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    fills: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Trained weights that somebody publishes for a method.

    Attributes:
        name: short, part of a file name: "v2", "deepfakebench".
        where: the page, for people.
        licence: of the weights, one line; what is known of it.
        family: of the attacks that they were trained to see.
        url: the file itself, where it has a fixed address.
        sha256: of the file, hexadecimal, where it is known.
    """

    name: str
    where: str
    licence: str
    family: Literal["presentation", "digital"]
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One published method: what `models.<name>.METHOD` is.

    Attributes:
        config: pydantic class of the method's options.
        build: makes the network, weights random, from an instance of `config`.
        layouts: the published checkpoints that it can take weights from, most specific first.
        publications: trained weights that may be had; none: nobody is known to publish any.
    """

    config: type[BaseModel]
    build: Callable[[Any], AttackModel]
    layouts: tuple[Layout, ...] = ()
    publications: tuple[Publication, ...] = ()
