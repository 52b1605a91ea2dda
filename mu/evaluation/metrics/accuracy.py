"""Classification accuracy from logits."""

from __future__ import annotations

from torch import Tensor

from mu.core.errors import DataError


def accuracy(logits: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of the rows whose target is among the ``k`` largest logits, in 0..1 (higher is better).

    ``logits`` (n, c) real, ``targets`` (n,) whole numbers in 0..c-1, ``k`` in 1..c. Equal logits count as if put in
    random order: a model with equal logits for every class gets k/c, neither 0 nor 1. Raises `DataError` for other
    shapes, no rows, targets or k out of range, and logits that are NaN.

    >>> import torch
    >>> logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    >>> accuracy(logits, torch.tensor([0, 2])), accuracy(logits, torch.tensor([0, 2]), k=2)
    (0.5, 1.0)
    """
    return float(_checked(logits, targets, k).mean())


def class_hits(logits: Tensor, targets: Tensor, k: int = 1) -> dict[int, list[float]]:
    """`hits` of each class that occurs in ``targets``, by class number. Arguments and errors are those of `accuracy`.

    The mean of the classes' means is the macro accuracy of SLUG's CelebA score (arXiv 2407.11867), where each person
    counts once.

    >>> import torch
    >>> class_hits(torch.tensor([[3.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1, 1]))
    {0: [1.0], 1: [1.0, 0.0]}
    """
    found = _checked(logits, targets, k)
    return {int(label): found[targets == label].tolist() for label in targets.unique()}


def hits(logits: Tensor, targets: Tensor, k: int = 1) -> Tensor:
    """(n,) float32 in 0..1: the chance that the target is in the top ``k`` of ``logits`` (n, c), ties broken at random.

    1 or 0 if no other class has the target's logit. A target whose logit is NaN scores 0.

    >>> import torch
    >>> hits(torch.tensor([[3.0, 1.0], [1.0, 1.0], [torch.nan, 1.0]]), torch.tensor([0, 0, 0]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    own = logits.gather(1, targets[:, None].long())
    above, level = (logits > own).sum(dim=1), (logits == own).sum(dim=1)
    return ((k - above).float() / level).clamp(0, 1).where(~own[:, 0].isnan(), 0)


def _checked(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """`hits` in float64."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not len(targets):
        raise DataError(
            f"logits (n, c) and targets (n,) are needed, not {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if targets.is_floating_point() or targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise DataError(f"targets must be whole numbers in 0 .. {logits.shape[1] - 1}")
    if not 1 <= k <= logits.shape[1]:
        raise DataError(f"k must lie in 1 .. {logits.shape[1]}, the number of classes, not {k}")
    if logits.isnan().any():
        raise DataError("logits hold NaN: check the model and its input")
    return hits(logits, targets, k).cpu().double()
