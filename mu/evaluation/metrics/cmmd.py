"""CMMD: the maximum mean discrepancy of two sets of CLIP features."""

from __future__ import annotations

import torch
from torch import Tensor

from mu.core.errors import DataError

SIGMA, SCALE = 10.0, 1000.0
BLOCK = 512
"""Rows compared with all others at once, so that 30,000 images need no matrix of 7 GB."""


def cmmd(a: Tensor, b: Tensor) -> float:
    """1000 MMD^2 of the unit vectors ``a`` (n, d) and ``b`` (m, d): 0 and more, lower is closer.

    MMD^2 = mean k(a, a) + mean k(b, b) - 2 mean k(a, b) with k(x, y) = exp(-|x - y|^2 / 2 sigma^2), sigma = 10; the
    means include the pairs of an image with itself, as in the released code. No normal distribution is assumed, so it
    says more than a Fréchet distance of few images. Source: Jayasumana et al. 2024 (arXiv 2401.09603), eq. 4; their
    features are those of CLIP ViT-L/14 at 336 px: numbers of other CLIPs do not compare. Raises `DataError` for other
    shapes, no rows, or values that are not finite.

    >>> import torch
    >>> cmmd(torch.eye(2), torch.eye(2))
    0.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not min(len(a), len(b)):
        raise DataError(f"features (n, d) and (m, d) are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the network and its input")
    x, y = a.cpu().double(), b.cpu().double()

    def likeness(p: Tensor, q: Tensor) -> float:
        total = 0.0
        for rows in p.split(BLOCK):
            squares = torch.cdist(rows, q, compute_mode="donot_use_mm_for_euclid_dist").square()
            total += float(torch.exp(-squares / (2 * SIGMA**2)).sum())
        return total / (len(p) * len(q))

    return max(0.0, SCALE * (likeness(x, x) + likeness(y, y) - 2 * likeness(x, y)))
