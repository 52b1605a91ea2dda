"""The Fréchet distance between two sets of features (FID, if an Inception network computes them)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.jackknife import Squared, check_pairs, left_out


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the normal distributions fitted to ``a`` (n, d) and ``b`` (m, d).

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) with unbiased covariances S, in float64; 0 and more, lower
    is closer, 0 for equal moments, symmetric. Source: Dowson & Landau 1982; Heusel et al. 2017 (arXiv 1706.08500).

    Small samples: the distance of two samples of *one* distribution is above 0 and falls like 1/n, and a covariance of
    n features has rank n - 1 at most. Compare only distances of equal n and m. 2048 Inception features need thousands
    of images, a few dozen features a few hundred. Raises `DataError` for other shapes, fewer than two rows, or values
    that are not finite.

    >>> round(frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])), 9)
    38.0

    (Means 1 and 7, variances 2 and 8: 36 + (sqrt 8 - sqrt 2)^2.)
    """
    _check(a, b)
    return _between(_moments(a), _moments(b))


def frechet_jackknife(a: Tensor, b: Tensor, *, fixed: bool = False) -> Squared:
    """`frechet_distance` with what its interval needs: 20 more of it.

    The images of ``a`` (n, d) are those of other prompts and seeds, had others been drawn. So are those of ``b`` (n, d)
    at the same places, unless it is ``fixed`` (m, d), a reference that stays.

    >>> a = torch.eye(20)
    >>> frechet_jackknife(a, a + 1).value == frechet_distance(a, a + 1), len(frechet_jackknife(a, a + 1).without)
    (True, 20)
    """
    _check(a, b)
    check_pairs(a, b, fixed)
    reference = _moments(b)

    def without(kept: Tensor) -> float:
        return _between(_moments(a[kept]), reference if fixed else _moments(b[kept]))

    return Squared(_between(_moments(a), reference), left_out(without, len(a)))


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise DataError(
            f"features (n, d) and (m, d) with n, m > 1 are needed, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the network and its input")


Moments = tuple[Tensor, Tensor]


def _between(a: Moments, b: Moments) -> float:
    (mean_a, root_a), (mean_b, root_b) = a, b
    # With S = R^T R the eigenvalues of S_a S_b are the squared singular values of R_a R_b^T. Computed directly they
    # keep all digits; the usual matrix root of S_a S_b loses half of them if S is singular, as for n <= d.
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(float(distance), 0.0)


def _moments(features: Tensor) -> Moments:
    """Mean (d,) and R (min(n, d), d) with R^T R the covariance."""
    features = features.cpu().double()  # some accelerators lack float64
    mean = features.mean(dim=0)
    return mean, torch.linalg.qr((features - mean) / math.sqrt(len(features) - 1), mode="r").R
