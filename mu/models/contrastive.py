"""CLIP's losses on captioned images, and their exact gradients over a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core import parallel
from mu.core.errors import DataError
from mu.data.pairs import Captioned
from mu.models.clip import ClipModel
from mu.models.objectives import Objective

log = logging.getLogger("mu")


def cosine_loss(v: Tensor, t: Tensor) -> Tensor:
    """1 - cos of each pair of unit vectors (n, d): (n,)."""
    return 1 - (v * t).sum(dim=-1)


def contrastive_loss(v: Tensor, t: Tensor, scale: Tensor, block: int) -> Tensor:
    """CLIP's symmetric cross-entropy within blocks of ``block`` pairs, for unit vectors (n, d): (n / block,).

    n must be a multiple of ``block``. Blocks run as one batch, with the same results as one at a time.
    """
    logits = scale * v.unflatten(0, (-1, block)) @ t.unflatten(0, (-1, block)).transpose(1, 2)
    labels = torch.arange(block, device=v.device).expand(len(logits), -1)
    to_text, to_image = (F.cross_entropy(each, labels, reduction="none") for each in (logits.transpose(1, 2), logits))
    return (to_text + to_image).mean(dim=1) / 2


def encode_pairs(clip: ClipModel, pairs: Sequence[Captioned]) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, d) of images and captions; a caption that occurs twice is encoded once."""
    texts = list(dict.fromkeys(pair.caption for pair in pairs))
    rows = torch.tensor([texts.index(pair.caption) for pair in pairs], device=clip.device)
    return clip.encode_images([pair.image() for pair in pairs]), clip.encode_text(texts)[rows]


def losses(clip: ClipModel, pairs: Sequence[Captioned], objective: Objective, block: int) -> Tensor:
    """One loss for each pair (cosine) or each whole block of pairs (contrastive)."""
    v, t = encode_pairs(clip, pairs)
    return cosine_loss(v, t) if objective == "cosine" else contrastive_loss(v, t, clip.logit_scale, block)


@contextmanager
def differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Enable gradients of ``parameters``, and of nothing else in the frozen model, inside the block."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def batch_gradients(
    clip: ClipModel, pairs: Sequence[Captioned], parameters: dict[str, nn.Parameter], objective: Objective, *,
    block: int = 16, chunk: int = 128, partial: bool = False, progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[dict[str, Tensor], int]]:  # fmt: skip
    """Yield the gradients of the *sum* of losses over each chunk of pairs, and its number of losses.

    Gradients are in float32 for any precision of the model: in half precision the sum of many stops growing. The
    contrastive loss depends on the block's size. Pairs that do not fill a whole block are left out, with one warning,
    or with ``partial`` they are a last, smaller block and one loss more. Of ``part`` (k, n) only the k-th of n runs of
    consecutive chunks are computed, k from 0; others' images are not read. Raises `DataError` if no pair is left.
    """
    whole = len(pairs) // block * block
    usable = len(pairs) if objective == "cosine" or partial else whole
    if not usable:
        raise DataError(f"{len(pairs)} pairs do not fill a batch of {block}: give more images or a smaller batch size")
    if left := len(pairs) - usable:
        log.warning("%d of %d pairs fill no batch of %d and are left out of the loss", left, len(pairs), block)
    names, tensors = list(parameters), list(parameters.values())
    chunks = _chunks(usable, max(1, chunk // block) * block, usable if objective == "cosine" else whole)
    first, last = (len(chunks) * end // part[1] for end in (part[0], part[0] + 1))
    with differentiable(tensors):
        for start, stop in chunks[first:last]:
            each = losses(clip, pairs[start:stop], objective, min(block, stop - start))
            found = torch.autograd.grad(each.sum(), tensors, allow_unused=True)
            gradients = {
                name: torch.zeros_like(p, dtype=torch.float32) if g is None else g.float()
                for name, p, g in zip(names, tensors, found, strict=True)
            }
            del found  # so that a caller who empties the mapping frees the gradients before the next chunk
            if progress:
                progress(stop, usable)
            yield gradients, len(each)


def _chunks(n: int, size: int, whole: int) -> list[tuple[int, int]]:
    """Parts of 0 .. ``n`` with at most ``size`` numbers each; what is behind ``whole`` is a part of its own."""
    starts = [*range(0, whole, size), *([whole] if whole < n else [])]
    return list(zip(starts, [*starts[1:], n], strict=True))


def mean_gradients(
    clip: ClipModel, pairs: Sequence[Captioned], parameters: dict[str, nn.Parameter], objective: Objective, **options
) -> dict[str, Tensor]:
    """Gradient of the mean loss over all pairs: every pair (or block) has the same weight, for any size of chunk.

    Several processes (`mu.core.parallel`) compute a run of chunks each, of the same pairs, and share the sums. Memory
    holds the sum and the gradients of one chunk.
    """
    total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    count, own = 0, (parallel.rank(), parallel.count())
    for found, n in batch_gradients(clip, pairs, parameters, objective, part=own, **options):
        for name in list(found):
            total[name] += found.pop(name)
        count += n
    parallel.total(total.values())
    count = sum(parallel.joined(count))
    return {name: g.div_(count) for name, g in total.items()}


def mean_of_batches(
    clip: ClipModel, pairs: Sequence[Captioned], parameters: dict[str, nn.Parameter], objective: Objective, **options
) -> dict[str, Tensor]:
    """The mean over chunks of the gradient of each chunk's mean loss: a shorter last chunk counts as much as a full
    one."""
    total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    count = 0
    for found, n in batch_gradients(clip, pairs, parameters, objective, **options):
        for name in list(found):
            total[name] += found.pop(name) / n
        count += 1
    return {name: g.div_(count) for name, g in total.items()}
