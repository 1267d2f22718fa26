"""HighFreq: Generalizing Face Forgery Detection with High-frequency Features.

Luo, Zhang, Yan, Liu; CVPR 2021, arXiv:2103.12376. Official code: crywang/face-forgery-detection
(Apache-2.0; network and loss only). SCLBD/DeepfakeBench carries a variant, "srm" (CC BY-NC 4.0).

Manipulated faces differ from real ones in their high frequencies, which survive a change of the
manipulation better than colours and shapes do. Two Xceptions look at a face, one at its pixels and
one at what fixed high-pass filters leave of them; filtered maps of the first flow into the second
at two depths, a map of the filter residual (the explanation) guides the first, and two attention
modules let each stream read from the other. It detects digital manipulation: swaps, reenactment.
Nothing is known of its use against prints, replays or masks.

Differences from paper and code:

- `fusion_residual`: the official code adds the channel-weighted fused map to the map itself,
  DeepfakeBench (on a co-author's advice, it says) takes the weighted map alone.
- The grouped filters follow both codes, not the paper's text: the kernels lie filter by filter
  while the groups take three neighbours, so that most channels see one filter, thrice.
- The residual that guides the attention is filtered twice, as in both codes.
- `am_margin` is 0.45, DeepfakeBench's "by the author", where the official default is 0.5. The head
  is linear as in both codes; the official loss file's cosine head, which no network there uses, is
  `head="cosine"`. The arc margin and the focal factor are options of the official loss.
- As in DeepfakeBench, the score is the softmax of the logits without the loss's scale.
- DeepfakeBench's Gaussian noise and blur, and the second stream's classifier, feed nothing: left
  out.
- Kernels are whole numbers and their responses divided afterwards, so that a flat patch cancels
  exactly in any precision.
- Other sizes than 256 px are ours: the attention's two linears are as wide as the map has places.
- `encoder="efficientnet_lite0"`, for streaming on a CPU, is ours (`SmallHighFreq`): a Lite0 looks
  at the pixels, a few plain convolutions at the filtered ones, four by four of them folded into
  channels, so that nothing is thrown away. The streams meet as in the paper, but they are joined at
  a sixteenth of the size, and what follows runs once.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models._backbones import EfficientNetLite0, LiteHead
from models._calibration import Calibration
from models._contract import ATTACK, BONA_FIDE, InputSpec, Layout, Method, Publication
from models._precision import Float32Module, float32
from models._xception import Xception, from_cadene

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models._contract import FaceBatch


# Three high-pass filters of the steganalysis rich model (SRM), whole numbers and their divisors.
_FILTERS: Final = (
    (
        (0, 0, 0, 0, 0),
        (0, -1, 2, -1, 0),
        (0, 2, -4, 2, 0),
        (0, -1, 2, -1, 0),
        (0, 0, 0, 0, 0),
    ),
    (
        (-1, 2, -2, 2, -1),
        (2, -6, 8, -6, 2),
        (-2, 8, -12, 8, -2),
        (2, -6, 8, -6, 2),
        (-1, 2, -2, 2, -1),
    ),
    (
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
        (0, 1, -2, 1, 0),
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
    ),
)
_DIVISORS: Final = (4, 12, 2)
_RESPONSE_LIMIT: Final = 3.0
_CHANNELS: Final = 728  # of Xception's middle flow, where the streams attend to each other


_SMALL_WIDTHS: Final = (64, 96, 80)  # of the small high-frequency stream, at S/4, S/8, S/16
_SMALL_GAIN: Final = 4.0  # of the residual there: ImageNet's norms take as much for noise


class HighFreqConfig(BaseModel, frozen=True, extra="forbid"):
    """Options; the defaults are the official network with the recommended loss."""

    encoder: Literal["xception", "efficientnet_lite0"] = Field(
        "xception", description="Of the pixels; efficientnet_lite0, for CPUs, is ours."
    )
    frozen_blocks: int = Field(
        0,
        ge=0,
        le=5,
        description="First blocks of an EfficientNet-Lite0, with its stem, that training leaves "
        "as they are; saves a third of a step.",
    )
    fusion_residual: bool = Field(True, description="F + F * a (official) or F * a.")
    head: Literal["linear", "cosine"] = Field(
        "linear",
        description="Last layer: logits of a linear layer, or cosines with two learned directions.",
    )
    # The attention's maps have a side of exactly size_px / 16 then.
    size_px: int = Field(
        256,
        gt=0,
        multiple_of=32,
        description="Side of the network's input, pixels. A multiple of 32.",
    )
    margin: float = Field(1.3, gt=0, description="Crop side over face box.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of the features set to zero in training."
    )
    am_margin: float = Field(
        0.45, ge=0, description="Margin m of AM-softmax, of a cosine; radians if `arc`."
    )
    am_scale: float = Field(30.0, gt=0, description="Factor s of AM-softmax on the logits.")
    am_form: Literal["cosine", "arc"] = Field(
        "cosine", description="What the margin is taken off: the cosine, or the angle (`arc`)."
    )
    focal_gamma: float = Field(0.0, ge=0, description="Weight (1 - p)^gamma of a sample; 0: none.")

    @model_validator(mode="after")
    def _arc_needs_cosines(self) -> HighFreqConfig:
        if self.am_form == "arc" and self.head != "cosine":
            raise ValueError("am_form 'arc' is a margin on angles: it needs head 'cosine'")
        return self

    @model_validator(mode="after")
    def _only_lite0_is_frozen(self) -> HighFreqConfig:
        if self.frozen_blocks and self.encoder == "xception":
            raise ValueError("frozen_blocks are those of encoder efficientnet_lite0")
        return self


class HighFreqOutputs(NamedTuple):
    """What one forward pass yields; sizes are those of 256 px crops."""

    logits: Tensor  # (N, 2), column 1 = attack; cosines, -1..1, with the cosine head
    pooled: Tensor  # (N, 2048), >= 0: the face as the classifier sees it; small: (N, 1280)
    fused: Tensor  # (N, 2048, 8, 8), >= 0; small: (N, 80, S/16, S/16)
    attention: Tensor  # (N, 1, 125, 125), 0..1: M, where the residual guides the RGB stream


class _HighPass(Float32Module):
    """The three filters on each of C channels, clamped to -3..3; constant.

    Row r of the 3 C kernels is filter r // C, and channel g is filtered by rows 3 g to 3 g + 2: the
    order in which all published weights were trained (see the module's docstring).
    """

    kernel: Tensor
    divisor: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        kernel = torch.tensor(_FILTERS, dtype=torch.float32)[:, None]
        divisor = torch.tensor(_DIVISORS, dtype=torch.float32)[:, None, None]
        self.register_buffer("kernel", kernel.repeat_interleave(channels, 0), persistent=False)
        self.register_buffer("divisor", divisor.repeat_interleave(channels, 0), persistent=False)

    @float32
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 3 C, H, W) float32 for (N, C, H, W)."""
        response = F.conv2d(x, self.kernel, padding=2, groups=self.channels) / self.divisor
        return response.clamp(-_RESPONSE_LIMIT, _RESPONSE_LIMIT)


class _ImageHighPass(_HighPass):
    """SRM-full: each filter on the sum of three channels."""

    def __init__(self) -> None:
        super().__init__(1)

    @float32
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 3, S, S) float32, -3..3, for (N, 3, S, S)."""
        return super().forward(x.sum(dim=1, keepdim=True))


class _MapHighPass(nn.Module):
    """SRM-sep: filter a map of the RGB stream for the high-frequency one."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.filters = _HighPass(channels)
        self.out_conv = nn.Sequential(
            nn.Conv2d(3 * channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_conv(self.filters(x).to(x.dtype))
        return y


class _ResidualAttention(nn.Module):
    """RSA: where in the crop the residual asks for attention."""

    def __init__(
        self, widths: tuple[int, int] = (32, 64), stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        first, second = widths
        self.conv = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, padding, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride, padding, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
        )
        self.pa = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, residual: Tensor) -> Tensor:
        x = self.conv(residual)
        x = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return torch.sigmoid(self.pa(x))


class _Float32Linear(Float32Module, nn.Linear):
    """Acts on scores that have no scale of their own and need float32."""


class _DualAttention(nn.Module):
    """DCMA: each place of a stream reads the other stream's places whose keys agree with its own.

    Args:
        places: number of places of the map, which the two linears mix; fixes the crop's size.
        channels: of both maps.
    """

    def __init__(self, places: int, channels: int = _CHANNELS) -> None:
        super().__init__()
        reduced = channels // 8
        self.gamma1 = nn.Parameter(torch.zeros(1))  # attention fades in from nothing
        self.gamma2 = nn.Parameter(torch.zeros(1))
        self.key_conv1 = nn.Conv2d(channels, reduced, 1)
        self.key_conv2 = nn.Conv2d(channels, reduced, 1)
        self.key_conv_share = nn.Conv2d(reduced, reduced, 1)
        self.value_conv1 = nn.Conv2d(channels, channels, 1)
        self.value_conv2 = nn.Conv2d(channels, channels, 1)
        self.linear1 = _Float32Linear(places, places)
        self.linear2 = _Float32Linear(places, places)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps (N, 728, H, W), updated from each other as they came in."""
        to_x, to_y = self._weights(
            self.key_conv_share(self.key_conv1(x)), self.key_conv_share(self.key_conv2(y))
        )
        from_x = self.value_conv1(x).flatten(2)  # (N, 728, L)
        from_y = self.value_conv2(y).flatten(2)
        read_x = (from_y @ to_x.to(x.dtype).mT).unflatten(2, x.shape[2:])
        read_y = (from_x @ to_y.to(y.dtype).mT).unflatten(2, y.shape[2:])
        return x + self.gamma1 * read_x, y + self.gamma2 * read_y

    @float32
    def _weights(self, keys_x: Tensor, keys_y: Tensor) -> tuple[Tensor, ...]:
        """Return how much x's places read of y's, and y's of x's: (N, L, L), rows sum to 1."""
        scores = keys_x.flatten(2).mT @ keys_y.flatten(2)  # (N, L of x, L of y)
        return self.linear1(scores).softmax(dim=-1), self.linear2(scores.mT).softmax(dim=-1)


class _Fusion(nn.Module):
    """Join the streams, of equal channels, and weigh the joint ones."""

    def __init__(self, channels: int = 2048, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.convblk = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        reduced = channels // 16
        self.shared_mlp = nn.Sequential(
            nn.Conv2d(channels, reduced, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(reduced, channels, 1, bias=False),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        fused: Tensor = self.convblk(torch.cat([x, y], dim=1))
        mean = self.shared_mlp(fused.mean(dim=(2, 3), keepdim=True))
        peak = self.shared_mlp(fused.amax(dim=(2, 3), keepdim=True))
        weighted = fused * torch.sigmoid(mean + peak)
        return fused + weighted if self.residual else weighted


class CosineHead(Float32Module):
    """Cosines between a feature and each class's direction."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, inputs))

    @float32
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2) float32, -1..1, for (N, inputs), whose squares float16 could not sum."""
        return F.linear(F.normalize(x), F.normalize(self.weight)).clamp(-1, 1)


class _TwoStreams(nn.Module):
    """What both sizes of the network promise and learn by."""

    def __init__(self, config: HighFreqConfig) -> None:
        super().__init__()
        self.config = config
        self.input_spec = InputSpec(size_px=config.size_px, margin=config.margin)
        self.calibration = Calibration()

    def normalise(self, images: Tensor) -> Tensor:
        """See `AttackModel.normalise`: -1..1."""
        return images.float() / 127.5 - 1

    def check_size(self, images: Tensor) -> None:
        """Refuse crops of another size than the network was built for.

        Raises:
            ValueError: (N, 3, H, W) are not of that size.
        """
        size = self.config.size_px
        if images.shape[2:] != (size, size):
            raise ValueError(
                f"expected crops of {size} x {size} px, found {images.shape[2]} x "
                f"{images.shape[3]}: the attention's linears fix the size; scale the crops, or "
                "train a network of another size_px"
            )

    def attack_logit(self, outputs: HighFreqOutputs) -> Tensor:
        """See `AttackModel.attack_logit`: z1 - z0, whose sigmoid is the official softmax."""
        return outputs.logits[:, ATTACK] - outputs.logits[:, BONA_FIDE]

    def explanation(self, outputs: HighFreqOutputs) -> Tensor:
        """Return (N, 1, H, W), H about S/2: the residual-guided attention.

        It shows where high frequencies steer the network, for any face, manipulated or not.
        """
        return outputs.attention

    def loss_terms(self, outputs: HighFreqOutputs, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the one term, AM-softmax."""
        config = self.config
        return {
            "am_softmax": am_softmax(
                outputs.logits,
                batch.labels,
                margin=config.am_margin,
                scale=config.am_scale,
                form=config.am_form,
                focal_gamma=config.focal_gamma,
            )
        }


