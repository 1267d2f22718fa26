"""LGSC: Learning Generalized Spoof Cues for Face Anti-spoofing.

Feng, Hong, Yue, Chen, Wang, Han, Liu, Ding; arXiv:2005.03922 (2020). Official code:
VIS-VAR/LGSC-for-FAS (MIT).

Bona fide faces are a closed set, attacks an open one. A U-Net draws a residual map, the spoof cue,
that is pushed to zero on bona fide faces and left free on attacks; a triplet term at several depths
separates the two, and an auxiliary classifier, which sees image + cue, makes the cue useful. At
inference only the generator runs; the mean magnitude of the cue is the score.

Differences from the official code:

- Dropout is scaled while training (torch's way); the official Paddle 1.x code scales at inference
  instead.
- Ours, for streaming on a CPU and not in the paper: `encoder="efficientnet_lite0"` with narrow
  `decoder_widths`; `decoder_norm="batch"`, which folds into the convolutions and, unlike instance
  norm, lets the magnitude of a cue differ between faces from the first steps on; `weight_score`, a
  cross-entropy of the mean |cue| itself, so that a short training moves it.
- `score="classifier"` deploys the auxiliary classifier's log-odds instead of the mean |cue|, as
  third-party ports do for validation: it decides after far fewer steps than the cue does.
- `score="bottleneck"`, ours: the log-odds are a linear map of the encoder's last features, those
  that the triplet term pulls apart, widened as EfficientNet-Lite widens them. Decoder and
  classifier serve the loss alone; what each place of the picture adds to the score explains it. It
  can be taught by another network at a quarter of the cost (`partly`), and runs at half.
- `pixels="imagenet"`, ours: the scale that the published weights of EfficientNet-Lite know.
- `encoder="mobilefacenet"`, ours, for the bottleneck's score: the blocks of MiniFASNet, which has
  taught it stage by stage (`stages`). It has no map of stride 32, so the deepest stage of the
  decoder refines without doubling. Two kinds of attack have log-odds of their own, whose odds add
  up; every place has its own weights, and explains by what it adds.
- The raw score is turned into log-odds by two constants, and then calibrated on development data
  (`calibration`). Until that is fitted the probability means nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models._backbones import EncoderName, LiteHead, MobileFaceNet, PlacesHead, build_encoder
from models._calibration import Calibration
from models._contract import ATTACK, BONA_FIDE, InputSpec, Layout, Method
from models._losses import asymmetric_triplet
from models._precision import InstanceNorm, float32, mapped_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from models._backbones import Pyramid
    from models._contract import FaceBatch


# Trained cues are small: ports show a mean |cue| near 0.01 for live faces and 0.1 for attacks.
_CUE_OFFSET: Final = 0.05
_CUE_SCALE: Final = 0.02
_KINDS: Final = 2  # of attack, whose log-odds `PlacesHead` keeps apart


class LgscConfig(BaseModel, frozen=True, extra="forbid"):
    """Options; the defaults are the official configuration."""

    encoder: EncoderName = Field(
        "resnet18",
        description="Backbone; efficientnet_lite0 and mobilefacenet, for CPUs, are ours.",
    )
    decoder_widths: tuple[int, int, int, int, int] = Field(
        (256, 128, 64, 64, 64), description="Channels of the five decoder stages, deepest first."
    )
    decoder_norm: Literal["instance", "batch"] = Field(
        "instance",
        description="Norm of the decoder; batch, which folds into the convolutions, is ours.",
    )
    score: Literal["cue", "classifier", "bottleneck"] = Field(
        "cue",
        description="What decides: the mean magnitude of the cue, the auxiliary classifier, or "
        "(ours) a linear map of the encoder's last features.",
    )
    pixels: Literal["official", "imagenet"] = Field(
        "official",
        description="Scale of the pixels: (v - 100) / 80, or (v - 127) / 128, EfficientNet-Lite's.",
    )
    size_px: int = Field(
        224,
        multiple_of=16,
        description="Side of the network's input, pixels. A multiple of 32, or of 16 with the "
        "encoder mobilefacenet.",
    )
    margin: float = Field(1.2, gt=0, description="Crop side over face box.")
    window: Literal["pad", "inside"] = Field("pad", description="Window rule, as `InputSpec`.")
    resize: Literal["area", "bilinear"] = Field("area", description="As `InputSpec`.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of the classifier's features set to zero in training."
    )
    weight_classification: float = Field(
        5.0, ge=0, description="Factor on the loss's term `classification`."
    )
    weight_regression: float = Field(
        5.0, ge=0, description="Factor on the loss's term `regression`."
    )
    weight_triplet: float = Field(1.0, ge=0, description="Factor on the loss's term `triplet`.")
    weight_score: float = Field(
        0.0,
        ge=0,
        description="Cross-entropy of mean |cue|, or of the bottleneck's log-odds; ours.",
    )
    triplet_margin: float = Field(
        0.5,
        gt=0,
        description="Distance by which attacks must lie farther off than bona fide faces.",
    )

    @model_validator(mode="after")
    def _halves_often_enough(self) -> Self:
        if self.encoder != "mobilefacenet" and self.size_px % 32:
            raise ValueError(
                f"size_px is {self.size_px}; the encoder {self.encoder} needs a multiple of 32"
            )
        return self


class LgscOutputs(NamedTuple):
    """What one forward pass yields."""

    cue: Tensor  # (N, 3, S, S), -1..1
    features: tuple[Tensor, ...]  # E5, D1, D2, D3, D4: (N, C, H, W), H from that of E5 to S/2
    raw_score: Tensor  # (N,) higher = attack; mean |cue|, 0..1, or log-odds, as `score` says
    class_logits: Tensor | None  # (N, 2), column 1 = attack; None where the classifier did not run
    local_evidence: Tensor | None = None  # (N, 1, H, W) log-odds, where the bottleneck decides


class _Judged(NamedTuple):
    """What the bottleneck says."""

    log_odds: Tensor  # (N,)
    places: Tensor  # (N, 1, H, W) log-odds: `LiteHead`: their mean decides; `PlacesHead`: their sum


Norm: TypeAlias = "Callable[[int], nn.Module]"


@float32
def _magnitude(cue: Tensor) -> Tensor:
    """Return (N,) mean |cue| of (N, 3, S, S).

    Float16 can't hold the sum of 150,528 values, and ONNX Runtime adds them one by one, which costs
    four digits: hence float32, and line by line.
    """
    return cue.abs().mean(dim=3).mean(dim=(1, 2))


class _DecoderBlock(nn.Module):
    """Residual block; the official code's `BasicBlock` of the neck."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.in1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.in2 = norm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.in1(self.conv1(x)))
        return F.relu(self.in2(self.conv2(y)) + self.downsample(x))


