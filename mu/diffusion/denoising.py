"""Initial noise, classifier-free guidance, and full or partial denoising."""

from __future__ import annotations

import inspect
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
    model: DiffusionModel, x: Tensor, t: Any, both: Conditioning, guidance: float, rescale: float = 0.0, *,
    raw: bool = False,
) -> Tensor:  # fmt: skip
    """Classifier-free guidance; ``both`` is [unconditional half | conditional half] of 2b rows, gated alike.

    Returns eps, or with ``raw`` the model's own kind of prediction. ``rescale`` > 0 moves the result's standard
    deviation towards the conditional one's (Lin et al. 2023, Eq. 15-16).
    """
    if both.gate_sequence is None:
        both = halves(both[: len(x)], both[len(x) :])
    predict = model.predict if raw else model.predict_noise
    eps_un, eps_con = predict(torch.cat([x, x]), t, both).chunk(2)
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

    At start 0, ``x`` is unit noise. The scheduler takes eps or the model's own kind of prediction; its config says
    which. Random steps draw from ``generators``, deterministic ones stay so (``eta`` = 0, as in stock pipelines). At
    guidance 1 only the conditional half is evaluated. With ``gradients`` the result can be differentiated, and all
    steps stay in memory.
    """
    if start == 0:
        x = x * scheduler.init_noise_sigma
    both = cond if guidance == 1 else halves(uncond, cond)
    raw = scheduler.config.get("prediction_type", "epsilon") == model.prediction_type
    predict = model.predict if raw else model.predict_noise
    taken = inspect.signature(scheduler.step).parameters
    given = {"generator": generators, "eta": 0.0}
    options = {name: value for name, value in given.items() if name in taken and value is not None}
    with torch.set_grad_enabled(gradients):
        for t in scheduler.timesteps[start:steps]:
            scaled = scheduler.scale_model_input(x, t)
            if guidance == 1:
                out = predict(scaled, t, both)
            else:
                out = guided_noise(model, scaled, t, both, guidance, rescale, raw=raw)
            x = scheduler.step(out, t, x, return_dict=False, **options)[0]
    return x
