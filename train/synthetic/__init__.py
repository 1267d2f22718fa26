"""Attacks made from bona fide faces, for training without (or beside) real ones.

Only for bona fide training images: an attack on an attack has no meaning, and a score on these
families measures the generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.synthetic._recapture import either
from train.synthetic._samples import LooseCrop, SyntheticAttack
from train.synthetic.print_attack import print_attack
from train.synthetic.replay import replay
from train.synthetic.self_blend import self_blend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.random import Generator

__all__ = ["LooseCrop", "SyntheticAttack", "print_attack", "replay", "self_blend", "synthesise"]

_FAMILIES = {"sbi": self_blend, "replay": replay, "print": print_attack}


def synthesise(face: LooseCrop, rng: Generator, weights: Mapping[str, float]) -> SyntheticAttack:
    """Make one attack of a family drawn by weight.

    Args:
        face: A bona fide training face.
        rng: Source of every draw: the same state gives the same attack.
        weights: Share of "sbi", "replay" and "print"; a family left out is never made.

    Raises:
        ValueError: A family is unknown, or no weight is positive.
    """
    unknown = set(weights) - set(_FAMILIES)
    if unknown or min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
        raise ValueError(
            f"weights must be 0 or more, not all 0, for families of {sorted(_FAMILIES)}; "
            f"got {dict(weights)}"
        )
    return _FAMILIES[either(rng, weights)](face, rng)
