"""MiniFASNet: a small published network against presentation attacks, whose weights are open.

Minivision, 2020; no paper. Official code and weights: minivision-ai/Silent-Face-Anti-Spoofing
(Apache-2.0). Trained by its authors on real prints and screens, which nobody else may see: it is
here to be imported, as a detector beside the others and as a teacher, and is none of the five
methods that this project reproduces.

A chain of inverted bottlenecks after MobileFaceNet, pruned block by block, ends in a 5 x 5 map that
a depthwise convolution turns into one vector. It looks at what surrounds a face: windows of 2.7
(`v2`) or 4.0 (`v1se`) times the face, shifted into the frame.

Differences from the official code:

- One log-odds of an attack instead of a softmax of three classes; the probability is the same.
- Its training (a Fourier picture of the crop as a second task) is left out: `loss_terms` is the
  plain cross-entropy of bona fide and attack, for fine-tuning.
- The last layer is called `head`, not `prob`, so that our files and theirs are told apart.
- A batch of one face, in training, is normalised by the running statistics.
- The explanation is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models._calibration import Calibration
from models._contract import InputSpec, Layout, Method, Publication
from models._depthwise import Chain, Conv, DepthWise, LinearConv, normed
from models._precision import float32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from models._contract import FaceBatch

Variant: TypeAlias = Literal["v2", "v1se"]

_LIVE: Final = 1  # the published classes: 0 and 2 are attacks, of the plane and of the screen kind


class _Published(NamedTuple):
    """What the published networks differ in."""

    margin: float
    dropout: float
    squeezed: bool  # squeeze-and-excitation in the last block of each chain
    widths_3: tuple[int, ...]  # of the inner layers, block by block
    widths_4: tuple[int, ...]
    widths_5: tuple[int, ...]


_PUBLISHED: Final[Mapping[Variant, _Published]] = {
    "v2": _Published(2.7, 0.2, False, (13, 13, 13, 13), (231, 52, 26, 77, 26, 26), (26, 26)),
    "v1se": _Published(4.0, 0.75, True, (13, 26, 13, 52), (154, 52, 26, 52, 26, 26), (26, 26)),
}


def _published_margin(chosen: dict[str, Any]) -> float:
    return _PUBLISHED[cast("Variant", chosen["variant"])].margin


def _published_dropout(chosen: dict[str, Any]) -> float:
    return _PUBLISHED[cast("Variant", chosen["variant"])].dropout


class MiniFasNetConfig(BaseModel, frozen=True, extra="forbid"):
    """Options; the defaults are as published."""

    variant: Variant = Field("v2", description="MiniFASNetV2, or V1SE, which sees a wider window.")
    margin: float = Field(
        default_factory=_published_margin,
        gt=0,
        description="Crop side over face box; published: 2.7 (v2), 4.0 (v1se).",
    )
    dropout: float = Field(
        default_factory=_published_dropout,
        ge=0,
        lt=1,
        description="Share of the embedding set to zero in training; published: 0.2 (v2), 0.75 "
        "(v1se).",
    )
    size_px: Literal[80] = Field(
        80, description="Side of the network's input, pixels; it takes no other."
    )


class MiniFasNetOutputs(NamedTuple):
    """What one forward pass yields."""

    logits: Tensor  # (N, 3) of the published classes; 1 is live, 0 and 2 are attacks
    embedding: Tensor  # (N, 128), normalised, before dropout
    features: Tensor  # (N, 512, 5, 5), the last map


def _attack_against_live(logits: Tensor) -> Tensor:
    """Return (N,) log-odds of (N, 3) logits of the published classes."""
    return logits[:, ::2].logsumexp(dim=1) - logits[:, _LIVE]


class MiniFasNet(nn.Module):
    """The network, with the published names of its layers."""

    def __init__(self, config: MiniFasNetConfig) -> None:
        super().__init__()
        self.config = config
        published = _PUBLISHED[config.variant]
        squeezed = published.squeezed
        self.input_spec = InputSpec(
            size_px=config.size_px, margin=config.margin, window="inside", resize="bilinear"
        )
        self.conv1 = Conv(3, 32, 3, stride=2, padding=1)
        self.conv2_dw = Conv(32, 32, 3, padding=1)
        self.conv_23 = DepthWise(32, 103, 64)
        self.conv_3 = Chain(64, published.widths_3, squeezed=squeezed)
        self.conv_34 = DepthWise(64, 231, 128)
        self.conv_4 = Chain(128, published.widths_4, squeezed=squeezed)
        self.conv_45 = DepthWise(128, 308, 128)
        self.conv_5 = Chain(128, published.widths_5, squeezed=squeezed)
        self.conv_6_sep = Conv(128, 512)
        self.conv_6_dw = LinearConv(512, 512, 5)
        self.linear = nn.Linear(512, 128, bias=False)
        self.bn = nn.BatchNorm1d(128)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(128, 3, bias=False)
        self.calibration = Calibration()

    def normalise(self, images: Tensor) -> Tensor:
        """See `AttackModel.normalise`: BGR, 0..255 as they are."""
        red, green, blue = images.float().unbind(dim=1)
        return torch.stack([blue, green, red], dim=1)

    def forward(self, images: Tensor) -> MiniFasNetOutputs:
        """Return the outputs of normalised (N, 3, 80, 80)."""
        x = self.conv_23(self.conv2_dw(self.conv1(images)))
        x = self.conv_34(self.conv_3(x))
        x = self.conv_45(self.conv_4(x))
        features = self.conv_6_sep(self.conv_5(x))
        embedding = self._embedded(features)
        return MiniFasNetOutputs(self.head(self.drop(embedding)), embedding, features)

    def stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """See `StagedModel.stages`."""
        return (
            lambda images: self.conv_23(self.conv2_dw(self.conv1(images))),
            *(self.conv_3, self.conv_34, self.conv_4, self.conv_45, self.conv_5),
            lambda x: self._embedded(self.conv_6_sep(x)),
        )

    def _embedded(self, features: Tensor) -> Tensor:
        vector = self.conv_6_dw(features).flatten(1)
        return normed(self.bn, self.linear(vector))

    def attack_logit(self, outputs: MiniFasNetOutputs) -> Tensor:
        """See `AttackModel.attack_logit`: of both attack classes together against live."""
        return _attack_against_live(outputs.logits)

    def last_layer(self) -> nn.Module:
        """See `AdaptableModel.last_layer`."""
        return self.head

    def last_features(self, images: Tensor) -> Tensor:
        """See `AdaptableModel.last_features`: the embedding."""
        embedding: Tensor = self(images).embedding
        return embedding

    def logit_of_features(self, features: Tensor) -> Tensor:
        """See `AdaptableModel.logit_of_features`."""
        return _attack_against_live(self.head(features))

    def explanation(self, outputs: MiniFasNetOutputs) -> Tensor:
        """Return (N, 1, 5, 5), 0..1: what each place of the last map adds; 0.5 adds nothing.

        From that map on the network is linear, so the log-odds of the face, not calibrated, are the
        sum of 25 shares, found without a gradient; the map is their sigmoid. A place sees most of
        the window, though: the map shows where the evidence arrives, and does not prove where an
        attack is.
        """
        return torch.sigmoid(self._shares(outputs.logits, outputs.features))[:, None]

    @float32
    def _shares(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return (N, 5, 5), which add up to `attack_logit`; what no place adds is shared alike."""
        by_class = (features[:, None] * self._weights_of_places()).sum(dim=2)  # (N, 3, 5, 5)
        attacks = logits[:, ::2].softmax(dim=1)[:, :, None, None]  # each kind's part in their sum
        shares = (attacks * by_class[:, ::2]).sum(dim=1) - by_class[:, _LIVE]
        log_odds = _attack_against_live(logits)
        places = shares.shape[1] * shares.shape[2]
        rest = (log_odds - shares.sum(dim=(1, 2))) / places
        return shares + rest[:, None, None]

    def _weights_of_places(self) -> Tensor:
        """Return (3, 512, 5, 5): what each logit gains by each value of the last map."""
        to_logits = (self.head.weight.float() * _gain(self.bn)) @ self.linear.weight.float()
        depthwise = self.conv_6_dw.conv.weight.float()[:, 0]  # (512, 5, 5)
        per_channel = to_logits * _gain(self.conv_6_dw.bn)  # (3, 512)
        return per_channel[:, :, None, None] * depthwise

    def loss_terms(self, outputs: MiniFasNetOutputs, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of bona fide and attack; which kind of attack is not asked."""
        log_odds = self.attack_logit(outputs)
        labels = batch.labels.to(log_odds.dtype)
        return {"classification": F.binary_cross_entropy_with_logits(log_odds, labels)}


def _gain(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """Return (C,): the slope of a batch norm in eval mode."""
    assert norm.running_var is not None  # torch allows a norm without statistics
    return norm.weight.float() / (norm.running_var.float() + norm.eps).sqrt()


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the one tensor that has another name here.

    Args:
        state: official names without `module.`.
    """
    renamed = dict(state)
    renamed["head.weight"] = renamed.pop("prob.weight")
    return renamed


def _layout(variant: Variant, name: str, mark: str) -> Layout:
    return Layout(
        name=name,
        marks=frozenset({"conv_6_dw.conv.weight", "prob.weight", mark}),
        translate=from_published,
        options={"variant": variant},
    )


# The commit in which both files lie; their digests hold whatever becomes of it.
_FOLDER: Final = (
    "https://raw.githubusercontent.com/minivision-ai/Silent-Face-Anti-Spoofing/"
    "f679b7c96ad407d1114182847d3e0c20619a76d0/resources/anti_spoof_models/"
)


def _publication(variant: Variant, file: str, sha256: str) -> Publication:
    return Publication(
        name=variant,
        where="https://github.com/minivision-ai/Silent-Face-Anti-Spoofing",
        licence="Apache-2.0 (Minivision, minivision-ai/Silent-Face-Anti-Spoofing)",
        family="presentation",
        url=_FOLDER + file,
        sha256=sha256,
    )


METHOD = Method(
    config=MiniFasNetConfig,
    build=MiniFasNet,
    layouts=(
        _layout("v1se", "official MiniFASNetV1SE", "conv_5.model.1.se_module.fc1.weight"),
        _layout("v2", "official MiniFASNetV2", "conv_5.model.1.project.conv.weight"),
    ),
    publications=(
        _publication(
            "v2",
            "2.7_80x80_MiniFASNetV2.pth",
            "a5eb02e1843f19b5386b953cc4c9f011c3f985d0ee2bb9819eea9a142099bec0",
        ),
        _publication(
            "v1se",
            "4_0_0_80x80_MiniFASNetV1SE.pth",
            "84ee1d37d96894d5e82de5a57df044ef80a58be2b218b5ed7cdfd875ec2f5990",
        ),
    ),
)
