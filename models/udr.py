"""UDR: Towards Unified Defense for Face Forgery and Spoofing Attacks via Dual Space Reconstruction.

Cao, Zhang, Yao, Ding, Yang, Ma; IJCV 2024, doi 10.1007/s11263-024-02151-2 ("UniDefense"). Official
code: VISION-SJTU/UniDefense (MIT).

A decoder learns to rebuild bona fide faces, in space and in frequency. Where the rebuilt face
differs from the seen one, on the pixels and on their Fourier spectrum, two masks weigh the trunk's
features before they are classified. Some of the trunk's convolutions have a branch on the Fourier
spectrum, mixed in by a gate. A second pass on perturbed copies of each batch keeps masks and
embedding where they were.

Differences from the official code:

- Fourier transforms, resizes and poolings are constant matrices, always orthonormal, in training
  too. Equal but for rounding, also for spectra that no real map has.
- The losses find bona fide samples by their labels; the official ones need them first in a batch.
  A term without the samples it needs is 0.
- The style images' colour matching takes the correct root of the covariance; the official code's is
  none (`models/_perturb.py`).
- The two logits are ordered as there, and the score is the probability of the second, an attack.
- A training batch of one face is normalised by the bottleneck's running statistics.
- Ours: other sizes than 380 and 256, whose paddings follow TensorFlow's "same" as at 380; `pruned`
  and `prune_closed_gates`; the explanation, error times spatial mask.
- The crop's margin is ours for forgeries; for spoofing it is the official test setting.
- The log-odds are calibrated on development data (`calibration`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models._calibration import Calibration
from models._contract import ATTACK, BONA_FIDE, InputSpec, Layout, Method
from models._efficientnet import EfficientNetB4
from models._perturb import perturbed
from models._precision import Float32Module, InstanceNorm, float32
from models._resnet import ResNet
from models._spectrum import RealDft2d, Resample, SpatialFrequencyConv, bilinear_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from models._contract import FaceBatch

TrunkName = Literal["effb4", "resnet18", "resnet50"]

_PUBLISHED_SIZE: Final = {"effb4": 380, "resnet18": 256, "resnet50": 256}
_DECODER_DROPOUT: Final = 0.2
_SECOND_PASS_SHARE: Final = 0.1  # of classification and both reconstruction terms
_SPARSITY_PHASE: Final = 0.1  # share of the training before the masks' consistency sets in


def _published_size(options: dict[str, Any]) -> int:
    return _PUBLISHED_SIZE.get(options.get("trunk", ""), 0)


class UdrConfig(BaseModel, frozen=True, extra="forbid"):
    """Options; the defaults are the official configuration for forgeries, UDEB4."""

    trunk: TrunkName = Field(
        "effb4", description="Backbone: EfficientNet-B4 for forgeries, a ResNet for spoofing."
    )
    size_px: int = Field(
        default_factory=_published_size, ge=64, description="380 with effb4, else 256."
    )
    margin: float = Field(1.3, gt=0, description="Crop side over face box.")
    dropout: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of the features set to zero in training; 0.5 for spoofing.",
    )
    pruned: tuple[str, ...] = Field(
        (), description="Convolutions without frequency branch, from `prune_closed_gates`."
    )
    weight_triplet: float = Field(0.1, ge=0, description="Factor on the loss's term `triplet`.")
    weight_reconstruction: float = Field(
        0.1, ge=0, description="Factor on the loss's term `reconstruction`."
    )
    weight_frequency: float = Field(1.0, ge=0, description="Factor on the loss's term `frequency`.")
    weight_mask: float = Field(0.1, ge=0, description="Factor on the loss's term `mask`.")
    weight_orthogonality: float = Field(
        0.1, ge=0, description="Factor on the loss's term `orthogonality`."
    )


class UdrOutputs(NamedTuple):
    """What one forward pass yields; L is S / 32, with resnet18 S / 16, rounded up."""

    logits: Tensor  # (N, 2), column 1 = attack
    embedding: Tensor  # (N, 1792, 512 or 2048), what the classifier sees
    reconstruction: Tensor  # (N, 3, S, S), -1..1
    error: Tensor  # (N, 3, S, S) |clean image - reconstruction|, 0..2
    frequency_mask: Tensor  # (N, 1, L, L // 2 + 1), 0..1, on the half spectrum of the features
    spatial_mask: Tensor  # (N, 1, L, L), 0..1
    features: tuple[Tensor, ...]  # (N, C) each: of the trunk and the decoder, spatial means


def _decoder_block(
    inputs: int, width: int, outputs: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """Return the layers of one block, which doubles the size."""
    return [
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        InstanceNorm(width),
        activation(),
        nn.ConvTranspose2d(width, width, 3, 2, 1, output_padding=1, bias=False),
        InstanceNorm(width),
        activation(),
        nn.Conv2d(width, outputs, 3, padding=1, bias=False),
        InstanceNorm(outputs),
        activation(),
    ]


class _Mask(Float32Module):
    """A mask, 0..1, from the features' mean and maximum and from the reconstruction's error."""

    def __init__(self, errors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 + errors, 1, 1, bias=False)

    @float32
    def forward(self, features: Tensor, error: Tensor) -> Tensor:
        mean, largest = features.mean(1, keepdim=True), features.amax(1, keepdim=True)
        mask: Tensor = self.conv(torch.cat([mean, largest, error], dim=1)).sigmoid()
        return mask


class _Filter(nn.Module):
    """Weighs every position of a map by a mask."""

    def __init__(
        self, channels: int, kernel: int, errors: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            activation(),
        )
        self.mask = _Mask(errors)

    def forward(self, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted map and the mask, float32."""
        mask = self.mask(self.layer1(x), error)
        return mask * x, mask


