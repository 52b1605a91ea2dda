"""CLIP's losses and their gradients over a data set, against slow direct computations."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

import mu
from mu.core.errors import DataError
from mu.data.canvas import RenderedPair, rendered_pairs
from mu.models import contrastive
from mu.models.clip import ClipModel
from mu.models.contrastive import (
    batch_gradients,
    contrastive_loss,
    cosine_loss,
    encode_pairs,
    losses,
    mean_gradients,
    mean_of_batches,
)
from mu.models.parameters import select

NAMES = [
    "visual_projection.weight",
    "text_encoder.encoder.layers.1.mlp.fc1.weight",
    "vision_model.encoder.layers.0.self_attn.q_proj.weight",
]


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    found = mu.load("canvas-clip", device="cpu")
    assert isinstance(found, ClipModel)
    return found


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cosine_loss_is_torchs_with_target_one() -> None:
    v, t = unit(6, 0), unit(6, 1)
    assert torch.allclose(cosine_loss(v, t).mean(), F.cosine_embedding_loss(v, t, torch.ones(6)), atol=1e-6)


def test_blocks_in_one_batch_are_the_blocks_one_at_a_time() -> None:
    v, t, scale = unit(12, 0), unit(12, 1), torch.tensor(20.0)
    found = contrastive_loss(v, t, scale, 4)
    for k in range(3):
        logits = scale * v[4 * k : 4 * k + 4] @ t[4 * k : 4 * k + 4].T
        labels = torch.arange(4)
        assert torch.allclose(
            found[k], (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2, atol=1e-5
        )
    assert not torch.allclose(contrastive_loss(v, t, scale, 12), found.mean(), atol=1e-2), (
        "control: the block's size is in the loss"
    )


@pytest.mark.parametrize(("objective", "n"), [("cosine", 10), ("contrastive", 8)])
def test_the_gradient_is_that_of_the_mean_over_all_pairs_whatever_the_chunks(objective, n, clip: ClipModel) -> None:
    pairs, parameters = rendered_pairs(10, 1), select(clip, NAMES)
    v, t = None, None
    for p in parameters.values():
        p.requires_grad_(True)
    v, t = encode_pairs(clip, pairs[:n])
    loss = cosine_loss(v, t).mean() if objective == "cosine" else contrastive_loss(v, t, clip.logit_scale, 4).mean()
    direct = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    for p in parameters.values():
        p.requires_grad_(False)
    for chunk in (4, 100):
        found = mean_gradients(clip, pairs, parameters, objective, block=4, chunk=chunk)
        for name, g in direct.items():
            assert torch.allclose(found[name], g, rtol=1e-3, atol=1e-6), name
    assert not any(p.requires_grad or p.grad is not None for p in clip.model.parameters())


def test_gradients_of_a_model_in_half_precision_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pairs with one gradient: their mean is that gradient, and a sum in half precision loses it."""
    theta = torch.nn.Parameter(torch.zeros(50, dtype=torch.bfloat16), requires_grad=False)
    g, times = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16(), 1000
    monkeypatch.setattr(contrastive, "losses", lambda _clip, pairs, *_: (theta * g).sum().expand(len(pairs)))
    model, pairs = cast(ClipModel, None), cast("list[RenderedPair]", [None] * times)
    found = mean_gradients(model, pairs, {"w": theta}, "cosine", block=1, chunk=1)["w"]
    assert found.dtype == torch.float32
    assert torch.allclose(found, g.float(), rtol=1e-4)
    each = [grad["w"].dtype for grad, _ in batch_gradients(model, pairs[:2], {"w": theta}, "cosine")]
    assert each == [torch.float32], "also for those who sum on their own"
    running = torch.zeros_like(g)
    for _ in range(times):
        running += g
    assert (running.float() / times - g.float()).norm() > 0.1 * g.norm(), "control"


def test_pairs_that_fill_no_block_are_told_or_a_block_of_their_own(
    clip: ClipModel, caplog: pytest.LogCaptureFixture
) -> None:
    pairs, parameters = rendered_pairs(10, 1), select(clip, NAMES[:1])
    (p,) = parameters.values()
    p.requires_grad_(True)
    direct = [
        torch.autograd.grad(losses(clip, part, "contrastive", len(part)).sum(), p)[0]
        for part in (pairs[:4], pairs[4:8], pairs[8:])
    ]
    p.requires_grad_(False)

    def found(partial: bool, chunk: int, some: list = pairs, objective: Any = "contrastive") -> list[torch.Tensor]:
        given = batch_gradients(clip, some, parameters, objective, block=4, chunk=chunk, partial=partial)
        return [gradients[NAMES[0]] for gradients, _ in given]

    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-6}
    for chunk in (4, 100):
        kept = found(True, chunk)
        assert torch.allclose(sum(kept[:-1]), direct[0] + direct[1], **close)
        assert torch.allclose(kept[-1], direct[2], **close)
    assert len(found(True, 4, pairs[:8])) == 2 and len(found(True, 4, pairs[:3])) == 1
    assert not caplog.records
    assert len(found(False, 4)) == 2
    assert "2 of 10 pairs" in caplog.text, "what is left out is told"
    caplog.clear()
    found(False, 4, objective="cosine")
    assert not caplog.records, "control: a loss of single pairs leaves none out"


def test_the_batch_size_changes_the_retain_gradient_and_the_chunk_does_not(clip: ClipModel) -> None:
    pairs, parameters = rendered_pairs(16, 3), select(clip, NAMES)

    def cosines(block: int, chunk: int) -> list[float]:
        found = mean_gradients(clip, pairs, parameters, "contrastive", block=block, chunk=chunk)
        return [float(torch.cosine_similarity(found[n].flatten(), published[n].flatten(), dim=0)) for n in NAMES]

    published = mean_gradients(clip, pairs, parameters, "contrastive", block=8)
    assert max(cosines(4, 128)) < 0.99
    assert min(cosines(8, 8)) > 0.9999, "control"


def test_a_mean_of_batches_counts_a_short_batch_in_full(clip: ClipModel) -> None:
    pairs, parameters, name = rendered_pairs(6, 1), select(clip, NAMES[:1]), NAMES[0]
    parts = [mean_gradients(clip, part, parameters, "cosine")[name] for part in (pairs[:4], pairs[4:])]
    found = mean_of_batches(clip, pairs, parameters, "cosine", block=4, chunk=4)[name]
    assert torch.allclose(found, (parts[0] + parts[1]) / 2, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found, mean_gradients(clip, pairs, parameters, "cosine")[name], rtol=1e-2), "control"


def test_too_few_pairs_for_a_block_are_refused(clip: ClipModel) -> None:
    with pytest.raises(DataError, match=r"\b10\b.*\b16\b"):
        mean_gradients(clip, rendered_pairs(10, 1), select(clip, NAMES), "contrastive")
