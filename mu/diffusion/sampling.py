"""Images from prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mu.core.errors import ConfigError, DataError
from mu.diffusion.denoising import denoise, initial_noise
from mu.models.diffusion import DiffusionModel

PIXELS_AT_ONCE = 2**19


def generate(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], *, steps: int = 30, guidance: float = 7.5,
    negative: str = "", height: int | None = None, width: int | None = None, batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Images (n, 3, H, W) in 0..1 on the CPU, one for each prompt with its seed, by the model's own scheduler.

    A image depends on its prompt and seed, not on what else is in its batch. ``batch`` defaults to what fits a
    common GPU: two images of 512x512, 128 of 64x64.
    """
    parts = generate_batches(model, prompts, seeds, steps=steps, guidance=guidance, negative=negative, height=height, width=width, batch=batch)  # fmt: skip
    images = []
    for part in parts:
        images.append(part)
        if progress:
            progress(sum(map(len, images)))
    return torch.cat(images)


def generate_batches(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, negative: str = "",
    height: int | None = None, width: int | None = None, batch: int | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """`generate`, batch by batch."""
    for latents in generate_latents(model, prompts, seeds, steps=steps, guidance=guidance, negative=negative, height=height, width=width, batch=batch):  # fmt: skip
        yield model.decode(latents).cpu()


def generate_latents(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, negative: str = "",
    height: int | None = None, width: int | None = None, batch: int | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """The latents (b, c, h, w) of the images of `generate`, batch by batch, on the model's device."""
    if len(prompts) != len(seeds) or not prompts:
        raise DataError(f"{len(prompts)} prompts and {len(seeds)} seeds: one seed for each of at least one prompt is needed")
    height, width = height or model.default_size, width or model.default_size
    unit = model.pixels_per_latent
    if height % unit or width % unit or min(height, width) < unit:
        raise ConfigError(f"height and width must be multiples of {unit}, got {height}x{width}")
    if steps < 1:
        raise ConfigError(f"at least one denoising step is needed, got {steps}")
    if not math.isfinite(guidance):
        raise ConfigError(f"the guidance scale must be a number, not {guidance}")
    batch = batch or max(1, PIXELS_AT_ONCE // (height * width))
    with torch.no_grad():
        ids = model.time_ids(height, width)
        uncond = model.encode([negative]).at(ids)
        for start in range(0, len(prompts), batch):
            texts = list(prompts[start : start + batch])
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + batch]]
            x = initial_noise(model, height, width, generators)
            cond = model.encode(texts).at(ids)
            scheduler = model.new_scheduler(steps)
            yield denoise(model, x, cond, uncond.repeat(len(texts)), scheduler, guidance=guidance, generators=generators)