class DualAttention(nn.Module):
    """Weighs the features in space and in frequency by how wrong the reconstruction is there.

    Args:
        depth: channels of the features.
        size: H = W of the features.
        activation: of the layers before the masks.
        dropout: of the features that are added unweighted.
    """

    def __init__(
        self, depth: int, size: int, activation: Callable[[], nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.freq_filter = _Filter(2 * depth, 1, 6, activation)
        self.spat_filter = _Filter(depth, 3, 3, activation)
        self.fuse_coef = nn.Parameter(torch.tensor(0.0))
        self.dropout = nn.Dropout(dropout)
        self.dft = RealDft2d(size)

    def forward(self, x: Tensor, difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted features, frequency mask and spatial mask.

        Args:
            x: (N, depth, L, L).
            difference: (N, 3, L, L) float32, reconstruction - image.
        """
        spectrum, frequency_mask = self.freq_filter(
            self.dft(x).to(x.dtype), self.dft(difference).abs()
        )
        frequency = self.dft.inverse(spectrum).to(x.dtype)
        spatial, spatial_mask = self.spat_filter(x, difference.abs())
        share = self.fuse_coef.sigmoid()
        fused = (1 - share) * spatial.to(x.dtype) + share * frequency
        return fused + self.dropout(x), frequency_mask, spatial_mask


class _Variant(NamedTuple):
    decoder: tuple[tuple[int, int], ...]  # width and output channels of each block
    activation: type[nn.SiLU] | type[nn.ReLU]
    levels: int  # features that the triplet term takes: the trunk's, and the first blocks'


_VARIANTS: Final = {
    "effb4": _Variant(((80, 80), (40, 40), (20, 20)), nn.SiLU, 3),
    "resnet18": _Variant(((128, 128), (64, 32)), nn.ReLU, 2),
    "resnet50": _Variant(((256, 256), (128, 128), (64, 32)), nn.ReLU, 2),
}


class Udr(nn.Module):
    """Trunk, decoder, attention between them, classifier; a `TwoPassModel`."""

    def __init__(self, config: UdrConfig) -> None:
        super().__init__()
        self.config = config
        self.input_spec = InputSpec(size_px=config.size_px, margin=config.margin)
        size = config.size_px
        blocks, activation, self._levels = _VARIANTS[config.trunk]
        self.trunk: EfficientNetB4 | ResNet
        if config.trunk == "effb4":
            self.trunk = EfficientNetB4(size)
        else:
            self.trunk = ResNet(18 if config.trunk == "resnet18" else 50, size)
        decoder = []
        channels = self.trunk.channels
        for width, outputs in blocks:
            decoder.append(_decoder_block(channels, width, outputs, activation))
            channels = outputs
        decoder[-1] += [nn.Conv2d(channels, 3, 3, padding=1, bias=False), nn.Tanh()]
        self.decoder = nn.ModuleList(nn.Sequential(*layers) for layers in decoder)
        decoded, embedded = self.trunk.size * 2 ** len(decoder), self.trunk.embedding_size
        self.enlarge = Resample(bilinear_matrix(decoded, size))
        self.shrink_decoded = Resample(bilinear_matrix(decoded, embedded))
        self.shrink_image = Resample(bilinear_matrix(size, embedded))
        self.enlarge_mask = Resample(bilinear_matrix(embedded, size))
        self.attention = DualAttention(self.trunk.depth, embedded, activation, config.dropout)
        self.bottleneck = nn.BatchNorm1d(self.trunk.width)
        self.bottleneck.bias.requires_grad = False  # stays 0
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.trunk.width, 2)
        self.image_dft = RealDft2d(size)  # of the loss only
        self.calibration = Calibration()
        _prune(self, config.pruned)

    def normalise(self, images: Tensor) -> Tensor:
        """See `AttackModel.normalise`: 0..255 to -1..1."""
        return images.float() / 127.5 - 1

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """See `TwoPassModel.perturb`; one kind of perturbation for the whole batch."""
        return perturbed(images, labels)

    def forward(self, images: Tensor, clean: Tensor | None = None) -> UdrOutputs:
        """See `TwoPassModel.__call__`; images of `size_px`, the size of the constant matrices."""
        clean = images if clean is None else clean
        features = self.trunk.features(images)
        levels = [features.mean(dim=(2, 3))]
        decoded = F.dropout(features, _DECODER_DROPOUT, self.training)
        for block in self.decoder:
            decoded = block(decoded)
            levels.append(decoded.mean(dim=(2, 3)))
        reconstruction = self.enlarge(decoded)
        difference = self.shrink_decoded(decoded.detach()) - self.shrink_image(clean)
        attended, frequency_mask, spatial_mask = self.attention(
            self.trunk.embed(features), difference
        )
        embedding = self._normed(self.trunk.summarise(attended))
        return UdrOutputs(
            logits=self.classifier(self.dropout(embedding)),
            embedding=embedding,
            reconstruction=reconstruction,
            error=(clean.float() - reconstruction).abs(),
            frequency_mask=frequency_mask,
            spatial_mask=spatial_mask,
            features=tuple(levels[: self._levels]),
        )

    def _normed(self, pooled: Tensor) -> Tensor:
        norm = self.bottleneck
        if self.training and len(pooled) == 1:  # one value per channel has no statistics
            return F.batch_norm(
                pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        return cast("Tensor", norm(pooled))

    def attack_logit(self, outputs: UdrOutputs) -> Tensor:
        """See `AttackModel.attack_logit`."""
        return outputs.logits[:, ATTACK] - outputs.logits[:, BONA_FIDE]

    def explanation(self, outputs: UdrOutputs) -> Tensor:
        """Return (N, 1, S, S): reconstruction error times spatial mask, both 0..1."""
        error = outputs.error.mean(dim=1, keepdim=True) / 2
        return error * cast("Tensor", self.enlarge_mask(outputs.spatial_mask))

    def loss_terms(self, outputs: UdrOutputs, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the weighted terms of the clean pass; spec section 5, step 1."""
        mask = self.config.weight_mask * _sparsity(outputs)
        return self._both_passes(outputs, batch, 1.0) | {"mask": mask}

    def second_loss_terms(
        self, outputs: UdrOutputs, batch: FaceBatch, *, first: UdrOutputs, progress: float
    ) -> dict[str, Tensor]:
        """See `TwoPassModel.second_loss_terms`; spec section 5, step 2.

        The term `mask` keeps the masks sparse in the first tenth of the training; after that it
        keeps them where they were without the perturbation.
        """
        if progress <= _SPARSITY_PHASE:
            mask = _sparsity(outputs)
        else:
            mask = mask_divergence(
                outputs.frequency_mask, first.frequency_mask.detach()
            ) + mask_divergence(outputs.spatial_mask, first.spatial_mask.detach())
        config = self.config
        return self._both_passes(outputs, batch, _SECOND_PASS_SHARE) | {
            "mask": config.weight_mask * mask,
            "orthogonality": config.weight_orthogonality
            * orthogonality(outputs.embedding, first.embedding.detach()),
        }

    def _both_passes(
        self, outputs: UdrOutputs, batch: FaceBatch, share: float
    ) -> dict[str, Tensor]:
        """Return the terms that both passes have; the second's weigh less but for the triplet."""
        config = self.config
        is_bona_fide = batch.labels == BONA_FIDE
        spatial = outputs.error.mean(dim=(1, 2, 3))
        frequency = self.frequency_error(outputs.reconstruction, self.normalise(batch.images))
        triplets = [weighted_triplet(f, is_bona_fide) for f in outputs.features]
        return {
            "classification": share * F.cross_entropy(outputs.logits, batch.labels),
            "triplet": config.weight_triplet * torch.stack(triplets).sum(),
            "reconstruction": share
            * config.weight_reconstruction
            * _bona_fide_mean(spatial, is_bona_fide),
            "frequency": share * config.weight_frequency * _bona_fide_mean(frequency, is_bona_fide),
        }

    def frequency_error(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Return (N,) mean |Re| + |Im| of the half spectrum of the difference (N, 3, S, S)."""
        real, imaginary = self.image_dft(reconstruction - images).abs().chunk(2, dim=1)
        return cast("Tensor", real + imaginary).mean(dim=(1, 2, 3))


def _sparsity(outputs: UdrOutputs) -> Tensor:
    return outputs.frequency_mask.mean() + outputs.spatial_mask.mean()


def _bona_fide_mean(values: Tensor, is_bona_fide: Tensor) -> Tensor:
    """Return the mean of the bona fide samples' (N,) values, 0 without any."""
    return (values * is_bona_fide).sum() / is_bona_fide.sum().clamp_min(1)


@float32
def weighted_triplet(features: Tensor, is_bona_fide: Tensor) -> Tensor:
    """Pull bona fide samples together and push attacks away, the hardest pairs most.

    Each bona fide sample is an anchor: p and n are its distances to the others and to the attacks,
    averaged with the weights softmax(distance) and softmax(-distance); the term is
    log(1 + exp(p - n)).

    Args:
        features: (N, C).
        is_bona_fide: (N,) bool.

    Returns:
        Scalar; 0 with fewer than two bona fide samples or no attack.
    """
    bona_fide, attack = features[is_bona_fide], features[~is_bona_fide]
    if len(bona_fide) < 2 or len(attack) == 0:
        return 0 * features.sum()
    positive = _distance(bona_fide, bona_fide)
    itself = torch.eye(len(bona_fide), dtype=torch.bool, device=features.device)
    hardness = positive.masked_fill(itself, -torch.inf).softmax(dim=1)
    negative = _distance(bona_fide, attack)
    near = (hardness * positive).sum(dim=1)
    far = ((-negative).softmax(dim=1) * negative).sum(dim=1)
    return F.softplus(near - far).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # Clamped, because the slope of the square root is infinite where two samples coincide.
    return (a[:, None] - b).square().sum(-1).clamp_min(1e-12).sqrt()


@float32
def mask_divergence(mask: Tensor, target: Tensor) -> Tensor:
    """Return KL(target || mask) of masks (N, 1, H, W), as distributions over their positions."""
    return F.kl_div(
        mask.flatten(1).log_softmax(dim=1),
        target.flatten(1).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


@float32
def orthogonality(embedding: Tensor, target: Tensor) -> Tensor:
    """Make features of two passes agree each with itself, and with no other; Barlow-style.

    Args:
        embedding: (N, D).
        target: (N, D) of the same faces.

    Returns:
        Scalar; 0 for a single face, which has no correlations.
    """
    n = len(embedding)
    if n < 2:
        return 0 * embedding.sum()
    correlation = _standardised(embedding).T @ _standardised(target) / n
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    d = len(correlation)
    return (correlation.diagonal() - 1).square().mean() + 0.005 * off_diagonal / (d * (d - 1))


def _standardised(values: Tensor) -> Tensor:
    std, mean = torch.std_mean(values, dim=0)
    return (values - mean) / (std + 1e-6)


def prune_closed_gates(model: Udr, threshold: float) -> list[str]:
    """Leave out the frequency branches whose gate is below a threshold; in place.

    What goes missing is gate x branch of each; measure what that does to the scores, on faces.
    `model.config` then says what was left out, so that the same network can be built again.

    Args:
        model: trained; all gates start at 4.5e-5.
        threshold: on sigmoid(sf_coef), 0..1.

    Returns:
        Names of the pruned convolutions, which are those that `UdrConfig.pruned` takes.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, SpatialFrequencyConv)
        and module.freq_conv is not None
        and module.sf_coef.sigmoid() < threshold
    ]
    _prune(model, names)
    model.config = model.config.model_copy(update={"pruned": (*model.config.pruned, *names)})
    return names


def _prune(model: Udr, names: Sequence[str]) -> None:
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, SpatialFrequencyConv)}
    if unknown := set(names) - convolutions.keys():
        raise ValueError(
            f"pruned: no frequency branch at {sorted(unknown)}; there is one at "
            f"{', '.join(convolutions)}"
        )
    for name in names:
        convolutions[name].prune()


_OFFICIAL_NAMES: Final = (
    (r"^(backbone|extractor)\.", "trunk."),
    (r"^emb_block", "trunk.emb_block"),
    (r"(?<=\.)norm(?=\d\.)", "bn"),
    (r"^(?=freq_filter|spat_filter|fuse_coef)", "attention."),
    (r"(?<=_filter\.)layer2\.0\.", "mask.conv."),
    (r"^classifier\.fc\.", "classifier."),
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of the official training code to this module's names.

    Args:
        state: official names, e.g. `backbone._blocks.6._depthwise_conv.sf_coef`.
    """
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"^dec_block(\d)", lambda m: f"decoder.{int(m[1]) - 1}", name)
        for pattern, replacement in _OFFICIAL_NAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed


def _to_trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"trunk.{name}": value for name, value in state.items()}


# An ImageNet file fills the trunk but for the frequency branches and the blocks that are ours.
_EFFICIENTNET_FILLS: Final = (
    *(f"trunk.{part}." for part in ("_conv_stem", "_bn0", "_conv_head", "_bn1")),
    *(
        f"trunk._blocks.{block}.{part}"
        for block in range(32)
        for part in ("_expand_conv", "_depthwise_conv.weight", "_bn", "_se_", "_project_conv")
    ),
)
_RESNET_FILLS: Final = (
    "trunk.conv1.",
    "trunk.bn1.",
    *(
        f"trunk.layer{layer}.{block}.{part}"
        for layer in (1, 2, 3)
        for block in range(6)
        for part in ("conv1.weight", "conv2.weight", "conv3.weight", "bn", "downsample")
    ),
)
_REPLACED: Final = "UDR has layers of its own in its place"

METHOD = Method(
    config=UdrConfig,
    build=Udr,
    layouts=(
        Layout(
            name="official, EfficientNet-b4",
            marks=frozenset({"backbone._conv_stem.weight", "fuse_coef"}),
            translate=from_official,
        ),
        Layout(
            name="official, ResNet-50",
            marks=frozenset({"extractor.layer1.0.conv3.weight", "fuse_coef"}),
            translate=from_official,
            options={"trunk": "resnet50", "dropout": 0.5},
        ),
        Layout(
            name="official, ResNet-18",
            marks=frozenset({"extractor.layer1.0.conv2.weight", "fuse_coef"}),
            translate=from_official,
            options={"trunk": "resnet18", "dropout": 0.5},
        ),
        Layout(
            name="EfficientNet-b4 (ImageNet, lukemelas)",
            marks=frozenset({"_conv_stem.weight", "_blocks.31._project_conv.weight"}),
            translate=_to_trunk,
            ignored={r"_fc\.": _REPLACED},
            fills=_EFFICIENTNET_FILLS,
        ),
        Layout(
            name="ResNet-50 (ImageNet, torchvision)",
            marks=frozenset({"layer1.0.conv3.weight", "layer3.5.conv3.weight"}),
            translate=_to_trunk,
            options={"trunk": "resnet50", "dropout": 0.5},
            ignored={r"(layer4|fc)\.": _REPLACED},
            fills=_RESNET_FILLS,
        ),
        Layout(
            name="ResNet-18 (ImageNet, torchvision)",
            marks=frozenset({"layer1.0.conv2.weight", "layer3.1.conv2.weight"}),
            translate=_to_trunk,
            options={"trunk": "resnet18", "dropout": 0.5},
            ignored={r"(layer4|fc)\.": _REPLACED},
            fills=_RESNET_FILLS,
        ),
    ),
)
