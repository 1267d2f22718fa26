"""FGHV: Feature Generation and Hypothesis Verification for Reliable Face Anti-Spoofing.

Liu, Lu, Xu, Yang, Ding, Ma; AAAI 2022, pp. 1782-1791, arXiv:2112.14894. **This is a reconstruction
from the published description, not a verified port**: the authors' repository (lustoo/FGHV) holds
a README and figures and never held code, and nobody else's implementation is known. Only the
DepthNet backbone equals released code in numbers (Tencent/TFace, ANRL, by the same laboratory;
Apache-2.0). Results of the paper must not be expected from it.

Unknown faces are not forced into one feature space. Two small networks turn standard-normal noise
into feature vectors, one into hypotheses g of real faces, one into hypotheses h of known attacks. A
face is judged by the cosines of its feature with them: real faces agree with every g alike and
disagree with every h. Where that leaves a face undecided, a second graph asks which of the networks
can explain the feature with ordinary noise: it moves the latents uphill on the cosine and compares
how far they leave the normal distribution (`Fghv.refine`, docs/decisions/0014).

Differences from the paper: sizes of the generators, K, T, step size, loss weights, the treatment of
attacks in `relative_correlation`, and both scores are ours, because none of them is published. The
`resnet18` backbone, meant for streaming, is ours too. The method was published for presentation
attacks; using it on deepfakes is our extension.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models._backbones import ResNet18
from models._calibration import Calibration
from models._contract import BONA_FIDE, InputSpec, Layout, Method
from models._precision import Float32Module, float32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models._contract import FaceBatch

_FEATURE: Final = 512
_LATENT: Final = 128
_SLOPE: Final = 0.2  # of the LeakyReLU
_MAX_MARGIN: Final = 1.999  # of the cosines, +-2; keeps the log-odds finite


class FghvConfig(BaseModel, frozen=True, extra="forbid"):
    """Options; where nothing was published the defaults are ours."""

    backbone: Literal["depthnet3", "depthnet6", "resnet18"] = Field(
        "depthnet6", description="depthnet6 sees RGB and HSV, as the lab's released code does."
    )
    size_px: int = Field(
        256, multiple_of=32, description="Side of the network's input, pixels. A multiple of 32."
    )
    margin: float = Field(1.3, gt=0, description="Crop side over face box; ours.")
    hypotheses: int = Field(64, ge=2, description="Number of each kind, the paper's K.")
    rcc: Literal["linear", "logistic"] = Field(
        "linear", description="Form of the relative correlation; logistic saturates."
    )
    temperature: float = Field(
        0.1, gt=0, description="Divides the margin in the logistic form, tau."
    )
    weight_variance: float = Field(1.0, ge=0, description="Factor on the loss's term `variance`.")
    weight_correlation: float = Field(
        1.0, ge=0, description="Factor on the loss's term `correlation`."
    )
    weight_discrimination: float = Field(
        1.0, ge=0, description="Factor on the loss's term `discrimination`."
    )
    refinement_steps: int = Field(20, ge=1, description="Number of refinement steps, T.")
    refinement_rate: float = Field(20.0, gt=0, description="Size of a refinement step, eta.")
    refinement_band: tuple[float, float] = Field(
        (0.2, 0.8), description="First probabilities, inclusive, that are refined."
    )


class FghvOutputs(NamedTuple):
    """What one forward pass yields; f, g, h, cg, ch and v of the specification."""

    feature_map: Tensor  # (N, 512, S/32, S/32)
    feature: Tensor  # f (N, 512), its mean over the positions
    real_hypotheses: Tensor  # g (K, 512)
    attack_hypotheses: Tensor  # h (K, 512)
    real_cosines: Tensor  # cg (N, K), -1..1
    attack_cosines: Tensor  # ch (N, K), -1..1
    margin: Tensor  # (N,), -2..2: mean cg - mean ch; high = bona fide
    variance: Tensor  # v (N,): population variance of cg; low = known and bona fide


@float32
def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., D) at length 1, in float32: a sum of 512 squares overflows float16."""
    return vectors / (vectors.square().sum(-1, keepdim=True) + 1e-12).sqrt()


