"""The tiny method with a second look; its flaw is what an export must refuse."""

import torch
from models.tiny import Tiny, TinyConfig  # type: ignore[import-not-found]
from pydantic import BaseModel

from models import Method


class TinyRefinedConfig(BaseModel, frozen=True, extra="forbid"):
    band: tuple[float, float] = (0.0, 0.5)
    flawed: bool = False


class TinyRefined(Tiny):  # type: ignore[misc]
    """Its first probability grows with the crop's brightness; its second one is another."""

    def __init__(self, config: TinyRefinedConfig) -> None:
        super().__init__(TinyConfig())
        self.refinement_band = config.band
        self.flawed = config.flawed

    def attack_logit(self, outputs):
        return outputs.logit

    def refinement_features(self, outputs):
        return torch.stack([outputs.logit, -outputs.logit], dim=1)

    def refine(self, features):
        if self.flawed and torch.compiler.is_exporting():
            return features[:, 0]
        return 2 + 3 * features[:, 1]

    def fit_refinement(self, features, labels):
        assert features.shape == (len(labels), 2)  # there is nothing to fit


METHOD = Method(TinyRefinedConfig, TinyRefined)
