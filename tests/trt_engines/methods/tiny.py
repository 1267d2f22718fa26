"""A method small enough to export in a test; its flaws are what an export must refuse."""

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from models import Calibration, InputSpec, Method
from models._precision import float32


class TinyConfig(BaseModel, frozen=True, extra="forbid"):
    width: int = 4
    dropout: float = 0.0
    large_sum: Literal["none", "plain", "float32"] = "none"
    flaw: Literal["none", "looks_at_the_batch", "other_when_traced", "squeezes"] = "none"


class TinyOutputs(NamedTuple):
    logit: Tensor  # (N,)
    heat: Tensor  # (N, 1, S, S)


def _large_sum(heat):
    return (heat * 1e4).sum(dim=(1, 2, 3)) / 1e4 / heat[0].numel()


class Tiny(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.input_spec = InputSpec(size_px=16, margin=1.2)
        self.calibration = Calibration()
        self.flaw = config.flaw
        self.large_sum = config.large_sum
        self.dropout = config.dropout
        self.first = nn.Conv2d(3, config.width, 3, padding=1)
        self.norm = nn.BatchNorm2d(config.width)
        self.last = nn.Conv2d(config.width, 1, 1)

    def normalise(self, images):
        return images.float() / 127.5 - 1

    def forward(self, images):
        hidden = torch.relu(self.norm(self.first(images)))
        if self.training:
            hidden = nn.functional.dropout(hidden, self.dropout)
        heat = self.last(hidden)
        logit = heat.mean(dim=(1, 2, 3))
        if self.large_sum != "none":
            logit = (_large_sum if self.large_sum == "plain" else float32(_large_sum))(heat)
        if self.flaw == "looks_at_the_batch":
            logit = logit - logit.mean()
        if self.flaw == "other_when_traced" and torch.compiler.is_exporting():
            logit = logit + 0.01
        return TinyOutputs(logit, torch.sigmoid(heat))

    def attack_logit(self, outputs):
        return outputs.logit.squeeze() if self.flaw == "squeezes" else outputs.logit

    def partly(self, images, n_whole):
        outputs = self(images)
        first = TinyOutputs(*(part[:n_whole] for part in outputs)) if n_whole else None
        return outputs.logit, first

    def last_layer(self):
        return self.last

    def last_features(self, images):
        return torch.relu(self.norm(self.first(images))).mean(dim=(2, 3))

    def logit_of_features(self, features):
        return self.last(features[:, :, None, None]).flatten()

    def explanation(self, outputs):
        return outputs.heat

    def loss_terms(self, outputs, batch):
        target = batch.labels.float()
        return {"bce": nn.functional.binary_cross_entropy_with_logits(outputs.logit, target)}


METHOD = Method(TinyConfig, Tiny)
