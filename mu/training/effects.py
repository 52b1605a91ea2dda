"""What prompts do to a model's predictions, measured where the image is taking shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.diffusion.denoising import denoise, initial_noise
from mu.models.diffusion import Conditioning, DiffusionModel

State = tuple[Tensor, Tensor]
"""Latents (images, c, h, w) and their timestep."""


def states(model: DiffusionModel, images: int, steps: int = 10) -> list[State]:
    """Two states of images without a prompt: pure noise, and after a fifth of ``steps``."""
    size, found = model.default_size, []
    for k in (0, steps // 5):
        generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
        scheduler, empty = model.new_scheduler(steps), model.encode([""]).repeat(images)
        x = initial_noise(model, size, size, generators)
        if k:
            x = denoise(model, x, empty, empty, scheduler, steps=k, guidance=1.0, generators=generators)
        else:
            x = x * scheduler.init_noise_sigma
        t = scheduler.timesteps[k]
        found.append((scheduler.scale_model_input(x, t), t))
    return found


def effects(model: DiffusionModel, texts: Sequence[str], at: Sequence[State]) -> Tensor:
    """(n, values): the backbone's own output for each prompt of ``texts``, in all states ``at``."""
    columns, prompts = [], encoded(model, texts)
    for x, t in at:
        rows = [
            model.predict(x.repeat(len(c), 1, 1, 1), t, c[torch.arange(len(c)).repeat_interleave(len(x))])
            for c in prompts
        ]
        columns.append(torch.cat(rows).reshape(len(texts), -1).float().cpu())
    return torch.cat(columns, dim=1)


def encoded(model: DiffusionModel, texts: Sequence[str], batch: int = 16) -> list[Conditioning]:
    return [model.encode(texts[k : k + batch]) for k in range(0, len(texts), batch)]


def agreement(d: Tensor) -> Tensor:
    """The mean cosine between any two of the k directions ``d`` (..., k, values)."""
    d = F.normalize(d, dim=-1)
    k = d.shape[-2]
    return ((d @ d.mT).sum((-2, -1)) - k) / (k * (k - 1))
