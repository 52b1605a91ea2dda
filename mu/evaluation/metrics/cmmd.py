"""CMMD: the maximum mean discrepancy of two sets of CLIP features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.jackknife import GROUPS, Squared, check_pairs, groups

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
    return cmmd_jackknife(a, b, fixed=len(a) != len(b)).value


def cmmd_jackknife(a: Tensor, b: Tensor, *, fixed: bool = False) -> Squared:
    """`cmmd` with what its interval needs: sums over pairs of groups, which cost nothing beside the pairs themselves.

    The images of ``a`` (n, d) are those of other prompts and seeds, had others been drawn. So are those of ``b`` (n, d)
    at the same places, unless it is ``fixed`` (m, d), a reference that stays.

    >>> cmmd_jackknife(torch.eye(20), torch.eye(20)).interval
    (0.0, 0.0)
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not min(len(a), len(b)):
        raise DataError(f"features (n, d) and (m, d) are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the network and its input")
    check_pairs(a, b, fixed)
    x, y, own = a.cpu().double(), b.cpu().double(), groups(len(a))
    first, second = _member(own, len(x)), _member(own[:0] if fixed else own, len(y))
    sums = _Sums(_likeness(x, x, first, first), _likeness(y, y, second, second), _likeness(x, y, first, second))
    sizes = first.sum(dim=0), second.sum(dim=0)

    def without(group: int | None) -> float:
        return sums.squared(_weights(len(sizes[0]), group), _weights(len(sizes[1]), group), *sizes)

    return Squared(without(None), [without(k) for k in range(GROUPS)] if len(own) else [])


class _Sums(NamedTuple):
    """The sums of k over the pairs of images of two groups: within the first set, within the second, between them."""

    first: Tensor
    second: Tensor
    between: Tensor

    def squared(self, w: Tensor, v: Tensor, first: Tensor, second: Tensor) -> float:
        """1000 MMD^2 of the groups whose weights ``w`` and ``v`` are 1; ``first`` and ``second`` are their sizes."""
        n, m = w @ first, v @ second
        found = w @ self.first @ w / n**2 + v @ self.second @ v / m**2 - 2 * (w @ self.between @ v) / (n * m)
        return max(0.0, SCALE * float(found))


def _weights(g: int, group: int | None) -> Tensor:
    """(g,): 0 for the ``group``, 1 for the others; a set of one group keeps it."""
    weights = torch.ones(g, dtype=torch.float64)
    if g > 1 and group is not None:
        weights[group] = 0
    return weights


def _member(places: Tensor, n: int) -> Tensor:
    """(n, g): 1 for each image's own group; one group of all without ``places``."""
    return torch.nn.functional.one_hot(places, GROUPS).double() if len(places) else torch.ones(n, 1).double()


def _likeness(p: Tensor, q: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """The sum of k over the pairs of two groups (g, h), with the rows' groups ``own`` (n, g) and ``other`` (m, h)."""
    total = torch.zeros(own.shape[1], other.shape[1], dtype=torch.float64)
    for rows, member in zip(p.split(BLOCK), own.split(BLOCK), strict=True):
        squares = torch.cdist(rows, q, compute_mode="donot_use_mm_for_euclid_dist").square()
        total += member.T @ torch.exp(-squares / (2 * SIGMA**2)) @ other
    return total