class HighFreq(_TwoStreams):
    """Two Xceptions, one on the pixels and one on their high frequencies."""

    def __init__(self, config: HighFreqConfig) -> None:
        super().__init__(config)
        self.xception_rgb = Xception()
        self.xception_srm = Xception()
        self.srm_conv0 = _ImageHighPass()
        self.srm_conv1 = _MapHighPass(32, 32)
        self.srm_conv2 = _MapHighPass(64, 64)
        self.srm_sa = _ResidualAttention()
        self.srm_sa_post = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        places = (config.size_px // 16) ** 2
        self.dual_cma0 = _DualAttention(places)
        self.dual_cma1 = _DualAttention(places)
        self.fusion = _Fusion(residual=config.fusion_residual)
        self.dropout = nn.Dropout(config.dropout)
        self.head: nn.Module = nn.Linear(2048, 2) if config.head == "linear" else CosineHead(2048)
        self._initialise()

    def _initialise(self) -> None:
        """Draw what the official code draws in its own way; the rest is torch's default."""
        for attention in (self.dual_cma0, self.dual_cma1):
            for module in attention.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.xavier_normal_(module.weight, gain=0.02)
        for part in (self.srm_conv1, self.srm_conv2, self.srm_sa):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=1)

    def forward(self, images: Tensor) -> HighFreqOutputs:
        """Return logits and maps of normalised (N, 3, S, S).

        Raises:
            ValueError: S is not the size the network was built for.
        """
        self.check_size(images)
        rgb, srm = self.xception_rgb, self.xception_srm
        # Filtered in float32 both times: in float16 the second pass would amplify rounding.
        residual = self.srm_conv0(images)  # (N, 3, S, S)
        attention = self.srm_sa(self.srm_conv0(residual).to(images.dtype))

        x = F.relu(rgb.stem1(images))  # (N, 32, 127, 127)
        y = F.relu(srm.stem1(residual.to(images.dtype))) + self.srm_conv1(x)
        x = F.relu(rgb.stem2(x))  # (N, 64, 125, 125)
        y = F.relu(srm.stem2(y)) + self.srm_conv2(x)
        x = self.srm_sa_post(x * attention + x)

        x, y = self.dual_cma0(rgb.blocks(x, 1, 3), srm.blocks(y, 1, 3))  # (N, 728, 16, 16)
        x, y = self.dual_cma1(rgb.blocks(x, 4, 7), srm.blocks(y, 4, 7))
        x, y = rgb.tail(rgb.blocks(x, 8, 12)), srm.tail(srm.blocks(y, 8, 12))  # (N, 2048, 8, 8)

        fused = self.fusion(x, y)
        pooled = fused.mean(dim=(2, 3))
        return HighFreqOutputs(
            logits=self.head(self.dropout(pooled)),
            pooled=pooled,
            fused=fused,
            attention=attention,
        )


