"""Thin factors of a matrix: the smallest rank that leaves no more than a given error."""

from __future__ import annotations

import torch
from torch import Tensor

from mu.edits.membrane import Factors

SMALL = 160
"""Smaller side up to which the whole singular value decomposition takes milliseconds."""
_MORE = 8
"""Further directions that are looked at, so that the last wanted one is found exactly."""


def factored(delta: Tensor, tolerated: float, rank: int | None = None) -> Factors | None:
    """Factors of ``delta`` (out, in[, 1, 1]) that differ from it by at most ``tolerated``, in the Frobenius norm.

    The result has the smallest such rank; with ``rank``, at most that one, whatever the error. Without ``rank``, None
    if the factors would hold as many numbers as ``delta``.
    """
    matrix = delta.detach().flatten(1).double()
    side, most = min(matrix.shape), (matrix.numel() - 1) // sum(matrix.shape)
    if rank is not None:
        up, sizes, down, rest = _decomposed(matrix, rank + _MORE, rounds=4)
        return _factors(delta, up, sizes, down, min(rank, _needed(sizes, rest, tolerated) or rank, len(sizes)))
    tried = side if side <= SMALL else 16
    while True:
        up, sizes, down, rest = _decomposed(matrix, tried)
        if needed := _needed(sizes, rest, tolerated):
            return _factors(delta, up, sizes, down, needed) if needed <= most else None
        if tried >= most or tried + (rest - tolerated**2) / (2 * float(sizes[-1]) ** 2 + 1e-300) > most:
            return None  # no direction that is left is larger than the last one, so too many are
        tried *= 4


def _needed(sizes: Tensor, rest: float, tolerated: float) -> int | None:
    """The smallest rank, at least 1, whose error is at most ``tolerated``; None if that of all ``sizes`` is larger.

    ``sizes`` are singular values, and ``rest`` is the squared norm of what they leave.
    """
    left = torch.cat([rest + sizes.square().flip(0).cumsum(0).flip(0), torch.tensor([rest], dtype=sizes.dtype)]).sqrt()
    enough = left <= tolerated  # of rank 0, 1, ...
    return max(1, int(enough.int().argmax())) if bool(enough.any()) else None


def _decomposed(matrix: Tensor, count: int, rounds: int = 2) -> tuple[Tensor, Tensor, Tensor, float]:
    """The ``count`` largest singular values with their vectors, and the squared norm of the rest.

    A random subspace, sharpened in ``rounds`` of multiplication, holds them. The numbers are seeded: equal matrices
    have equal factors.
    """
    side = min(matrix.shape)
    if side <= SMALL or 2 * count >= side:
        up, sizes, down = torch.linalg.svd(matrix, full_matrices=False)
        rest = float(sizes[count:].square().sum())
        return up[:, :count], sizes[:count], down[:count], rest
    start = torch.randn(matrix.shape[1], count, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    up, sizes, down = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    up = basis @ up
    rest = float((matrix - up * sizes @ down).square().sum())
    return up, sizes, down, rest


def _factors(delta: Tensor, up: Tensor, sizes: Tensor, down: Tensor, rank: int) -> Factors:
    root = sizes[:rank].sqrt()
    ends = (1,) * (delta.dim() - 2)
    return Factors(
        (root[:, None] * down[:rank]).float().reshape(rank, delta.shape[1], *ends).contiguous(),
        (up[:, :rank] * root).float().reshape(len(delta), rank, *ends).contiguous(),
        float(rank),
    )
