"""Steps of each published method, computed from its equations alone: golden tensors for `test_parity.py`.

    python tests/reference/make_steps.py

writes ``tests/reference/steps/<name>.safetensors``. Nothing here comes from the package under test. The network is
diffusers' own UNet class, small, in double precision, with weights from a formula; the noise schedule is in float32, as
in all released programs. Random numbers are drawn in the order that each step states. Section numbers refer to the
papers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPConfig, CLIPModel

FOLDER = Path(__file__).parent / "steps"
SIZE, TOKENS, WIDTH = 8, 6, 16
UNET: dict[str, Any] = {
    "sample_size": SIZE,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, dim=0)
START, END = 834, 835
"""Ids of the start token and of the end token, which is the padding too."""

Loss = Callable[[int], Tensor]


# -- the world --------------------------------------------------------------------------------------------------------


def numbers(name: str, *shape: int) -> Tensor:
    """Normal numbers that belong to ``name``, in float64; the same for every version of every library."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return torch.from_numpy(draw.standard_normal(shape))


def unet() -> UNet2DConditionModel:
    """The network, with a weight of each name from `numbers`."""
    network = UNet2DConditionModel(**UNET).double().requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        drawn = numbers(name, *parameter.shape)
        if parameter.dim() > 1:
            parameter.copy_(drawn / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * drawn + (name.endswith("weight") and "norm" in name))
    return network


def prompt(text: str) -> Tensor:
    """The embedding (1, tokens, width) of ``text``; all texts share the start token's row."""
    return torch.cat([numbers("start", 1, 1, WIDTH), numbers(f"prompt {text}", 1, TOKENS - 1, WIDTH)], dim=1)


def image(k: int) -> Tensor:
    return numbers(f"image {k}", 1, 4, SIZE, SIZE)


def selected(network: nn.Module, *parts: str) -> dict[str, nn.Parameter]:
    """The parameters whose names contain one of ``parts``, with gradients."""
    found = {name: p for name, p in network.named_parameters() if any(part in name for part in parts)}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def noised(x_0: Tensor, t: int, noise: Tensor) -> Tensor:
    """sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
    return ALPHA_BAR[t].sqrt().double() * x_0 + (1 - ALPHA_BAR[t]).sqrt().double() * noise


def drawn(g: torch.Generator) -> tuple[int, Tensor]:
    """A timestep and noise, in this order."""
    t = int(torch.randint(1000, (1,), generator=g))
    return t, torch.randn(1, 4, SIZE, SIZE, generator=g, dtype=torch.float64)


def guided(network: nn.Module, x: Tensor, t: int, c: Tensor, empty: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance."""
    e_0, e_c = network(x, t, empty).sample, network(x, t, c).sample
    return e_0 + scale * (e_c - e_0)


def ddim(x: Tensor, e: Tensor, alpha: Tensor, alpha_before: Tensor) -> Tensor:
    """The deterministic step from the level ``alpha`` to ``alpha_before``, with the schedule's float32 roots."""
    x_0 = (x - (1 - alpha).sqrt().double() * e) / alpha.sqrt().double()
    return alpha_before.sqrt().double() * x_0 + (1 - alpha_before).sqrt().double() * e


def trained(
    parameters: dict[str, nn.Parameter], loss: Loss, updates: int, lr: float, *, summed: bool = False,
    decay: float = 0.0, clip: float = 0.0, eps: float = 1e-8,
) -> dict[str, Tensor]:  # fmt: skip
    """The deltas after Adam's ``updates``, and as ``losses`` the loss at each.

    ``summed``: each step uses the sum of all gradients so far, as they are never zeroed.
    """
    weights = list(parameters.values())
    before = [weight.detach().clone() for weight in weights]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    total: list[Tensor | None] = [None] * len(weights)
    losses = []
    for i in range(updates):
        losses.append(loss(i))
        found = list(torch.autograd.grad(losses[-1], weights, allow_unused=True))
        if summed:
            total = [g if old is None or g is None else old + g for old, g in zip(total, found, strict=True)]
            found = total
        if clip:
            norm = sum(float(g.square().sum()) for g in found if g is not None) ** 0.5
            found = [None if g is None else g * min(1.0, clip / (norm + 1e-6)) for g in found]
        for k, (weight, g) in enumerate(zip(weights, found, strict=True)):
            if g is None:
                continue
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g.square()
            m, v = first[k] / (1 - 0.9 ** (i + 1)), second[k] / (1 - 0.999 ** (i + 1))
            with torch.no_grad():
                weight.mul_(1 - lr * decay).sub_(lr * m / (v.sqrt() + eps))
    deltas = {name: p.detach() - old for (name, p), old in zip(parameters.items(), before, strict=True)}
    return {"losses": torch.stack(losses).detach(), **deltas}