class SmallHighFreq(_TwoStreams):
    """EfficientNet-Lite0 on the pixels, a few convolutions on their high frequencies; ours."""

    _MEETS: Final = (3, 5, 8)  # blocks of Lite0 before which the streams meet: at S/4, S/8, S/16
    _CHANNELS: Final = (24, 40, 80)  # of its maps there

    def __init__(self, config: HighFreqConfig) -> None:
        super().__init__(config)
        self.rgb = EfficientNetLite0()
        self.rgb_top = LiteHead(EfficientNetLite0.channels[-1])
        self.residual = _ImageHighPass()
        first, second, third = _SMALL_WIDTHS
        self.srm1 = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first)
        )
        self.srm2, self.srm3 = (
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o))
            for i, o in ((first, second), (second, third))
        )
        self.srm_conv1 = _MapHighPass(self._CHANNELS[0], first)
        self.srm_conv2 = _MapHighPass(self._CHANNELS[1], second)
        self.srm_sa = _ResidualAttention((8, 16), stride=2, padding=1)
        self.dual_cma = _DualAttention((config.size_px // 16) ** 2, third)
        self.fusion = _Fusion(third, residual=config.fusion_residual)
        self.dropout = nn.Dropout(config.dropout)
        width = LiteHead.channels
        self.head: nn.Module = nn.Linear(width, 2) if config.head == "linear" else CosineHead(width)
        for module in self.dual_cma.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight, gain=0.02)
        self.train()

    def train(self, mode: bool = True) -> SmallHighFreq:
        """Set the mode of all but the frozen blocks, whose norms keep their statistics."""
        super().train(mode)
        if self.config.frozen_blocks:
            self.rgb.freeze(self.config.frozen_blocks)
        return self

    def forward(self, images: Tensor) -> HighFreqOutputs:
        """Return logits and maps of normalised (N, 3, S, S).

        Raises:
            ValueError: S is not the size the network was built for.
        """
        self.check_size(images)
        quarter, eighth, sixteenth = self._MEETS
        residual = self.residual(images)  # (N, 3, S, S)
        attention = self.srm_sa(self.residual(residual).to(images.dtype))  # (N, 1, S/4, S/4)

        x = self.rgb.blocks(self.rgb.stem(images), 0, quarter)
        y = F.relu(self.srm1(_SMALL_GAIN * residual.to(images.dtype))) + self.srm_conv1(x)
        x = self.rgb.blocks(x * attention + x, quarter, eighth)
        y = F.relu(self.srm2(y)) + self.srm_conv2(x)
        x = self.rgb.blocks(x, eighth, sixteenth)
        x, y = self.dual_cma(x, F.relu(self.srm3(y)))  # (N, 80, S/16, S/16)
        fused = self.fusion(x, y)
        pooled = self.rgb_top(self.rgb.blocks(x + fused, sixteenth, 16)).mean(dim=(2, 3))
        return HighFreqOutputs(
            logits=self.head(self.dropout(pooled)),
            pooled=pooled,
            fused=fused,
            attention=attention,
        )


def build(config: HighFreqConfig) -> HighFreq | SmallHighFreq:
    """Return the network of the configured size, its weights random."""
    return HighFreq(config) if config.encoder == "xception" else SmallHighFreq(config)


def am_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float,
    scale: float,
    form: Literal["cosine", "arc"] = "cosine",
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the batch's mean of the additive-margin cross-entropy (official code, `loss`).

    Args:
        logits: (N, 2); cosines, -1..1, for `arc`.
        labels: (N,) int64.
        margin: taken off the true class's logit, or with `arc` added to its angle.
        scale: of the logits, after the margin.
        form: what the margin applies to.
        focal_gamma: power of 1 - p, p the true class's probability, that weighs a sample.
    """
    if form == "cosine":
        shifted = logits - margin
    else:
        sine = (1 - logits.square()).clamp_min(1e-12).sqrt()  # keeps the slope finite at +-1
        shifted = logits * math.cos(margin) - sine * math.sin(margin)
        # Beyond pi the shifted cosine would rise again.
        falls = logits > math.cos(math.pi - margin)
        shifted = torch.where(falls, shifted, logits - margin * math.sin(margin))
    is_true = F.one_hot(labels, logits.shape[1]).bool()
    loss = F.cross_entropy(scale * torch.where(is_true, shifted, logits), labels, reduction="none")
    certainty_left = (-torch.expm1(-loss)).clamp_min(1e-12)
    return (certainty_left**focal_gamma * loss).mean()


_PUBLISHED_NAMES: Final = (
    (r"^xception_(rgb|srm)\.model\.", r"xception_\1."),
    (r"^backbone_(rgb|srm)\.", r"xception_\1."),
    (r"^xception_rgb\.last_linear\.(1\.)?", "head."),
    (r"^srm_sa\.pa\.conv\.", "srm_sa.pa."),
    (r"^fusion\.ca\.sharedMLP\.", "fusion.shared_mlp."),
)
_CONSTANTS: Final = {r".*\.kernel$": "the high-pass filters are constants, built in"}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of the official code or of DeepfakeBench to this module's names.

    Args:
        state: without the filter kernels and other constants.
    """
    renamed = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in _PUBLISHED_NAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed


def _both_streams(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    trunk = from_cadene(state)
    streams = ("xception_rgb.", "xception_srm.")
    return {stream + name: value for stream in streams for name, value in trunk.items()}


METHOD = Method(
    config=HighFreqConfig,
    build=build,
    layouts=(
        Layout(
            name="official",
            marks=frozenset({"xception_rgb.model.conv1.weight", "xception_srm.model.conv1.weight"}),
            translate=from_published,
            options={"fusion_residual": True, "head": "linear"},
            ignored={
                **_CONSTANTS,
                r"xception_srm\.model\.last_linear\.": "the second stream's classifier, never used",
            },
        ),
        Layout(
            name="DeepfakeBench (srm)",
            marks=frozenset({"backbone_rgb.conv1.weight", "backbone_srm.conv1.weight"}),
            translate=from_published,
            options={"fusion_residual": False, "head": "linear"},
            ignored={
                **_CONSTANTS,
                r"blur\.": "a constant, never used",
                r"backbone_srm\.last_linear\.": "the second stream's classifier, never used",
                r"backbone_(rgb|srm)\.adjust_channel\.": "never used",
            },
        ),
        Layout(
            name="Cadene Xception (ImageNet), for both streams",
            marks=frozenset({"conv1.weight", "block12.rep.4.pointwise.weight"}),
            translate=_both_streams,
            ignored={r"(fc|last_linear)\.": "classifies ImageNet"},
            fills=("xception_rgb.", "xception_srm."),
        ),
    ),
    publications=(
        Publication(
            name="deepfakebench",
            where="https://github.com/SCLBD/DeepfakeBench/releases/tag/v1.0.1 (srm_best.pth)",
            licence="CC BY-NC 4.0 by DeepfakeBench's README; trained on FaceForensics++, whose "
            "terms allow research only",
            family="digital",
        ),
    ),
)
