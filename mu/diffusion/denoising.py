"""Initial noise, classifier-free guidance, and full or partial denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mu.models.diffusion import Conditioning, DiffusionModel


def initial_noise(model: DiffusionModel, height: int, width: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise (b, c, h/8, w/8), from one CPU generator per sample, so independent of the rest of the batch."""
    scale = model.pixels_per_latent
    shape = (model.latent_channels, height // scale, width // scale)
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(model.device)


def guided_noise(
    model: DiffusionModel, x: Tensor, t: Any, both: Conditioning, guidance: float, rescale: float = 0.0
) -> Tensor:
    """Classifier-free guidance; ``both`` is [unconditional half | conditional half] of 2b rows, gated alike.

    ``rescale`` > 0 moves the result's standard deviation towards the conditional one's (Lin et al. 2023, Eq. 15-16).
    """
    if both.gate_sequence is None:
        both = halves(both[: len(x)], both[len(x) :])
    eps_un, eps_con = model.predict_noise(torch.cat([x, x]), t, both).chunk(2)
    eps = eps_un + guidance * (eps_con - eps_un)
    if rescale:
        dims = tuple(range(1, eps.dim()))
        matched = eps * (eps_con.std(dim=dims, keepdim=True) / eps.std(dim=dims, keepdim=True))
        eps = rescale * matched + (1 - rescale) * eps
    return eps


def halves(uncond: Conditioning, cond: Conditioning) -> Conditioning:
    """[uncond | cond] (2b) of classifier-free guidance: gated edits pass for both halves as for the prompts of
    ``cond``."""
    return Conditioning.cat([uncond.guiding(cond), cond])


def denoise(
    model: DiffusionModel,
    x: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    scheduler: Any,
    *,
    steps: int | None = None,
    start: int = 0,
    guidance: float = 7.5,
    rescale: float = 0.0,
    generators: Any = None,
    gradients: bool = False,
) -> Tensor:
    """Run the scheduler's timesteps ``start .. steps`` (default: all) from ``x`` (b, c, h, w).

    At start 0, ``x`` is unit noise. The scheduler must take eps. At guidance 1 only the conditional half is evaluated.
    With ``gradients`` the result can be differentiated, and all steps stay in memory.
    """
    if start == 0:
        x = x * scheduler.init_noise_sigma
    both = cond if guidance == 1 else halves(uncond, cond)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    options = {"generator": generators} if takes_generator and generators is not None else {}
    with torch.set_grad_enabled(gradients):
        for t in scheduler.timesteps[start:steps]:
            scaled = scheduler.scale_model_input(x, t)
            if guidance == 1:
                eps = model.predict_noise(scaled, t, both)
            else:
                eps = guided_noise(model, scaled, t, both, guidance, rescale)
            x = scheduler.step(eps, t, x, return_dict=False, **options)[0]
    return x
