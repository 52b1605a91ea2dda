"""Images from prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import Required, TypedDict, Unpack

from mu.core.documents import is_unicode
from mu.core.errors import ConfigError, DataError, quoted, titled
from mu.diffusion.denoising import denoise, initial_noise
from mu.models.diffusion import DiffusionModel

PIXELS_AT_ONCE = 2**19
LARGEST_SCALE = 8
"""Height and width of an image are at most this many times the model's training size; memory ends soon after."""
SEEDS = 2**64
"""Seeds of a generator are below it."""


def generate(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], *, steps: int = 30, guidance: float = 7.5,
    negative: str | None = None, height: int | None = None, width: int | None = None, batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Make images (n, 3, H, W) in 0..1 on the CPU, one for each prompt and its seed, with the model's own scheduler.

    An image depends on its prompt and seed, not on the rest of its batch. Without ``negative``, a model that asks for
    it (``force_zeros_for_empty_prompt``) gets zeros in place of the empty prompt's embedding. ``batch`` defaults to a
    size that fits a common GPU: two images of 512x512 pixels, 128 of 64x64. ``progress`` gets the number of images made
    so far. Raises `DataError` for a different number of prompts and seeds, `ConfigError` for an invalid size or
    setting.
    """
    images: list[Tensor] = []
    for part in generate_batches(
        model,
        prompts,
        seeds,
        steps=steps,
        guidance=guidance,
        negative=negative,
        height=height,
        width=width,
        batch=batch,
    ):
        images.append(part)
        if progress:
            progress(sum(map(len, images)))
    return torch.cat(images)


def checked_size(model: DiffusionModel, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels, by default those that ``model`` was trained on.

    Raises `ConfigError` if the model cannot make images of this size, or the images would be larger than
    `LARGEST_SCALE` allows."""
    height = model.default_size if height is None else height
    width = model.default_size if width is None else width
    unit, largest = model.pixels_per_latent, LARGEST_SCALE * model.default_size
    if height % unit or width % unit or min(height, width) < unit:
        raise ConfigError(f"height and width must be multiples of {unit}, not {str(height)[:40]}x{str(width)[:40]}")
    if max(height, width) > largest:
        raise ConfigError(
            f"height and width of images of {titled(model.name)} are at most {largest}, {LARGEST_SCALE} times "
            "its training "
            f"size, not {str(height)[:40]}x{str(width)[:40]}"
        )
    return height, width


def check_request(
    model: DiffusionModel, texts: Iterable[str | None], seeds: Iterable[int], *, steps: int, guidance: float
) -> None:
    """Raise `ConfigError` or `DataError` if `generate` would refuse these arguments. ``texts``: prompts, any order."""
    if not math.isfinite(guidance):
        raise ConfigError(f"the guidance scale must be a number, not {guidance}")
    if wrong := next((seed for seed in seeds if not 0 <= int(seed) < SEEDS), None):
        raise ConfigError(f"a seed must be a number from 0 to 2**64 - 1, not {str(wrong)[:40]}")
    if odd := next((text for text in texts if text and not is_unicode(text)), None):
        raise DataError(f"the prompt {quoted(odd)} is not Unicode text: it has half a surrogate pair")
    model.new_scheduler(steps)


class Sampling(TypedDict, total=False):
    """The arguments of `generate_latents` after prompts and seeds."""

    steps: Required[int]
    guidance: Required[float]
    negative: str | None
    height: int | None
    width: int | None
    batch: int | None


def generate_batches(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], **how: Unpack[Sampling]
) -> Iterator[Tensor]:
    """Yield the images of `generate`, batch by batch."""
    for latents in generate_latents(model, prompts, seeds, **how):
        yield model.decode(latents).cpu()


def generate_latents(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    negative: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int | None = None,
) -> Iterator[Tensor]:
    """Yield the latents (b, c, h, w) of the images of `generate`, batch by batch, on the model's device."""
    if len(prompts) != len(seeds) or not prompts:
        raise DataError(f"{len(prompts)} prompts and {len(seeds)} seeds: give at least one prompt, and a seed for each")
    height, width = checked_size(model, height, width)
    check_request(model, [*prompts, negative], seeds, steps=steps, guidance=guidance)
    batch = batch or max(1, PIXELS_AT_ONCE // (height * width))
    with torch.no_grad(), model.sampling():
        ids = model.time_ids(height, width)
        uncond = model.unconditional(negative).at(ids)
        for start in range(0, len(prompts), batch):
            texts = list(prompts[start : start + batch])
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + batch]]
            x = initial_noise(model, height, width, generators)
            cond = model.encode(texts).at(ids)
            scheduler = model.new_scheduler(steps)
            latents = denoise(
                model, x, cond, uncond.repeat(len(texts)), scheduler, guidance=guidance, generators=generators
            )
            if not latents.isfinite().all():
                raise DataError(
                    f"the image of {quoted(texts[0])} is not finite: an edit is too strong, or the precision too low"
                )
            yield latents
