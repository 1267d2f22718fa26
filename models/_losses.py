"""Loss terms that more than one method uses, or whose numerics deserve a place of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def asymmetric_triplet(features: Tensor, is_bona_fide: Tensor, margin: float) -> Tensor:
    """Pull bona fide samples together, push attacks away; attacks are not pulled together.

    Batch-all mining: anchor and positive are two different bona fide samples, the negative is an
    attack. The mean runs over the triplets that violate the margin (LGSC, arXiv:2005.03922;
    official code, `models/losses`).

    Args:
        features: (N, C); normalised to unit length here.
        is_bona_fide: (N,) bool.
        margin: between Euclidean (not squared) distances.

    Returns:
        Scalar; 0 with fewer than two bona fide samples or no attack.
    """
    unit = features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
    bona_fide, attack = unit[is_bona_fide], unit[~is_bona_fide]
    n = len(bona_fide)
    first, second = torch.triu_indices(n, n, 1, device=features.device)
    positive = _distance(bona_fide[first], bona_fide[second])  # (P,)
    negative = _distance(bona_fide[:, None], attack[None])  # (n, M)
    # Either sample of a pair is an anchor once.
    violations = torch.cat(
        [
            (positive[:, None] - negative[first] + margin).flatten(),
            (positive[:, None] - negative[second] + margin).flatten(),
        ]
    ).clamp_min(0)
    return violations.sum() / (violations.gt(0).sum() + 1e-16)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # The small constant keeps the square root's slope finite where two samples coincide.
    return ((a - b).square().sum(-1) + 1e-12).sqrt()
