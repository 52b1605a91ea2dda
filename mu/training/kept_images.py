"""Latents on the way to the frozen model's images of what should stay, at which a training compares its predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from mu.diffusion.denoising import denoise, initial_noise
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.probe import BATCH, GUIDANCE

IMAGES, STEPS = 24, 10
"""Images, spread over the prompts, and their denoising steps."""
FIRST_SEED = 500_000
"""Seeds of the images begin here, far from those of a probe: what is trained is not what is read."""


class KeptImages:
    """``latents`` (steps, n, c, h, w) as the backbone takes them, their ``times`` (steps,) and n ``prompts``.

    Costs 2 `STEPS` samples of the backbone for each image (a scheduler may take a step more). Make it while the model
    is unedited.
    """

    @torch.no_grad()
    def __init__(self, model: DiffusionModel, prompts: Conditioning):
        rows = torch.linspace(0, len(prompts) - 1, min(IMAGES, len(prompts))).round().long()
        self.prompts = prompts[rows.to(prompts.sequence.device)]
        seeds = range(FIRST_SEED, FIRST_SEED + len(rows))
        made = [
            self._made(model, seeds[k : k + BATCH], self.prompts[k : k + BATCH]) for k in range(0, len(rows), BATCH)
        ]
        self.latents = torch.cat([latents for latents, _ in made], dim=1)
        self.times = made[0][1]

    def _made(self, model: DiffusionModel, seeds: range, c: Conditioning) -> tuple[Tensor, Tensor]:
        size, scheduler, latents = model.default_size, model.new_scheduler(STEPS), []
        nothing, generators = model.encode([""]).repeat(len(c)), [torch.Generator().manual_seed(k) for k in seeds]
        x = initial_noise(model, size, size, generators)
        for k, t in enumerate(scheduler.timesteps):
            latents.append(scheduler.scale_model_input(x if k else x * scheduler.init_noise_sigma, t))
            x = denoise(model, x, c, nothing, scheduler, start=k, steps=k + 1, guidance=GUIDANCE, generators=generators)
        return torch.stack(latents), scheduler.timesteps.to(x.device)

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Conditioning]:
        """``count`` of the latents (count, c, h, w), with their timesteps (count,) and prompts."""
        n = len(self.prompts)
        drawn = torch.randint(len(self.times) * n, (count,), generator=generator).to(self.latents.device)
        step, image = drawn // n, drawn % n
        return self.latents[step, image], self.times[step], self.prompts[image]