class _DecoderStage(nn.Module):
    """Double the size (or keep it), join the encoder's map of that size, refine."""

    def __init__(
        self, inputs: int, width: int, skip: int, outputs: int, norm: Norm, *, doubles: bool = True
    ) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest") if doubles else nn.Identity(),
            nn.ZeroPad2d((0, 1, 0, 1)),  # below and right only: the 2x2 kernel keeps the size
            nn.Conv2d(inputs, width, 2, bias=False),
            norm(width),
            nn.ReLU(),
        )
        joined = width + skip
        self.shortcut = nn.Sequential(nn.Conv2d(joined, outputs, 1, bias=False), norm(outputs))
        self.body = nn.Sequential(
            _DecoderBlock(joined, outputs, norm), _DecoderBlock(outputs, outputs, norm)
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.upsample(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        refined: Tensor = self.body(x) + self.shortcut(x)  # no activation: a cue has both signs
        return refined


class AuxiliaryClassifier(nn.Module):
    """Tells bona fide from attack by image + cue; the official score needs it in training only."""

    def __init__(self, encoder: EncoderName, dropout: float) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.encoder.channels[-1], 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 2) logits, index `ATTACK` = 1, for normalised images plus cue (N, 3, S, S)."""
        pooled = self.encoder(images)[-1].mean(dim=(2, 3))
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits


class Lgsc(nn.Module):
    """Spoof cue generator and, for training, its auxiliary classifier."""

    def __init__(self, config: LgscConfig) -> None:
        super().__init__()
        self.config = config
        self.input_spec = InputSpec(
            size_px=config.size_px,
            margin=config.margin,
            window=config.window,
            resize=config.resize,
        )
        self.encoder = build_encoder(config.encoder)
        e1, e2, e3, e4, e5 = self.encoder.channels
        w1, w2, w3, w4, w5 = config.decoder_widths
        norm: Norm = InstanceNorm if config.decoder_norm == "instance" else nn.BatchNorm2d
        self.decoder = nn.ModuleList(
            [
                _DecoderStage(e5, w1, e4, w1, norm, doubles=self.encoder.last_stride == 32),
                _DecoderStage(w1, w2, e3, w2, norm),
                _DecoderStage(w2, w3, e2, w3, norm),
                _DecoderStage(w3, w4, e1, w4, norm),
                _DecoderStage(w4, w5, 0, 3, norm),
            ]
        )
        self.classifier = AuxiliaryClassifier(config.encoder, config.dropout)
        self.head: LiteHead | PlacesHead | None = None
        self.decision: nn.Linear | None = None
        if config.score == "bottleneck" and isinstance(self.encoder, MobileFaceNet):
            self.head = PlacesHead(e5, config.size_px // self.encoder.last_stride)
            self.decision = nn.Linear(PlacesHead.channels, _KINDS)
        elif config.score == "bottleneck":
            self.head = LiteHead(e5)
            self.decision = nn.Linear(LiteHead.channels, 1)
        self.calibration = Calibration()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(self.head, PlacesHead):  # begins as the mean, which no norm follows
            nn.init.constant_(self.head.gather.weight, 1 / self.head.gather.weight[0].numel())
        nn.init.xavier_uniform_(self.classifier.fc.weight)
        nn.init.zeros_(self.classifier.fc.bias)
        if config.decoder_norm == "batch":
            for module in self.decoder[-1].modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.constant_(module.weight, 0.1)  # start near the zero cue

    def normalise(self, images: Tensor) -> Tensor:
        """See `AttackModel.normalise`: (v - 100) / 80 is the official code's choice."""
        if self.config.pixels == "imagenet":
            return (images.float() - 127) / 128
        return (images.float() - 100) / 80

    def forward(self, images: Tensor) -> LgscOutputs:
        """Return cue, features and raw score of normalised (N, 3, S, S)."""
        pyramid: Pyramid = self.encoder(images)
        return self._decoded(images, pyramid, self._judged(pyramid[-1]))

    def partly(self, images: Tensor, n_whole: int) -> tuple[Tensor, LgscOutputs | None]:
        """See `DistilledModel.partly`; the bottleneck's log-odds need the encoder alone."""
        if self.head is None:
            outputs = self(images)
            first = mapped_tensors(outputs, lambda t: t[:n_whole]) if n_whole else None
            return self.attack_logit(outputs), first
        return self._partly_decoded(images, self.encoder(images), n_whole)

    def stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """See `StagedModel.stages`.

        Raises:
            ValueError: with these options the network is no chain of stages.
        """
        encoder, head = self.encoder, self.head
        if not isinstance(encoder, MobileFaceNet) or head is None:
            raise ValueError(
                "only encoder: mobilefacenet with score: bottleneck is a chain of stages; found "
                f"{self.config.encoder}, {self.config.score}"
            )
        stem, to_4, *middle, widened = encoder.stages()
        return lambda x: to_4(stem(x)), *middle, lambda x: head(widened(x))

    def partly_in_stages(
        self, images: Tensor, n_whole: int
    ) -> tuple[tuple[Tensor, ...], Tensor, LgscOutputs | None]:
        """See `StagedModel.partly_in_stages`."""
        encoder, head = self.encoder, self.head
        assert isinstance(encoder, MobileFaceNet)
        assert head is not None
        maps = encoder.maps(images)
        log_odds, outputs = self._partly_decoded(images, encoder.pyramid(maps), n_whole)
        return (*maps[1:-1], head(maps[-1])), log_odds, outputs

    def _partly_decoded(
        self, images: Tensor, pyramid: Pyramid, n_whole: int
    ) -> tuple[Tensor, LgscOutputs | None]:
        judged = self._judged(pyramid[-1])
        assert judged is not None
        if not n_whole:
            return judged.log_odds, None
        e1, e2, e3, e4, e5 = (f[:n_whole] for f in pyramid)
        first = mapped_tensors(judged, lambda t: t[:n_whole])
        return judged.log_odds, self._decoded(images[:n_whole], (e1, e2, e3, e4, e5), first)

    def _judged(self, features: Tensor) -> _Judged | None:
        """Return what the bottleneck says; None: it does not decide.

        Args:
            features: (N, C, H, W), the encoder's last.
        """
        if self.head is None or self.decision is None:
            return None
        if isinstance(self.head, LiteHead):
            weight = self.decision.weight[:, :, None, None]
            local = F.conv2d(self.head(features), weight, self.decision.bias)
            return _Judged(local.mean(dim=(1, 2, 3)), local)
        by_kind = self.decision(self.head(features))
        return _Judged(by_kind.logsumexp(dim=1), self._places(features, by_kind))

    @float32
    def _places(self, features: Tensor, by_kind: Tensor) -> Tensor:
        """Return (N, 1, H, W) log-odds of each place, which add up to those of the face."""
        assert isinstance(self.head, PlacesHead)
        assert self.decision is not None
        share = by_kind.softmax(dim=1)[:, :, None, None]
        added = (share * self.head.added(features, self.decision)).sum(dim=1, keepdim=True)
        rest = by_kind.logsumexp(dim=1) - added.sum(dim=(1, 2, 3))  # what no place adds
        return added + rest[:, None, None, None] / (added.shape[2] * added.shape[3])

    def _decoded(self, images: Tensor, pyramid: Pyramid, judged: _Judged | None) -> LgscOutputs:
        """Draw the cue, and return all outputs.

        Args:
            images: (N, 3, S, S), normalised.
            pyramid: what the encoder makes of them.
            judged: what the bottleneck says; None: it does not decide.
        """
        e1, e2, e3, e4, e5 = pyramid
        features = [e5]
        x = e5
        for stage, skip in zip(self.decoder, (e4, e3, e2, e1, None), strict=True):
            x = stage(x, skip)
            features.append(x)
        cue = torch.tanh(features.pop())
        classifies = self.training or self.config.score == "classifier"
        logits = self.classifier(images + cue) if classifies else None
        if judged is not None:
            raw_score = judged.log_odds
        elif self.config.score == "classifier" and logits is not None:
            raw_score = logits[:, ATTACK] - logits[:, BONA_FIDE]
        else:
            raw_score = _magnitude(cue)
        return LgscOutputs(
            cue=cue,
            features=tuple(features),
            raw_score=raw_score,
            class_logits=logits,
            local_evidence=None if judged is None else judged.places,
        )

    def attack_logit(self, outputs: LgscOutputs) -> Tensor:
        """See `AttackModel.attack_logit`."""
        if self.config.score == "cue":
            return (outputs.raw_score - _CUE_OFFSET) / _CUE_SCALE
        return outputs.raw_score

    def last_layer(self) -> nn.Module | None:
        """See `AdaptableModel.last_layer`: the bottleneck's, which the other scores lack."""
        return self.decision

    def last_features(self, images: Tensor) -> Tensor:
        """See `AdaptableModel.last_features`."""
        assert self.head is not None
        features: Tensor = self.head(self.encoder(images)[-1])
        return features.mean(dim=(2, 3)) if isinstance(self.head, LiteHead) else features

    def logit_of_features(self, features: Tensor) -> Tensor:
        """See `AdaptableModel.logit_of_features`."""
        assert self.decision is not None
        by_kind: Tensor = self.decision(features)
        return by_kind.logsumexp(dim=1)  # of one kind: its log-odds as they are

    def explanation(self, outputs: LgscOutputs) -> Tensor:
        """Return (N, 1, S, S) mean |cue| over the channels, 0..1, on the same scale for every face.

        Bright spots of the map are a known artefact of instance norm: it shows the evidence, and
        does not prove where an attack is. Of the bottleneck's score: (N, 1, H, W), probabilities,
        not calibrated, of the log-odds of each place, whose mean decides (of mobilefacenet's: whose
        sum).
        """
        if outputs.local_evidence is not None:
            return outputs.local_evidence.sigmoid()
        return outputs.cue.abs().mean(dim=1, keepdim=True)

    def loss_terms(self, outputs: LgscOutputs, batch: FaceBatch) -> dict[str, Tensor]:
        """Return the terms of the official loss, weighted: classification, regression, triplet.

        Raises:
            ValueError: the outputs were made in eval mode without the classifier.
        """
        if outputs.class_logits is None:
            raise ValueError("LGSC's loss needs outputs of a forward pass in training mode")
        config = self.config
        is_bona_fide = batch.labels == BONA_FIDE
        triplets = [
            asymmetric_triplet(f.mean(dim=(2, 3)), is_bona_fide, config.triplet_margin)
            for f in outputs.features
        ]
        terms = {
            "classification": config.weight_classification
            * F.cross_entropy(outputs.class_logits, batch.labels),
            "regression": config.weight_regression * bona_fide_cue(outputs.cue, is_bona_fide),
            "triplet": config.weight_triplet * torch.stack(triplets).sum(),
        }
        if config.weight_score:
            log_odds = (_magnitude(outputs.cue) - _CUE_OFFSET) / _CUE_SCALE
            if config.score == "bottleneck":
                log_odds = outputs.raw_score
            terms["score"] = config.weight_score * F.binary_cross_entropy_with_logits(
                log_odds, batch.labels.float()
            )
        return terms


def bona_fide_cue(cue: Tensor, is_bona_fide: Tensor) -> Tensor:
    """Return the mean |cue| of the bona fide samples, 0 without any: their target is the zero map.

    Args:
        cue: (N, 3, H, W), -1..1.
        is_bona_fide: (N,) bool.
    """
    magnitude = cue.abs().sum(dim=(1, 2, 3)) * is_bona_fide
    return magnitude.sum() / (is_bona_fide.sum() * cue[0].numel() + 1e-8)


_OFFICIAL_NAMES: Final = (
    (r"^backbone\.", "encoder."),
    (r"^head\.", "classifier.encoder."),
    (r"^fc\.", "classifier.fc."),
    (r"^neck\.deres(\d)\.", r"decoder.\1.body."),
    (r"^neck\.conv_module2x2\.(\d)\._conv\.", r"decoder.\1.upsample.2."),
    (r"^neck\.conv_module2x2\.(\d)\.in\.", r"decoder.\1.upsample.3."),
    (r"^neck\.conv_module1x1\.(\d)\._conv\.", r"decoder.\1.shortcut.0."),
    (r"^neck\.conv_module1x1\.(\d)\.in\.", r"decoder.\1.shortcut.1."),
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of the official Paddle code to this module's names.

    Paddle stores a linear layer as (in, out), and the official class 1 is live: the classifier is
    transposed and its two rows swapped. Calibration is not in it and keeps its default.

    Args:
        state: official names, e.g. `neck.deres1.0.conv1.weight`, tensors.
    """
    renamed = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in _OFFICIAL_NAMES:
            new = re.sub(pattern, replacement, new)
        # The official decoder counts its stages from 1.
        new = re.sub(r"^decoder\.(\d)", lambda m: f"decoder.{int(m[1]) - 1}", new)
        renamed[new] = value
    weight, bias = renamed["classifier.fc.weight"], renamed["classifier.fc.bias"]
    renamed["classifier.fc.weight"] = weight.T.flip(0)
    renamed["classifier.fc.bias"] = bias.flip(0)
    return renamed


def _both_encoders(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixes = ("encoder.", "classifier.encoder.")
    return {prefix + name: value for prefix in prefixes for name, value in state.items()}


METHOD = Method(
    config=LgscConfig,
    build=Lgsc,
    layouts=(
        Layout(
            name="official (Paddle)",
            marks=frozenset({"neck.deres1.0.conv1.weight", "fc.weight"}),
            translate=from_official,
        ),
        Layout(
            name="torchvision ResNet-18 (ImageNet), for both encoders",
            marks=frozenset({"layer1.0.conv1.weight", "layer4.1.conv2.weight"}),
            translate=_both_encoders,
            options={"encoder": "resnet18"},
            ignored={r"fc\.": "classifies ImageNet"},
            fills=("encoder.", "classifier.encoder."),
        ),
        Layout(
            name="EfficientNet-Lite0 (ImageNet), for both encoders",
            marks=frozenset({"_conv_stem.weight", "_blocks.15._depthwise_conv.weight"}),
            translate=_both_encoders,
            options={"encoder": "efficientnet_lite0"},
            ignored={r"_conv_head\.|_bn1\.|_fc\.": "classifies ImageNet"},
            fills=("encoder.", "classifier.encoder."),
        ),
    ),
)