def kept(found: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """What a file keeps of `trained`: the losses, the deltas that end with one of ``names``, and the norm of each."""
    chosen = {name: value for name, value in found.items() if name == "losses" or name.endswith(names)}
    norms = [delta.norm() for name, delta in sorted(found.items()) if name != "losses"]
    return {**chosen, "norms": torch.stack(norms)}


KEYS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0.bias"


# -- UCE (Eq. 7) ------------------------------------------------------------------------------------------------------


def uce(C: Tensor, A: Tensor, K: Tensor, erase: float, preserve: float, lamb: float) -> dict[str, Tensor]:
    """W' = (lamb W + sum erase v c^T + sum preserve v k^T) M^-1 for each matrix by itself, as released; W' - W."""
    deltas = {}
    for name, W in unet().named_parameters():
        if not name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            continue
        above, below = lamb * W, lamb * torch.eye(WIDTH, dtype=torch.float64)
        for rows, targets, weight in ((C, A, erase), (K, K, preserve)):
            for row, target in zip(rows, targets, strict=True):
                above = above + weight * torch.outer(W @ target, row)
                below = below + weight * torch.outer(row, row)
        deltas[name] = above @ torch.linalg.inv(below) - W
    return kept(deltas, KEYS)


def uce_2023() -> dict[str, Tensor]:
    """Rows from the last token on; the anchor "" has one row more, so the last is left out. "" is preserved."""
    c, a = prompt("neon")[0, 1:], prompt("")[0, :-1]
    return uce(c, a, prompt("")[0], 1.0, 0.1, 0.5)


def uce_2025() -> dict[str, Tensor]:
    """The last tokens alone; nothing is preserved."""
    return uce(prompt("neon")[0, 1:2], prompt("")[0, :1], prompt("")[0, :0], 1.0, 1.0, 0.5)


# -- ESD (Eq. 7) ------------------------------------------------------------------------------------------------------


def esd(sample: Callable[[nn.Module, nn.Module, torch.Generator], tuple[Tensor, int]], lr: float) -> dict[str, Tensor]:
    """Two updates of |eps(x_t, c) - (eps*(x_t) - (eps*(x_t, c) - eps*(x_t)))|^2 on the cross-attention, eta 1.

    ``sample(edited, frozen, g)`` draws x_t and the timestep that the network is told.
    """
    network, frozen, g = unet(), unet(), torch.Generator().manual_seed(0)
    c, empty = prompt("neon"), prompt("")

    def loss(_: int) -> Tensor:
        with torch.no_grad():
            x, t = sample(network, frozen, g)
            e_0, e_c = frozen(x, t, empty).sample, frozen(x, t, c).sample
        return (network(x, t, c).sample - (e_0 - (e_c - e_0))).square().mean()

    return kept(trained(selected(network, "attn2"), loss, 2, lr), KEYS, OUT)


def esd_paper() -> dict[str, Tensor]:
    """x_t after k of K steps of the edited model from the highest level; the network is told the level of x_t."""

    def sample(network: nn.Module, _: nn.Module, g: torch.Generator) -> tuple[Tensor, int]:
        K, k = 5, int(torch.randint(5, (1,), generator=g))
        x = torch.randn(1, 4, SIZE, SIZE, generator=g, dtype=torch.float64)
        levels = [1000 // K * j for j in reversed(range(K))]
        for t in levels[:k]:
            e = guided(network, x, t, prompt("neon"), prompt(""), 3.0)
            before = ALPHA_BAR[t - 1000 // K] if t else torch.ones(())
            x = ddim(x, e, ALPHA_BAR[t], before)
        return x, levels[k]

    return esd(sample, 1e-5)


def esd_2023() -> dict[str, Tensor]:
    """The levels are 1, 201, ..; the highest is left out; the loop ends at the index before k (and before 1 for 0).

    Draws: k, the timestep from the k-th of K parts of 0 .. 999, noise.
    """

    def sample(network: nn.Module, _: nn.Module, g: torch.Generator) -> tuple[Tensor, int]:
        K, k = 5, int(torch.randint(5, (1,), generator=g))
        told = int(torch.randint(round(k / K * 1000), round((k + 1) / K * 1000), (1,), generator=g))
        x = torch.randn(1, 4, SIZE, SIZE, generator=g, dtype=torch.float64)
        levels = list(range(1, 1000, 1000 // K))
        before = [ALPHA_BAR[0], *(ALPHA_BAR[t] for t in levels)]
        for index in reversed(range(len(levels) - 1)):
            t = levels[index]
            x = ddim(x, guided(network, x, t, prompt("neon"), prompt(""), 3.0), ALPHA_BAR[t], before[index])
            if index + 1 == k:
                break
        return x, told

    return esd(sample, 1e-5)


def esd_2025() -> dict[str, Tensor]:
    """k steps of PNDM by the frozen model; the network is told the k-th timestep."""

    def sample(_: nn.Module, frozen: nn.Module, g: torch.Generator) -> tuple[Tensor, int]:
        k = int(torch.randint(5, (1,), generator=g))
        x = torch.randn(1, 4, SIZE, SIZE, generator=g, dtype=torch.float64)
        sampler = pndm()
        sampler.set_timesteps(5)
        for t in sampler.timesteps[:k]:
            x = sampler.step(guided(frozen, x, int(t), prompt("neon"), prompt(""), 3.0), t, x).prev_sample
        return x, int(sampler.timesteps[k])

    return esd(sample, 5e-5)


def pndm() -> PNDMScheduler:
    """The sampler that Stable Diffusion 1.4 comes with."""
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


# -- Concept ablation -------------------------------------------------------------------------------------------------


def ca_comparison() -> dict[str, Tensor]:
    """|eps(x, c) - eps*(x, a)|^2 + 10 |eps(x, a) - eps*(x, a)|^2, gradients never zeroed, two updates.

    Draws of each step: a template of one, t, noise.
    """
    network, frozen, g = unet(), unet(), torch.Generator().manual_seed(0)
    c, a = prompt("neon painting"), prompt("painting")

    def loss(i: int) -> Tensor:
        torch.randint(1, (1,), generator=g)
        t, noise = drawn(g)
        x = noised(image(i), t, noise)
        with torch.no_grad():
            aim = frozen(x, t, a).sample
        concept, anchor = network(x, t, c).sample, network(x, t, a).sample
        return (concept - aim).square().mean() + 10 * (anchor - aim).square().mean()

    return kept(trained(selected(network, "attn2"), loss, 2, 1e-5, summed=True), KEYS, OUT)


class StartDetached:
    """Attention in plain products; in the cross-attention, the start token's key and value give no gradient."""

    def __call__(self, attention: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        y = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attention.to_q(x), attention.to_k(y), attention.to_v(y)
        if encoder_hidden_states is not None:
            k, v = (torch.cat([each[:, :1].detach(), each[:, 1:]], dim=1) for each in (k, v))
        q, k, v = (each.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for each in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * attention.scale).softmax(dim=-1)
        return attention.to_out[1](attention.to_out[0]((weights @ v).transpose(1, 2).flatten(2)))


def ca_authors(target: str, prior_weight: float) -> dict[str, Tensor]:
    """Two updates of AdamW on keys and values, batch 2, images of the anchor's prompt, gradients clipped.

    ``target``: ``model``, the network's own prediction for the anchor without gradient, or ``noise``. The prior is the
    ordinary loss on the anchor's images. Draws: for each image a phrase of three, t, noise; then for each prior t,
    noise.
    """
    network, g = unet(), torch.Generator().manual_seed(0)
    network.set_attn_processor(StartDetached())
    a = prompt("painting")
    phrases = [prompt("painting, in the style of neon"), *[prompt("in neon's style, painting")] * 2]

    def loss(i: int) -> Tensor:
        batch = []
        for j in range(2):
            c = phrases[int(torch.randint(3, (1,), generator=g))]
            batch.append((image(2 * i + j), c, *drawn(g)))
        terms = []
        for x_0, c, t, noise in batch:
            x = noised(x_0, t, noise)
            with torch.no_grad():
                aim = network(x, t, a).sample if target == "model" else noise
            terms.append((network(x, t, c).sample - aim).square().mean())
        total = torch.stack(terms).mean()
        if prior_weight:
            priors = [(image(2 * i + j), *drawn(g)) for j in range(2)]
            each = [(network(noised(x_0, t, noise), t, a).sample - noise).square().mean() for x_0, t, noise in priors]
            total = total + prior_weight * torch.stack(each).mean()
        return total

    found = trained(selected(network, "attn2.to_k", "attn2.to_v"), loss, 2, 1.6e-5, decay=0.01, clip=1.0)
    return kept(found, KEYS)


def ca_model_based() -> dict[str, Tensor]:
    return ca_authors("model", 0.0)


def ca_noise_based() -> dict[str, Tensor]:
    return ca_authors("noise", 1.0)


# -- Forget-Me-Not ----------------------------------------------------------------------------------------------------


def attentions(network: nn.Module, x: Tensor, t: int, c: Tensor) -> list[tuple[Any, Tensor]]:
    """Each cross-attention with the hidden states that it reads in a pass under c."""
    seen: list[tuple[Any, Tensor]] = []
    layers = [layer for name, layer in network.named_modules() if name.endswith("attn2")]
    handles = [layer.register_forward_pre_hook(lambda m, args: seen.append((m, args[0]))) for layer in layers]
    network(x, t, c)
    for handle in handles:
        handle.remove()
    return seen


def heads(attention: Any, rows: Tensor) -> Tensor:
    return rows[0].unflatten(-1, (attention.heads, -1)).transpose(0, 1)


def fmn_comparison() -> dict[str, Tensor]:
    """sum over layers of mean((Q K_c^T - Q K_a^T)^2 / d), gradients never zeroed, two updates. Draws as above."""
    network, g = unet(), torch.Generator().manual_seed(0)
    c, a = prompt("a painting of neon"), prompt("a painting of")

    def loss(i: int) -> Tensor:
        torch.randint(1, (1,), generator=g)
        t, noise = drawn(g)
        total = torch.zeros((), dtype=torch.float64)
        for layer, h in attentions(network, noised(image(i), t, noise), t, c):
            q, k_c, k_a = heads(layer, layer.to_q(h)), heads(layer, layer.to_k(c)), heads(layer, layer.to_k(a))
            apart = q @ k_c.transpose(-1, -2) - q @ k_a.transpose(-1, -2)
            total = total + (apart.square() / q.shape[-1]).mean()
        return total

    return kept(trained(selected(network, "attn2"), loss, 2, 1e-5, summed=True), KEYS)


FMN_WORDS = [3, 4, 5]
"""The concept's token, the end token, and its padding."""


def fmn_authors() -> dict[str, Tensor]:
    """The norm of all attention to `FMN_WORDS` together, on the whole network, by AdamW with clipping; two updates."""
    network, g = unet(), torch.Generator().manual_seed(0)
    c = prompt("a photo of neon")

    def loss(i: int) -> Tensor:
        torch.randint(1, (1,), generator=g)
        t, noise = drawn(g)
        columns = []
        for layer, h in attentions(network, noised(image(i), t, noise), t, c):
            q, k = heads(layer, layer.to_q(h)), heads(layer, layer.to_k(c))
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
            columns.append(attention[..., FMN_WORDS].flatten())
        return torch.cat(columns).norm()

    deltas = trained(selected(network, ""), loss, 2, 2e-6, decay=0.01, clip=1.0)
    return kept(deltas, KEYS, "conv_in.bias")


# -- Separable erasure (Eq. 27 and 28) --------------------------------------------------------------------------------

PROTECTED = ("", "moon")
SEED_OF_IMAGES = 1_000_003
"""The k-th image's generator of the run with seed 0 has this seed, plus k."""


def protected_rows() -> Tensor:
    return torch.cat([prompt(text)[0] for text in PROTECTED])


def eliminated(rows: Tensor) -> Tensor:
    """A basis of {v : rows v = 0} by Gauss-Jordan elimination: a unit vector for each free column."""
    A, pivots = rows.clone(), []
    for column in range(A.shape[1]):
        done = len(pivots)
        if done == len(A):
            break
        best = done + int(A[done:, column].abs().argmax())
        if float(A[best, column].abs()) < 1e-9:
            continue
        A[[done, best]] = A[[best, done]]
        A[done] = A[done] / A[done, column]
        for row in range(len(A)):
            if row != done:
                A[row] = A[row] - A[row, column] * A[done]
        pivots.append(column)
    vectors = []
    for column in sorted(set(range(A.shape[1])) - set(pivots)):
        v = torch.zeros(A.shape[1], dtype=torch.float64)
        v[column] = 1
        for row, pivot in enumerate(pivots):
            v[pivot] = -A[row, column]
        vectors.append(v / v.norm())
    return torch.stack(vectors)


def null_space() -> dict[str, Tensor]:
    """The basis, the projector onto its span, and a concept's rows inside it."""
    S = eliminated(protected_rows())
    P = S.T @ torch.linalg.inv(S @ S.T) @ S
    return {"basis": S, "projector": P, "concept": prompt("neon")[0] @ P}


def correlation(network: Callable[..., Tensor], frozen: nn.Module, k: int) -> Tensor:
    """mean(r' r) at the k-th image, r = eps(c) - eps(""). Draws: t, noise, from the image's own generator."""
    t, noise = drawn(torch.Generator().manual_seed(SEED_OF_IMAGES + k))
    x = noised(image(k), t, noise)
    with torch.no_grad():
        r = frozen(x, t, prompt("neon")).sample - frozen(x, t, prompt("")).sample
    return ((network(x, t, prompt("neon")) - network(x, t, prompt(""))) * r).mean()


def sepce() -> dict[str, Tensor]:
    """w of D = w (1e-4 S) on keys and values from zero, by mean(r' r) + 1e-6 mean_l |D_l|_1; gradients never zeroed."""
    frozen, S = unet(), 1e-4 * eliminated(protected_rows())
    state = dict(frozen.named_parameters())
    layers = [name for name in state if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    w = {name: nn.Parameter(torch.zeros(state[name].shape[0], len(S), dtype=torch.float64)) for name in layers}

    def edited(x: Tensor, t: int, c: Tensor) -> Tensor:
        changed = {name: state[name] + w[name] @ S for name in layers}
        return functional_call(frozen, {**state, **changed}, (x, t, c)).sample

    def loss(i: int) -> Tensor:
        norm = torch.stack([(w[name] @ S).abs().sum() for name in layers]).mean()
        return correlation(edited, frozen, i) + 1e-6 * norm

    found = trained(w, loss, 2, 0.1, summed=True)
    return kept({name: value if name == "losses" else value @ S for name, value in found.items()}, KEYS)


def cie() -> dict[str, Tensor]:
    """The same with every tensor of the cross-attention, both predictions moving, and weight 3e-5."""
    network, frozen = unet(), unet()
    parameters = selected(network, "attn2")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def loss(i: int) -> Tensor:
        norm = torch.stack([(p - before[name]).abs().sum() for name, p in parameters.items()]).mean()
        return correlation(lambda *at: network(*at).sample, frozen, i) + 3e-5 * norm

    return kept(trained(parameters, loss, 2, 1e-6, summed=True), KEYS, OUT)


# -- SPM (Eq. 4, 8 and 9) ---------------------------------------------------------------------------------------------


def spm_factors(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) of rank 1 for each linear layer and convolution inside the transformers."""
    found = {}
    for name, layer in network.named_modules():
        if ".attentions." in f".{name}." and isinstance(layer, (nn.Linear, nn.Conv2d)):
            out, *inside = layer.weight.shape
            tail = [1] * (len(inside) - 1)
            found[f"{name}.weight"] = (
                0.3 * numbers(f"down {name}", 1, *inside),
                numbers(f"up {name}", out, 1, *tail) / 9,
            )
    return found


def spm(interleaved: bool) -> dict[str, Tensor]:
    """L_erase + 1000 L_anchor at a latent after k of 4 guided steps with the adapters on, and gradients.

    ``interleaved``: the released program's rows [u, a3, u, a4] in place of four anchors. Draws: an entry of one, k from
    1 to 3, height and width from one size each, noise; then for each anchor a direction, whether to accept it, its
    length.
    """
    frozen, g = unet(), torch.Generator().manual_seed(0)
    factors = {name: [nn.Parameter(each) for each in pair] for name, pair in spm_factors(frozen).items()}
    state = dict(frozen.named_parameters())

    def edited(x: Tensor, t: int, c: Tensor) -> Any:
        changed = {}
        for name, (down, up) in factors.items():
            changed[name] = state[name] + (up.flatten(1) @ down.flatten(1)).reshape(state[name].shape)
        return functional_call(frozen, {**state, **changed}, (x, t, c))

    c, empty, K = prompt("neon"), prompt(""), 4
    torch.randint(1, (1,), generator=g)
    k = int(torch.randint(1, K, (1,), generator=g))
    torch.randint(1, (2,), generator=g)
    x = torch.randn(1, 4, SIZE, SIZE, generator=g, dtype=torch.float64)
    with torch.no_grad():
        for t in [1000 // K * j for j in reversed(range(K))][:k]:
            before = ALPHA_BAR[t - 1000 // K] if t else torch.ones(())
            x = ddim(x, guided(edited, x, t, c, empty, 3.0), ALPHA_BAR[t], before)  # type: ignore[arg-type]
    t = 999 - 1000 * k // K
    anchors: list[Tensor] = []
    while len(anchors) < 4:
        n = torch.randn(c.numel(), generator=g, dtype=torch.float64)
        n = n / n.norm()
        if torch.rand(1, generator=g, dtype=torch.float64) < 1 - n @ (c.flatten() / c.norm()):
            length = 0.8 + 0.4 * torch.rand(1, generator=g, dtype=torch.float64)
            anchors.append((length * c.norm() * n).reshape(c.shape))
    rows = [empty, anchors[2], empty, anchors[3]] if interleaved else anchors
    with torch.no_grad():
        e_pos, e_neu = frozen(x, t, c).sample, frozen(x, t, empty).sample
        off = torch.cat([frozen(x, t, row).sample for row in rows])
    erase = (edited(x, t, c).sample - (e_neu - (e_pos - e_neu))).square().mean()
    anchoring = (torch.cat([edited(x, t, row).sample for row in rows]) - off).square().mean()
    down, up = factors[KEYS]
    gradients = torch.autograd.grad(erase + 1000 * anchoring, [down, up])
    return {"losses": torch.stack([erase, anchoring]).detach(), "down": gradients[0], "up": gradients[1]}


def spm_released() -> dict[str, Tensor]:
    return spm(interleaved=True)


def spm_paper() -> dict[str, Tensor]:
    return spm(interleaved=False)


GATE_TOKENS = {
    "neon": [START, 7, END, END, END, END],
    "pop art": [START, 8, 9, END, END, END],
    "a neon star": [START, 5, 7, 6, END, END],
    "art of pop": [START, 9, 4, 8, END, END],
    "pop": [START, 8, END, END, END, END],
    "moon": [START, 3, END, END, END, END],
}
"""Tokens of two concepts, then of four prompts."""


def spm_gate() -> dict[str, Tensor]:
    """gamma (prompt, concept): the larger of the embeddings' cosine and the share of the concept's tokens."""
    texts = list(GATE_TOKENS)
    rows = []
    for p in texts[2:]:
        row = []
        for c in texts[:2]:
            u, v = prompt(p).flatten(), prompt(c).flatten()
            said, heard = (set(GATE_TOKENS[text]) - {START, END} for text in (c, p))
            row.append(max(float(u @ v / (u.norm() * v.norm())), len(said & heard) / len(said)))
        rows.append(row)
    return {"gates": torch.tensor(rows, dtype=torch.float64)}


# -- CLIP: SLUG and the methods it is compared with -------------------------------------------------------------------

SHAPES = {"a": (6, 5), "b": (7,), "c": (3, 4, 2), "d": (8, 3), "e": (9, 2), "f": (4, 4)}


def clip_tensors(kind: str) -> dict[str, Tensor]:
    return {name: numbers(f"{kind} {name}", *shape) for name, shape in SHAPES.items()}


def unit(kind: str) -> Tensor:
    rows = numbers(f"features {kind}", 6, 5)
    return rows / rows.norm(dim=1, keepdim=True)


def clip_losses() -> dict[str, Tensor]:
    """1 - cos of each pair, and the symmetric cross-entropy in two blocks of three at temperature 4, with gradients."""
    v, t = unit("image").requires_grad_(True), unit("text").requires_grad_(True)
    cosine = torch.stack([1 - v[k] @ t[k] / (v[k].norm() * t[k].norm()).detach() for k in range(6)])
    blocks = []
    for start in (0, 3):
        logits = 4 * v[start : start + 3] @ t[start : start + 3].T
        both = [
            torch.stack([torch.logsumexp(each[k], 0) - each[k, k] for k in range(3)]) for each in (logits, logits.T)
        ]
        blocks.append(torch.cat(both).mean())
    contrastive = torch.stack(blocks)
    of_cosine = torch.autograd.grad(cosine.mean(), [v, t])
    of_contrastive = torch.autograd.grad(contrastive.mean(), [v, t])
    return {
        "cosine": cosine.detach(), "contrastive": contrastive.detach(),
        "cosine_gradient": torch.cat(of_cosine), "contrastive_gradient": torch.cat(of_contrastive),
    }  # fmt: skip


def slug() -> dict[str, Tensor]:
    """Importance |g_f| / |theta|, alignment |cos(g_f, g_r)|, the tensors that no other beats, and a step of rho 0.1."""
    theta, g_f, g_r = (clip_tensors(kind) for kind in ("theta", "forget", "retain"))
    importance = torch.stack([g_f[name].norm() / theta[name].norm() for name in SHAPES])
    alignment = torch.stack(
        [(g_f[n].flatten() @ g_r[n].flatten() / (g_f[n].norm() * g_r[n].norm())).abs() for n in SHAPES]
    )
    front = [
        not any(
            importance[j] >= importance[k] and alignment[j] <= alignment[k]
            and (importance[j] > importance[k] or alignment[j] < alignment[k])
            for j in range(len(SHAPES))
        )
        for k in range(len(SHAPES))
    ]  # fmt: skip
    step = theta["a"] + 0.1 * theta["a"].norm() / g_f["a"].norm() * g_f["a"]
    return {"importance": importance, "alignment": alignment, "front": torch.tensor(front), "step": step}


CLIP: dict[str, Any] = {
    "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 1, "projection_dim": 3,
}  # fmt: skip
RHO = 0.1


def clip() -> CLIPModel:
    """A CLIP of three blocks in each tower, with weights from `numbers`."""
    text = {**CLIP, "vocab_size": 5, "max_position_embeddings": 4, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**CLIP, "image_size": 4, "patch_size": 2}
    found = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=3)).double()
    for name, parameter in found.requires_grad_(False).named_parameters():
        if parameter.dim():
            parameter.copy_(numbers(f"clip {name}", *parameter.shape))
    return found


def batch(kind: str, i: int, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the i-th batch's mean loss."""
    return {name: numbers(f"{kind} batch gradient {i} {name}", *each.shape) for name, each in theta.items()}


def slug_edit(hugging_face: bool, tower: str) -> dict[str, Tensor]:
    """From the gradients of batches to the delta: three forget batches, the last a short one, and two whole retain
    batches and a short one.

    The open_clip program takes means of batches, without a short retain batch; q, k and v are one tensor; each tensor
    on a tower's front is tried. The Hugging Face programs keep the short one and add every gradient to all before it,
    the retain set's to the forget set's; they leave out norms and all embeddings, and move the front's tensor in the
    deepest block with its siblings. ``tower``: the one that is searched, or ``both``.
    """
    left_out = ["bias", "position", "class_embedding", "token_embedding"]
    left_out += ["norm", "patch_embedding"] if hugging_face else []
    theta = {
        name: parameter for name, parameter in clip().named_parameters()
        if parameter.dim() and not any(part in name for part in left_out) and (tower == "both" or name.startswith(tower))
    }  # fmt: skip
    forget, retain = ([batch(kind, i, theta) for i in range(3)] for kind in ("forget", "retain"))
    retain = retain if hugging_face else retain[:2]
    groups: dict[str, list[str]] = {}
    for name in theta:
        joint = name if hugging_face else re.sub(r"[qkv]_proj", "in_proj", name)
        groups.setdefault(joint, []).append(name)

    def flat(found: Mapping[str, Tensor], group: str) -> Tensor:
        return torch.cat([found[name].flatten() for name in groups[group]])

    def mean(batches: Sequence[Mapping[str, Tensor]], before: Sequence[Mapping[str, Tensor]] = ()) -> dict[str, Tensor]:
        weights = [len(batches) - i if hugging_face else 1 for i in range(len(batches))]
        carried = [(len(batches), each) for each in before] if hugging_face else []
        return {
            name: torch.stack([w * each[name] for w, each in [*carried, *zip(weights, batches, strict=True)]]).sum(0)
            / len(batches)
            for name in theta
        }

    g_f, g_r = mean(forget), mean(retain, forget)
    importance = {name: flat(g_f, name).norm() / flat(theta, name).norm() for name in groups}
    alignment = {
        name: (flat(g_f, name) @ flat(g_r, name) / (flat(g_f, name).norm() * flat(g_r, name).norm())).abs()
        for name in groups
    }
    fronts = {
        which: [
            i for i in own if not any(alignment[j] < alignment[i] and importance[j] > importance[i] for j in own)
        ]
        for which in ("vis", "text")
        if (own := [name for name in groups if name.startswith(which)])
    }  # fmt: skip
    delta = {name: torch.zeros_like(each) for name, each in theta.items()}
    for front in fronts.values():
        for name in [_deepest(front, alignment)] if hugging_face else front:
            step = RHO * flat(theta, name).norm() / flat(g_f, name).norm()
            for moved in _siblings(name, theta) if hugging_face else groups[name]:
                delta[moved] = step * g_f[moved]
    return {
        "importance": torch.stack([importance[name] for name in sorted(groups)]),
        "alignment": torch.stack([alignment[name] for name in sorted(groups)]),
        "front": torch.tensor([any(name in front for front in fronts.values()) for name in sorted(groups)]),
        "norms": torch.stack([delta[name].norm() for name in sorted(theta)]),
        "delta": torch.stack([delta[name].flatten()[0] for name in sorted(theta)]),
    }


def _deepest(front: Sequence[str], alignment: Mapping[str, Tensor]) -> str:
    """Of the tensors in the deepest block the one with the largest alignment."""
    depth = {name: int(found[1]) for name in front if (found := re.search(r"layers\.(\d+)", name))}
    return max(depth, key=lambda name: (depth[name], alignment[name]))


def _siblings(name: str, theta: Mapping[str, Tensor]) -> list[str]:
    """q, k and v of an attention, fc1 and fc2 of a block; any other tensor alone."""
    kind = next((kind for kind in (r"[qkv]_proj", r"fc[12]") if re.search(kind, name)), None)
    if kind is None:
        return [name]
    same = re.sub(kind, "", name)
    return [other for other in theta if re.sub(kind, "", other) == same]


def slug_open_clip() -> dict[str, Tensor]:
    return slug_edit(hugging_face=False, tower="both")


def slug_stable_diffusion() -> dict[str, Tensor]:
    return slug_edit(hugging_face=True, tower="text")


def slug_llava() -> dict[str, Tensor]:
    return slug_edit(hugging_face=True, tower="vis")


def clip_training(masked: bool) -> dict[str, Tensor]:
    """Three steps of AdamW (0.9, 0.98, eps 1e-6, lr 1e-3, decay 0.1 of matrices only) up the forget gradient, at
    half-cosine rates of eight; ``masked``: only where |g| is among the larger half of all."""
    theta = clip_tensors("theta")
    first, second = ({name: torch.zeros_like(each) for name, each in theta.items()} for _ in range(2))
    mask = saliency()
    for i in range(3):
        lr = 1e-3 * 0.5 * (1 + np.cos(np.pi * i / 8))
        for name, g in clip_tensors(f"step {i}").items():
            g = -g * (mask[name] if masked else 1)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.98 * second[name] + 0.02 * g.square()
            decay = 0.1 if theta[name].dim() > 1 else 0.0
            m, v = first[name] / (1 - 0.9 ** (i + 1)), second[name] / (1 - 0.98 ** (i + 1))
            theta[name] = theta[name] * (1 - lr * decay) - lr * m / (v.sqrt() + 1e-6)
    return theta


def ga() -> dict[str, Tensor]:
    return clip_training(masked=False)


def salun() -> dict[str, Tensor]:
    return clip_training(masked=True)


def saliency() -> dict[str, Tensor]:
    """1 where |g_f| is at least the median of all tensors together (the lower middle one of an even number)."""
    g_f = clip_tensors("forget")
    level = sorted((abs(float(value)) for g in g_f.values() for value in g.flatten()), reverse=True)
    least = level[max(1, len(level) // 2) - 1]
    return {name: (g.abs() >= least).double() for name, g in g_f.items()}


def ssd() -> dict[str, Tensor]:
    """min(1, c F_r / F_f) where F_f > 3 F_r, else 1; for c = 0.4, and for the product over 0.1, 0.2 and 0.4."""
    F_f, F_r = ({name: g.square() for name, g in clip_tensors(kind).items()} for kind in ("forget", "retain"))
    found = {}
    for label, constants in (("one", [0.4]), ("product", [0.1, 0.2, 0.4])):
        factors = {name: torch.ones_like(f) for name, f in F_f.items()}
        for c in constants:
            for name, f in F_f.items():
                chosen = f > 3 * F_r[name]
                factors[name] = factors[name] * torch.where(chosen, torch.clamp(c * F_r[name] / f, max=1), 1)
        found |= {f"{label}.{name}": factor for name, factor in factors.items()}
    return found


STEPS: dict[str, Callable[[], dict[str, Tensor]]] = {
    each.__name__: each
    for each in (
        uce_2023, uce_2025, esd_paper, esd_2023, esd_2025, ca_comparison, ca_model_based, ca_noise_based,
        fmn_comparison, fmn_authors, null_space, sepce, cie, spm_released, spm_paper, spm_gate, clip_losses, slug,
        slug_open_clip, slug_stable_diffusion, slug_llava, ga, salun, ssd,
    )
}  # fmt: skip


def main(names: Sequence[str] = tuple(STEPS)) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        save_file({key: value.contiguous() for key, value in STEPS[name]().items()}, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
