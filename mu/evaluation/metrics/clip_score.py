"""CLIPScore: how well images match their prompts."""

from __future__ import annotations

from torch import Tensor

from mu.core.errors import DataError


def clip_score(images: Tensor, texts: Tensor) -> float:
    """Mean over the pairs of 2.5 max(0, cos(image, text)), in 0..2.5, higher is better.

    ``images`` and ``texts`` (n, d) are embeddings of one CLIP model, row by row an image and its prompt; their lengths
    do not matter. Source: Hessel et al. 2021 (arXiv 2104.08718), w = 2.5. torchmetrics and most unlearning tables give
    100 max(0, cos) instead: 40 times this. Raises `DataError` for other shapes, for no pairs, and for rows that are
    zero or not finite.

    >>> import torch
    >>> clip_score(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, -1.0]]))
    0.75
    """
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise DataError(f"embeddings (n, d) twice are needed, not {tuple(images.shape)} and {tuple(texts.shape)}")
    # On the CPU: some accelerators lack float64.
    images, texts = images.cpu().double(), texts.cpu().double()
    lengths = images.norm(dim=1) * texts.norm(dim=1)
    if not (lengths.isfinite() & (lengths > 0)).all():
        raise DataError("an embedding is zero or not finite: check the model and its input")
    return float(2.5 * ((images * texts).sum(dim=1) / lengths).clamp(min=0).mean())