@float32
def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine (N, M) of each row of a (N, D) with each row of b (M, D)."""
    return unit(a) @ unit(b).T


@float32
def population_variance(values: Tensor, dim: int) -> Tensor:
    """Return the mean squared deviation from the mean along `dim`.

    Around 1e-3 for cosines: taken in two passes, as a difference of means would be noise.
    """
    return (values - values.mean(dim, keepdim=True)).square().mean(dim)


def rgb_to_hsv(images: Tensor) -> Tensor:
    """Convert 8-bit RGB to HSV as OpenCV does, rounding included: hue is halved to fit a byte.

    OpenCV multiplies by reciprocals rounded to 12 fractional bits. All products stay below 2^24, so
    float32 repeats its integers exactly.

    Args:
        images: (N, 3, H, W), whole numbers 0..255 of any dtype.

    Returns:
        (N, 3, H, W) float32, whole: H 0..179, S 0..255, V 0..255.
    """
    r, g, b = images.float().unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    spread = value - torch.minimum(torch.minimum(r, g), b)
    saturation = _rounded(spread * (255 * 4096 / value.clamp_min(1)).round())
    sector = torch.where(
        value == r, g - b, torch.where(value == g, b - r + 2 * spread, r - g + 4 * spread)
    )
    hue = _rounded(sector * (30 * 4096 / spread.clamp_min(1)).round())
    return torch.stack([torch.where(hue < 0, hue + 180, hue), saturation, value], dim=1)


def _rounded(fixed_point: Tensor) -> Tensor:
    return (fixed_point / 4096 + 0.5).floor()


class _ConvUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Down(nn.Module):
    """Three units, then half the size."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv_block1 = _ConvUnit(inputs, 128)
        self.conv_block2 = _ConvUnit(128, 196)
        self.conv_block3 = _ConvUnit(196, 128)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv_block3(self.conv_block2(self.conv_block1(x))), 2)


class _Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_block1 = _ConvUnit(384, 128)
        self.conv_block2 = _ConvUnit(128, 256)
        self.conv_block3 = _ConvUnit(256, _FEATURE)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv_block1(x), 2)
        x = F.max_pool2d(self.conv_block2(x), 2)
        embedded: Tensor = self.conv_block3(x)
        return embedded


class DepthNet(nn.Module):
    """The backbone of the laboratory's ANRL (Tencent/TFace), batch norm variant, without heads."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inc = _ConvUnit(inputs, 64)
        self.down1 = _Down(64)
        self.down2 = _Down(128)
        self.down3 = _Down(128)
        self.embedder = _Embedder()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return down1, down2, down3 and the embedded map: strides 2, 4, 8 and 32, finest first."""
        down1 = self.down1(self.inc(images))  # (N, 128, S/2, S/2)
        down2 = self.down2(down1)
        down3 = self.down3(down2)
        pooled = [F.avg_pool2d(down1, 4), F.avg_pool2d(down2, 2), down3]
        return down1, down2, down3, self.embedder(torch.cat(pooled, dim=1))


