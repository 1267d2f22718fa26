"""Attacks made from bona fide faces, for training without (or beside) real ones.

Only for bona fide training images: an attack on an attack has no meaning, and a score on these
families measures the generator.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from train.attacks._random_fields import either
from train.attacks._samples import FaceInScene, LooseCrop, SyntheticAttack
from train.attacks.print_attack import print_attack
from train.attacks.replay import replay
from train.attacks.restyle import restyle
from train.attacks.scene import held, paper_mask, whole_view
from train.attacks.sdsc import sdsc
from train.attacks.self_blend import self_blend
from train.attacks.spsc import moire, print_jitter, spsc
from train.attacks.swap import redrawn, swap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.random import Generator

    from train.attacks.autoencoder import FaceAutoencoder

__all__ = [
    "FAMILIES",
    "REDRAWN",
    "SCENES",
    "UNIATTACKDATA_SCHEDULES",
    "FaceInScene",
    "LooseCrop",
    "SyntheticAttack",
    "draw_family",
    "synthesise",
]

FAMILIES: Final[Mapping[str, Callable[[LooseCrop, Generator], SyntheticAttack]]] = {
    "sbi": self_blend,
    "sdsc": sdsc,
    "restyle": restyle,
    "moire": moire,
    "print_jitter": print_jitter,
    "spsc": spsc,
    "replay": replay,
    "print": print_attack,
}

REDRAWN: Final[
    Mapping[
        str,
        Callable[[LooseCrop, LooseCrop, Sequence[FaceAutoencoder], Generator], SyntheticAttack],
    ]
] = {"swap": swap, "redrawn": redrawn}
"""Attacks drawn by autoencoders: of a face, at times with another one in its place."""

SCENES: Final[Mapping[str, Callable[[FaceInScene, FaceInScene, Generator], SyntheticAttack]]] = {
    **{kind: partial(held, kind) for kind in ("phone", "tablet", "monitor", "paper", "photo")},
    "whole_view": whole_view,
    "paper_mask": paper_mask,
}
"""Attacks with what is around them: of a face, and of another whose scene is behind it."""

# Shares of the bona fide pictures that UniAttackData's challenge winner turned into attacks, by
# protocol; P2.1 tests on unseen physical, P2.2 on unseen digital attacks (see `spsc`, `sdsc`).
UNIATTACKDATA_SCHEDULES: Final[Mapping[str, Mapping[str, float]]] = {
    "P1": {"spsc": 0.1, "sdsc": 0.1},
    "P2.1": {"moire": 0.3, "print_jitter": 0.3},
    "P2.2": {"sdsc": 0.5},
}


def synthesise(face: LooseCrop, rng: Generator, weights: Mapping[str, float]) -> SyntheticAttack:
    """Make one attack of a family drawn by weight.

    Args:
        face: A bona fide training face.
        rng: Source of every draw: the same state gives the same attack.
        weights: Share of each family of `FAMILIES`; a family left out is never made.

    Raises:
        ValueError: A family is unknown, or no weight is positive.
    """
    return FAMILIES[draw_family(rng, weights)](face, rng)


def draw_family(rng: Generator, weights: Mapping[str, float]) -> str:
    """Draw the name of a family by weight.

    Raises:
        ValueError: As `synthesise`.
    """
    unknown = weights.keys() - FAMILIES.keys()
    if unknown or min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
        raise ValueError(
            f"weights must be 0 or more, not all 0, for families of {sorted(FAMILIES)}; "
            f"got {dict(weights)}"
        )
    return either(rng, weights)
