"""RECCE: End-to-End Reconstruction-Classification Learning for Face Forgery Detection.

Cao, Ma, Yao, Chen, Ding, Yang; CVPR 2022, pages 4113-4122. Official code: VISION-SJTU/RECCE (MIT);
a second implementation with weights of its own: SCLBD/DeepfakeBench, detector `recce` (CC BY-NC
4.0).

A decoder learns to rebuild bona fide faces only, so manipulated ones come out wrong. A bipartite
graph lets each position of the encoder read the decoder's pixels beneath it at two scales, and the
reconstruction error steers the attention of the last layers.

Differences from the official code:

- The graph runs without a loop over its nodes: the scores' linear layer is split into a node's and
  a pixel's share, and the 1 x 1 layers run on whole maps before these are cut into patches. Equal
  but for rounding.
- The logits keep their batch axis for a single face, where the official code drops it.
- The similarity matrices are computed in the loss, not in the forward pass.
- Options of ours: `flood` and the weights of the losses, which the official trainer fixes.
  DeepfakeBench trains with `flood=0`, `weight_reconstruction=0`, `weight_metric=0`.
- The crop's margin is ours: the authors' was never published.
- The log-odds are calibrated on development data (`calibration`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models._calibration import Calibration
from models._contract import ATTACK, BONA_FIDE, InputSpec, Layout, Method, Publication
from models._precision import float32
from models._xception import SeparableConv, Xception, XceptionBlock, from_cadene

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models._contract import FaceBatch


class RecceConfig(BaseModel, frozen=True, extra="forbid"):
    """Options; the defaults are the official configuration."""

    num_classes: Literal[1, 2] = Field(1, description="Logits; DeepfakeBench's weights have 2.")
    size_px: int = Field(299, ge=32, description="Side of the network's input, pixels.")
    margin: float = Field(1.3, gt=0, description="Crop side over face box.")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Share of the features set to zero in training."
    )
    noise_std: float = Field(1e-6, ge=0, description="Of the training input, which spans -1..1.")
    flood: float = Field(0.04, ge=0, description="Level that the classification term floats at.")
    weight_reconstruction: float = Field(
        0.1, ge=0, description="Factor on the loss's term `reconstruction`."
    )
    weight_metric: float = Field(0.1, ge=0, description="Factor on the loss's term `metric`.")


class RecceOutputs(NamedTuple):
    """What one forward pass yields; L is S / 16, as four strided layers round it."""

    logits: Tensor  # (N, 1) attack; or (N, 2), column 1 = attack
    reconstruction: Tensor  # (N, 3, S, S), -1..1
    error: Tensor  # (N, 3, S, S) |image - reconstruction|, 0..2; the image without noise
    attention: Tensor  # (N, 1, L, L), 0..1: where the error makes the classifier look
    features: tuple[Tensor, Tensor, Tensor]
    # e4 (N, 728, L, L) of the encoder; d2 (N, 256, 2L, 2L), d4 (N, 128, 4L, 4L) of the decoder

    @property
    def similarities(self) -> tuple[Tensor, ...]:
        """(N, N) similarity of the faces to each other, 0..1, for each of the features."""
        return tuple(similarity(f) for f in self.features)


@float32
def similarity(features: Tensor) -> Tensor:
    """Return (N, N) cosines of mean features (N, C, H, W), moved from -1..1 to 0..1."""
    unit = F.normalize(features.mean(dim=(2, 3)), dim=1)
    return (unit @ unit.T + 1) / 2


@float32
def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1)


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _embedding(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_pointwise(inputs, width), nn.ReLU(), _pointwise(width, outputs))


def _upsampling(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        SeparableConv(inputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    # Exported as one Resize that keeps the corners; without align_corners the weights don't fit.
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class _GraphReasoning(nn.Module):
    """Joins the encoder's map (a) with two of the decoder's (b, c); the official `GraphReasoning`.

    Every position of `a` is a node, linked to the 2 x 2 pixels of `b` and 4 x 4 of `c` that cover
    the same part of the face.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.va_embedding = _embedding(728, 256, 256)
        self.va_gated_b = nn.Sequential(_pointwise(728, 256), nn.Sigmoid())
        self.va_gated_c = nn.Sequential(_pointwise(728, 256), nn.Sigmoid())
        self.vb_embedding = _embedding(256, 256, 256)
        self.vc_embedding = _embedding(128, 256, 256)
        self.reweight_ab = _pointwise(512, 1)
        self.reweight_ac = _pointwise(512, 1)
        self.reproject = _embedding(768, 728, 728)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return (N, 728, L, L) for a (N, 728, L, L), b (N, 256, 2L, 2L), c (N, 128, 4L, 4L)."""
        nodes = self.va_embedding(a)  # (N, 256, L, L)
        from_b = _attend(nodes, self.vb_embedding(b), self.reweight_ab.weight)
        from_c = _attend(nodes, self.vc_embedding(c), self.reweight_ac.weight)
        joined = [(1 - self.va_gated_b(a)) * from_b, (1 - self.va_gated_c(a)) * from_c, nodes]
        out: Tensor = self.dropout(self.reproject(torch.cat(joined, dim=1).sigmoid()))
        return out


def _attend(nodes: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return (N, 256, L, L): for each node the mean of its patch, weighted by attention.

    Args:
        nodes: (N, 256, L, L).
        pixels: (N, 256, kL, kL); a node's patch is the k x k of them at its place.
        weight: (1, 512, 1, 1), of a score's linear layer over [node ; pixel].
    """
    width, side = nodes.shape[1], nodes.shape[-1]
    k = pixels.shape[-1] // side
    # Slices, because the exporter would leave a split of constants in the graph.
    of_node, of_pixel = weight[:, :width], weight[:, width:]
    scores = F.conv2d(pixels, of_pixel).reshape(-1, side, k, side, k).transpose(2, 3)
    scores = scores.flatten(3) + F.conv2d(nodes, of_node).squeeze(1).unsqueeze(3)
    shares = _softmax(F.relu(scores)).to(pixels.dtype)  # (N, L, L, k * k)
    shares = shares.reshape(-1, side, side, k, k).transpose(2, 3).reshape(-1, 1, k * side, k * side)
    return F.avg_pool2d(pixels * shares, k) * k**2