class FeatureGenerator(Float32Module):
    """Latents to hypotheses: a fully connected network without norm, so no batch leaks in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_LATENT, 256)
        self.fc2 = nn.Linear(256, 512)
        self.fc3 = nn.Linear(512, _FEATURE)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            nn.init.zeros_(layer.bias)

    @float32
    def forward(self, latents: Tensor) -> Tensor:
        """Return hypotheses (..., 512) for latents (..., 128); only their direction matters."""
        x = F.leaky_relu(self.fc1(latents), _SLOPE)
        x = F.leaky_relu(self.fc2(x), _SLOPE)
        hypotheses: Tensor = self.fc3(x)
        return hypotheses

    @float32
    def cosine_gradient(self, latents: Tensor, directions: Tensor) -> Tensor:
        """Return the gradient of the cosine of hypothesis and direction, with respect to latents.

        Written out, because an exported graph has no autograd. Before layer i lies a_i, the slope
        of LeakyReLU is 1 or 0.2 by its sign, and y = G(z) has unit vector y' and length |y|:
        d cos / dy = (u - cos y') / |y|.

        Args:
            latents: z, (N, K, 128).
            directions: u, (N, 1, 512), of length 1.

        Returns:
            (N, K, 128).
        """
        a1 = self.fc1(latents)
        a2 = self.fc2(F.leaky_relu(a1, _SLOPE))
        y = self.fc3(F.leaky_relu(a2, _SLOPE))
        length = (y.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        y = y / length
        gradient: Tensor = (directions - (directions * y).sum(-1, keepdim=True) * y) / length
        gradient = gradient @ self.fc3.weight * _leaky_relu_slope(a2)
        gradient = gradient @ self.fc2.weight * _leaky_relu_slope(a1)
        return gradient @ self.fc1.weight


def _leaky_relu_slope(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, _SLOPE)


@float32
def latent_divergence(latents: Tensor) -> Tensor:
    """Return how far K latents of each face lie from the standard normal, (N,), 0 or more.

    Mean over the dimensions of KL(N(mu, s2) || N(0, 1)), mu and s2 taken over the K latents.

    Args:
        latents: (N, K, 128).
    """
    mean = latents.mean(dim=1)
    variance = population_variance(latents, 1) + 1e-6
    return (0.5 * (variance + mean.square() - 1 - variance.log())).mean(dim=-1)


class Latents(Float32Module):
    """The K latents that both generators get: drawn anew for each training step, else stored.

    The stored ones are part of the weights, so that all frames and runtimes see the same: a score
    must not flicker with the noise.
    """

    z: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("z", torch.randn((count, _LATENT), generator=generator))

    def forward(self) -> Tensor:
        """Return (K, 128)."""
        return torch.randn_like(self.z) if self.training else self.z


class EvidenceRegression(Float32Module):
    """Logistic regression on margin, log variance and difference of divergences.

    Until `fit` it is minus the margin plus the difference: an order, not a probability.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([-1.0, 0.0, 1.0]))
        self.register_buffer("bias", torch.tensor(0.0))

    @float32
    def forward(self, evidence: Tensor) -> Tensor:
        """Return log-odds of an attack (N,) for evidence (N, 3)."""
        return evidence @ self.weight + self.bias

    def fit(self, evidence: Tensor, labels: Tensor) -> None:
        """Fit to development data: Newton steps on standardised evidence, ridge penalty 1/2 |w|^2.

        The penalty keeps the weights finite where the classes separate.

        Args:
            evidence: (N, 3).
            labels: (N,), BONA_FIDE or ATTACK.

        Raises:
            ValueError: only one of the classes is there.
        """
        target = labels.double()
        if not 0 < target.mean() < 1:
            raise ValueError("the regression needs bona fide faces and attacks, found one class")
        x = evidence.double()
        mean, spread = x.mean(dim=0), x.std(dim=0).clamp_min(1e-12)
        x = torch.cat([(x - mean) / spread, torch.ones_like(x[:, :1])], dim=1)
        ridge = torch.diag(x.new_tensor([1, 1, 1, 0]))
        fitted = x.new_zeros(4)
        for _ in range(30):
            probability = torch.sigmoid(x @ fitted)
            gradient = x.T @ (probability - target) + ridge @ fitted
            curvature = (x * (probability * (1 - probability))[:, None]).T @ x + ridge
            fitted = fitted - torch.linalg.solve(curvature, gradient)
        self.weight.copy_(fitted[:3] / spread)
        self.bias.copy_(fitted[3] - (fitted[:3] * mean / spread).sum())


