"""Every published variant of every method, at its published size, for checks and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from models import RefinedModel, build_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from models import InputSpec

_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)


@dataclass(frozen=True, slots=True)
class Variant:
    """One network that somebody published, or that we ship.

    Attributes:
        name: for people.
        method: module of `models`.
        options: what differs from the method's defaults.
    """

    name: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)


VARIANTS: Final = (
    Variant("lgsc", "lgsc"),
    Variant(
        "lgsc-lite0",  # ours, for streaming: configs/train/lgsc_lite0.yaml at 160 px
        "lgsc",
        {
            "encoder": "efficientnet_lite0",
            "decoder_widths": (128, 64, 40, 24, 16),
            "decoder_norm": "batch",
            "score": "classifier",
            "size_px": 160,
        },
    ),
    Variant(
        "lgsc-presentation",  # ours: configs/train/lgsc_presentation_2.yaml
        "lgsc",
        {
            "encoder": "mobilefacenet",
            "decoder_widths": (32, 32, 24, 16, 16),
            "decoder_norm": "batch",
            "score": "bottleneck",
            "size_px": 80,
            "margin": 2.7,
            "window": "inside",
        },
    ),
    Variant("highfreq", "highfreq"),
    Variant("highfreq-deepfakebench", "highfreq", {"fusion_residual": False}),
    Variant("highfreq-cosine", "highfreq", {"head": "cosine"}),
    Variant(
        "highfreq-digital",  # ours: configs/train/highfreq_digital.yaml
        "highfreq",
        {"encoder": "efficientnet_lite0", "frozen_blocks": 3, "size_px": 160},
    ),
    Variant("recce", "recce"),
    Variant("recce-deepfakebench", "recce", {"num_classes": 2, "size_px": 256}),
    Variant("udr-effb4", "udr"),
    Variant("udr-resnet18", "udr", {"trunk": "resnet18"}),
    Variant("udr-resnet50", "udr", {"trunk": "resnet50"}),
    Variant("fghv-depthnet6", "fghv"),
    Variant("fghv-depthnet3", "fghv", {"backbone": "depthnet3"}),
    Variant("fghv-resnet18", "fghv", {"backbone": "resnet18"}),
    Variant("minifasnet-v2", "minifasnet"),
    Variant("minifasnet-v1se", "minifasnet", {"variant": "v1se"}),
)


def clouds(spec: InputSpec) -> Tensor:
    """Return (8, 3, S, S) uint8 pictures of noise on several scales: smooth, as faces are."""
    generator = torch.Generator().manual_seed(1)
    total = torch.full((8, 3, spec.size_px, spec.size_px), 127.5)
    for cells, contrast in ((4, 60.0), (16, 30.0), (64, 10.0)):
        noise = torch.randn((8, 3, cells, cells), generator=generator) * contrast
        total += nn.functional.interpolate(noise, total.shape[2:], mode="bicubic")
    return total.clamp_(0, 255).to(torch.uint8)


def seeded_model(
    method: str,
    options: Mapping[str, object],
    crops: Callable[[InputSpec], Tensor] = clouds,
) -> Any:
    """Return a network with random weights, always the same, that behaves like a trained one.

    With plainly random weights a deep network is chaotic: it amplifies rounding until precisions
    can't be compared, and its logits may saturate. So biases of normalisations are 1, which keeps
    most rectifiers open; running statistics and the calibration are those of some pictures.

    Args:
        method: module of `models`.
        options: of the method.
        crops: gives those pictures, (N >= 2, 3, S, S) uint8.

    Returns:
        An `AttackModel` in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = build_model(method, options)
        images = model.normalise(crops(model.input_spec))
        for module in model.modules():
            if isinstance(module, _NORMS):
                if module.bias is not None:
                    nn.init.ones_(module.bias)
                module.momentum = None  # the mean over all batches, of which there is one
        with torch.no_grad():
            model.train()(images)
            outputs = model.eval()(images)
            model.calibration.offset.fill_(model.attack_logit(outputs).mean())
            if isinstance(model, RefinedModel):  # unfitted, it says the same of every face
                labels = torch.arange(len(images)) % 2
                model.fit_refinement(model.refinement_features(outputs), labels)
    return model
