"""Forget-Me-Not's two objectives against attention maps computed head by head, and its cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from mu.algorithms.forget_me_not.algorithm import ForgetMeNot, word_positions
from mu.core.errors import ConfigError
from mu.models.diffusion import DiffusionModel
from mu.training.tuning import tuned


def method(model: DiffusionModel, **settings: Any) -> ForgetMeNot:
    images = {"count": 2, "steps": 2}
    found = ForgetMeNot({"concepts": ["neon style", "star"], "pictures": images, **settings}, model=model)
    found.prepare(model)
    return found


class Slow:
    """An attention processor that computes everything in loops and keeps the terms of both objectives."""

    def __init__(self, anchor: Tensor, words: list[int]):
        self.anchor, self.words = anchor, words
        self.terms: dict[str, list[Tensor]] = {"logits": [], "attention": []}

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        assert encoder_hidden_states is not None
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        k_anchor, d = attn.to_k(self.anchor), q.shape[-1] // attn.heads
        outputs, squares, attended = [], [], []
        for head in range(attn.heads):
            part = slice(head * d, (head + 1) * d)
            logits, logits_a = (q[0, :, part] @ keys[0, :, part].T / d**0.5 for keys in (k, k_anchor))
            probabilities = logits.softmax(dim=1)
            squares.append((logits - logits_a).pow(2))
            attended.append(sum(probabilities[:, w].pow(2).sum() for w in self.words))
            outputs.append(probabilities @ v[0, :, part])
        self.terms["logits"].append(torch.stack(squares).mean())
        self.terms["attention"].append(torch.stack(attended).sum())
        return attn.to_out[0](torch.cat(outputs, dim=1)[None])


def reference(
    model: DiffusionModel, fmn: ForgetMeNot, i: int, seed: int, prompt: str, anchor: str, words: list[int]
) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    torch.randint(1, (1,), generator=g)  # which template
    t = int(torch.randint(1000, (1,), generator=g))
    x_0 = fmn.images[i % 2][i // 2]
    a = model.alphas_cumprod[t]
    x = a.sqrt() * x_0 + (1 - a).sqrt() * torch.randn(x_0.shape, generator=g)
    c, other = (model.encode([text]).sequence for text in (prompt, anchor))
    processors, slow = dict(model.unet.attn_processors), Slow(other, words)
    try:
        model.unet.set_attn_processor({name: slow if ".attn2." in name else old for name, old in processors.items()})
        model.unet(x, t, c)
    finally:
        model.unet.set_attn_processor(processors)
    return torch.stack(slow.terms[fmn.config.objective]).sum()


@pytest.mark.parametrize("objective", ["logits", "attention"])
def test_a_step_is_the_sum_over_slow_maps(objective: str, tiny: DiffusionModel) -> None:
    fmn = method(tiny, objective=objective)
    cases = [("a painting of neon style", [4, 5]), ("a painting of star", [4])]
    with tuned(tiny.parameters("cross-attention")) as tuning:
        weights = list(tuning.parameters.values())
        for i, (prompt, words) in enumerate(cases):
            found = fmn.step(tuning, i, torch.Generator().manual_seed(i))["loss"]
            wanted = reference(tiny, fmn, i, i, prompt, "a painting of", words)
            assert torch.allclose(found, wanted, rtol=1e-4)
            both = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (found, wanted)]
            assert [g is None for g in both[0]] == [g is None for g in both[1]]
            pairs = [(f, w) for f, w in zip(*both, strict=True) if f is not None]
            scale = max(float(w.abs().max()) for _, w in pairs)
            assert all(torch.allclose(f, w, rtol=0, atol=1e-4 * scale) for f, w in pairs)
            other = reference(tiny, fmn, i, i, prompt, "a painting by", [3])  # control: another anchor, another word
            assert not torch.allclose(found, other, rtol=1e-2)


def test_logits_of_equal_prompts_are_equal(tiny: DiffusionModel) -> None:
    fmn = method(tiny)
    with tuned(tiny.parameters("cross-attention")) as tuning:
        losses = []
        for other in ("star", "moon"):
            fmn.encoded[0] = [tiny.encode(["star", other])]
            losses.append(float(fmn.step(tuning, 0, torch.Generator().manual_seed(0))["loss"].detach()))
    assert losses[0] == 0
    assert losses[1] > 0  # control


def test_where_the_words_are(tiny: DiffusionModel) -> None:
    assert word_positions(tiny, "a painting of neon style", "neon style") == [4, 5]
    assert word_positions(tiny, "Neon style", "neon style") == [1, 2]
    with pytest.raises(ConfigError, match="'star'"):
        word_positions(tiny, "moon " * 20 + "star", "star")


def test_model_evaluations_of_a_step(tiny: DiffusionModel) -> None:
    """One sample with gradient; the loss reaches every cross-attention tensor but the last layer's values and
    output."""
    fmn = method(tiny)
    seen: list[tuple[int, bool]] = []
    with tuned(tiny.parameters("cross-attention")) as tuning:
        fmn.step(tuning, 0, torch.Generator().manual_seed(0))
        handle = tiny.unet.register_forward_pre_hook(
            lambda _, args: seen.append((len(args[0]), torch.is_grad_enabled()))
        )
        loss = fmn.step(tuning, 0, torch.Generator().manual_seed(0))["loss"]
        handle.remove()
        found = torch.autograd.grad(loss, list(tuning.parameters.values()), allow_unused=True)
        unused = [name for name, g in zip(tuning.parameters, found, strict=True) if g is None]
    assert seen == [(1, True)]
    assert len(unused) == 3
    assert all(".to_v." in name or ".to_out." in name for name in unused)
    assert not any(layer._forward_hooks for layer in tiny.unet.modules())