class Fghv(nn.Module):
    """Backbone, the two feature generation networks, and the two verifications."""

    def __init__(self, config: FghvConfig) -> None:
        super().__init__()
        self.config = config
        self.input_spec = InputSpec(size_px=config.size_px, margin=config.margin)
        self.refinement_band = config.refinement_band
        self.backbone: nn.Module = (
            ResNet18()
            if config.backbone == "resnet18"
            else DepthNet(6 if config.backbone == "depthnet6" else 3)
        )
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.rf_fgn = FeatureGenerator()
        self.ka_fgn = FeatureGenerator()
        self.latents = Latents(config.hypotheses)
        self.regression = EvidenceRegression()
        self.calibration = Calibration()

    def normalise(self, images: Tensor) -> Tensor:
        """See `AttackModel.normalise`: -1..1; HSV is appended for depthnet6, (N, 6, S, S)."""
        images = images.float()
        if self.config.backbone == "depthnet6":
            images = torch.cat([images, rgb_to_hsv(images)], dim=1)
        return images / 127.5 - 1

    def forward(self, images: Tensor) -> FghvOutputs:
        """Return the verdicts of the hypotheses on normalised (N, 3 or 6, S, S)."""
        feature_map = self.backbone(images)[-1]
        feature = feature_map.float().mean(dim=(2, 3))
        latents = self.latents()
        real, attack = self.rf_fgn(latents), self.ka_fgn(latents)
        real_cosines, attack_cosines = cosines(feature, real), cosines(feature, attack)
        return FghvOutputs(
            feature_map=feature_map,
            feature=feature,
            real_hypotheses=real,
            attack_hypotheses=attack,
            real_cosines=real_cosines,
            attack_cosines=attack_cosines,
            margin=real_cosines.mean(dim=1) - attack_cosines.mean(dim=1),
            variance=population_variance(real_cosines, 1),
        )

    def attack_logit(self, outputs: FghvOutputs) -> Tensor:
        """See `AttackModel.attack_logit`: log-odds of `score_fast`, (1 - margin / 2) / 2."""
        margin = outputs.margin.clamp(-_MAX_MARGIN, _MAX_MARGIN)
        return ((2 - margin) / (2 + margin)).log()

    def explanation(self, outputs: FghvOutputs) -> Tensor:
        """Return (N, 1, S/32, S/32), 0..1: `score_fast` of each position's own feature.

        Above 1/2 where the position agrees more with attack than with real hypotheses.
        """
        real = unit(outputs.real_hypotheses).mean(dim=0)
        attack = unit(outputs.attack_hypotheses).mean(dim=0)
        positions = unit(outputs.feature_map.movedim(1, -1))  # (N, S/32, S/32, 512)
        margin = (positions * (real - attack)).sum(-1)
        return (0.5 - margin / 4).clamp(0, 1)[:, None]

    def loss_terms(self, outputs: FghvOutputs, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the paper's three constraints, VAR, RCC and DDC, in our reading of its figure.

        Variance: all real-face hypotheses agree alike with a bona fide face; 0 without any.
        Correlation: a face agrees more with the hypotheses of its class than with the other's.
        Discrimination: real-face hypotheses resemble each other, and not those of attacks.
        """
        config = self.config
        bona_fide = (batch.labels == BONA_FIDE).to(outputs.margin)
        margin = (2 * bona_fide - 1) * outputs.margin  # high = right
        real, attack = outputs.real_hypotheses, outputs.attack_hypotheses
        return {
            "variance": config.weight_variance
            * ((outputs.variance * bona_fide).sum() / bona_fide.sum().clamp_min(1)),
            "correlation": config.weight_correlation
            * (
                -margin if config.rcc == "linear" else F.softplus(-margin / config.temperature)
            ).mean(),
            "discrimination": config.weight_discrimination
            * (cosines(real, attack).mean() - cosines(real, real).mean()),
        }

    def refinement_features(self, outputs: FghvOutputs) -> Tensor:
        """See `RefinedModel.refinement_features`: the feature's direction, (N, 512)."""
        return unit(outputs.feature)

    def refine(self, features: Tensor) -> Tensor:
        """See `RefinedModel.refine`: log-odds of the regression on all evidence."""
        logit: Tensor = self.regression(self.evidence(features))
        return logit

    def evidence(self, features: Tensor) -> Tensor:
        """Return (N, 3) margin, ln variance and Delta-KL of feature directions (N, 512).

        Delta-KL is the divergence of the latents with which the real-face network explains the
        feature, minus that of the attack network: low = bona fide.
        """
        z = self.latents.z
        real = cosines(features, self.rf_fgn(z))
        margin = real.mean(dim=1) - cosines(features, self.ka_fgn(z)).mean(dim=1)
        divergences = [
            latent_divergence(self.refined_latents(generator, features))
            for generator in (self.rf_fgn, self.ka_fgn)
        ]
        log_variance = (population_variance(real, 1) + 1e-6).log()
        return torch.stack([margin, log_variance, divergences[0] - divergences[1]], dim=1)

    def refined_latents(self, generator: FeatureGenerator, features: Tensor) -> Tensor:
        """Return (N, K, 128): the stored latents after T ascent steps on the cosine, per face."""
        directions = features[:, None]
        latents = self.latents.z.expand(features.shape[0], -1, -1)  # len() would fix N in a trace
        for _ in range(self.config.refinement_steps):
            step = generator.cosine_gradient(latents, directions)
            latents = latents + self.config.refinement_rate * step
        return latents

    def fit_refinement(self, features: Tensor, labels: Tensor) -> None:
        """See `RefinedModel.fit_refinement`."""
        with torch.no_grad():
            evidence = torch.cat([self.evidence(part) for part in torch.split(features, 32)])
            self.regression.fit(evidence, labels)


def _from_anrl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"^FeatExtractor\.", "backbone.", name)
        new = re.sub(r"^Classifier\.", "backbone.embedder.", new)
        renamed[new.replace(".BN.", ".bn.")] = value
    return renamed


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{name}": value for name, value in state.items()}


_NO_HEAD: Final = "FGHV judges by hypotheses and has no such head"
METHOD = Method(
    config=FghvConfig,
    build=Fghv,
    layouts=(
        Layout(
            name="ANRL DepthNet (Tencent/TFace)",
            marks=frozenset(
                {"FeatExtractor.inc.conv.weight", "Classifier.conv_block1.conv.weight"}
            ),
            translate=_from_anrl,
            options={"backbone": "depthnet6"},  # files for RGB alone need backbone="depthnet3"
            ignored={r"Classifier\.fc\.": _NO_HEAD, r"DepthEstmator\.": _NO_HEAD},
            fills=("backbone.",),
        ),
        Layout(
            name="torchvision ResNet-18 (ImageNet)",
            marks=frozenset({"conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.weight"}),
            translate=_from_torchvision,
            options={"backbone": "resnet18"},
            ignored={r"fc\.": "the ImageNet classifier"},
            fills=("backbone.",),
        ),
    ),
)