class _GuidedAttention(nn.Module):
    """Lets the reconstruction error say where to look; the official `GuidedAttention`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.gated = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1, bias=False),
            nn.ReLU(),
            _pointwise(3, 1),
            nn.Sigmoid(),
        )
        self.h = nn.Sequential(_pointwise(728, 728), nn.BatchNorm2d(728), nn.ReLU())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the guided features (N, 728, L, L) and the attention (N, 1, L, L).

        Args:
            x: (N, 728, L, L).
            error: (N, 3, S, S), 0..2.
        """
        attention = self.gated(_resize(error, x.shape[-2:]))
        return attention * self.h(x) + self.dropout(x), attention


class Recce(nn.Module):
    """Xception with a decoder for its middle and two joints between them."""

    def __init__(self, config: RecceConfig) -> None:
        super().__init__()
        self.config = config
        self.input_spec = InputSpec(size_px=config.size_px, margin=config.margin)
        self.encoder = Xception()
        self.decoder1 = _upsampling(728, 256)
        self.decoder2 = XceptionBlock(256, 256, 3)
        self.decoder3 = _upsampling(256, 128)
        self.decoder4 = XceptionBlock(128, 128, 3)
        self.decoder5 = _upsampling(128, 64)
        self.decoder6 = nn.Sequential(_pointwise(64, 3), nn.Tanh())
        self.reasoning = _GraphReasoning(config.dropout)
        self.attention = _GuidedAttention(config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(2048, config.num_classes)
        self.calibration = Calibration()

    def normalise(self, images: Tensor) -> Tensor:
        """See `AttackModel.normalise`: 0..255 to -1..1."""
        return images.float() / 127.5 - 1

    def forward(self, images: Tensor) -> RecceOutputs:
        """Return logits, reconstruction and what the loss needs of normalised (N, 3, S, S)."""
        encoder = self.encoder
        x = F.relu(encoder.stem1(self._with_noise(images) if self.training else images))
        x = F.relu(encoder.stem2(x))
        e4 = encoder.blocks(x, 1, 4)  # (N, 728, L, L)
        d2 = self.decoder2(self.decoder1(self.dropout(e4)))  # (N, 256, 2L, 2L)
        d4 = self.decoder4(self.decoder3(d2))  # (N, 128, 4L, 4L)
        drawn = self.decoder6(self.decoder5(d4))  # (N, 3, 8L, 8L)
        reconstruction = _resize(drawn, images.shape[-2:])
        error = (images - reconstruction).abs()

        e7 = encoder.blocks(e4, 5, 7)
        e8 = encoder.blocks(self.reasoning(e7, d2, d4) + e7, 8, 8)
        guided, attention = self.attention(e8, error)
        x = F.relu(encoder.tail(encoder.blocks(guided, 9, 12)))  # (N, 2048, ~L/2, ~L/2)
        return RecceOutputs(
            logits=self.fc(self.dropout(x.mean(dim=(2, 3)))),
            reconstruction=reconstruction,
            error=error,
            attention=attention,
            features=(e4, d2, d4),
        )

    def _with_noise(self, images: Tensor) -> Tensor:
        """Disturb every other image, by chance; the official code's white noise."""
        chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        noise = self.config.noise_std * torch.randn_like(images)
        return (images + chosen * noise).clamp(-1, 1)

    def attack_logit(self, outputs: RecceOutputs) -> Tensor:
        """See `AttackModel.attack_logit`."""
        if self.config.num_classes == 1:
            return outputs.logits[:, 0]
        return outputs.logits[:, ATTACK] - outputs.logits[:, BONA_FIDE]

    def explanation(self, outputs: RecceOutputs) -> Tensor:
        """Return (N, 1, S, S): half the mean |image - reconstruction| over the channels, 0..1."""
        return outputs.error.mean(dim=1, keepdim=True) / 2

    def loss_terms(self, outputs: RecceOutputs, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the terms of the official loss, weighted: classification, reconstruction, metric.

        The classification term is flooded (Ishida et al., ICML 2020): below `flood` its slope is
        turned round, so that it never falls to zero.
        """
        config = self.config
        is_bona_fide = batch.labels == BONA_FIDE
        logits = outputs.logits.float()
        if config.num_classes == 1:
            classification = F.binary_cross_entropy_with_logits(logits[:, 0], batch.labels.float())
        else:
            classification = F.cross_entropy(logits, batch.labels)
        metric = [metric_loss(s, is_bona_fide) for s in outputs.similarities]
        return {
            "classification": (classification - config.flood).abs() + config.flood,
            "reconstruction": config.weight_reconstruction
            * reconstruction_loss(outputs.error, is_bona_fide),
            "metric": config.weight_metric * torch.stack(metric).sum(),
        }


def reconstruction_loss(error: Tensor, is_bona_fide: Tensor) -> Tensor:
    """Return the mean error of the bona fide faces, 0 without any.

    Args:
        error: (N, 3, S, S) |image - reconstruction|.
        is_bona_fide: (N,) bool.
    """
    per_face = error.mean(dim=(1, 2, 3)) * is_bona_fide
    return per_face.sum() / is_bona_fide.sum().clamp_min(1)


def metric_loss(similarities: Tensor, is_bona_fide: Tensor) -> Tensor:
    """Return how much less bona fide faces resemble each other than attacks, with margin 1.

    Two attacks make no pair. Without two bona fide faces, or without an attack, the mean that lacks
    its pairs is 0.

    Args:
        similarities: (N, N), 0..1, symmetric.
        is_bona_fide: (N,) bool.
    """
    itself = torch.eye(len(is_bona_fide), dtype=torch.bool, device=is_bona_fide.device)
    both = is_bona_fide[:, None] & is_bona_fide & ~itself
    mixed = is_bona_fide[:, None] ^ is_bona_fide
    alike, unlike = ((similarities * pairs).sum() / (pairs.sum() + 1e-6) for pairs in (both, mixed))
    return (1 - alike + unlike).clamp_min(0)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors from a state dict of the official code.

    Where that has linear layers on patches, we have 1 x 1 convolutions.

    Args:
        state: official names, e.g. `reasoning.reweight_ab.0.weight`, tensors.
    """
    return {
        re.sub(r"^(reasoning\.reweight_a[bc])\.0\.", r"\1.", name): (
            value[:, :, None, None] if name.startswith("reasoning.") and value.ndim == 2 else value
        )
        for name, value in state.items()
    }


def _from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return from_official({name.removeprefix("model."): value for name, value in state.items()})


def _from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"encoder.{name}": value for name, value in from_cadene(state).items()}


METHOD = Method(
    config=RecceConfig,
    build=Recce,
    layouts=(
        Layout(
            name="DeepfakeBench",
            # Not every name starts with `model.`, so the importer leaves it on.
            marks=frozenset({"model.reasoning.reweight_ab.0.weight", "backbone.conv1.weight"}),
            translate=_from_deepfakebench,
            options={"num_classes": 2, "size_px": 256},
            ignored={
                r"backbone\.": "a second Xception that DeepfakeBench builds and never uses",
                r"model\.encoder\.fc\.": "the 1000 ImageNet classes",
            },
        ),
        Layout(
            name="official",
            marks=frozenset({"reasoning.reweight_ab.0.weight", "encoder.fc.weight"}),
            translate=from_official,
            ignored={r"encoder\.fc\.": "the 1000 ImageNet classes"},
        ),
        Layout(
            name="Xception (ImageNet; Cadene, timm)",
            marks=frozenset({"conv1.weight", "block12.rep.4.pointwise.weight", "bn4.weight"}),
            translate=_from_imagenet,
            ignored={r"(fc|last_linear)\.": "the 1000 ImageNet classes"},
            fills=("encoder.",),
        ),
    ),
    publications=(
        Publication(
            name="deepfakebench",
            where="https://github.com/SCLBD/DeepfakeBench/releases/tag/v1.0.1 (recce_best.pth)",
            licence="CC BY-NC 4.0 by DeepfakeBench's README; trained on FaceForensics++, whose "
            "terms allow research only",
            family="digital",
        ),
        Publication(
            name="official",
            where="https://github.com/VISION-SJTU/RECCE (a link of the authors)",
            licence="not stated for the weights; the code is MIT",
            family="digital",
        ),
    ),
)
