"""Latents of a concept's pictures, noised as in the training of a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from mu.core import seeds
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, nearest
from mu.data.pairs import open_pairs
from mu.diffusion.sampling import PIXELS_AT_ONCE, generate_latents
from mu.models.diffusion import DiffusionModel


class PicturesConfig(BaseConfig):
    count: int = Field(1000, ge=1)
    """Pictures of each concept that the model makes itself with the concept as the prompt; only as many as the steps ask for."""
    steps: int = Field(50, ge=1)
    """Denoising steps of each of them."""
    guidance: float = 7.5
    """Guidance scale of each of them."""
    sources: dict[str, str] = {}
    """Own pictures in their place, by concept: a folder, tars, or whatever else `mu.data.pairs.open_pairs` takes."""


class ConceptPictures:
    """The clean latents of a concept's pictures: of its source, or made by the model when they are first asked for.

    The k-th picture depends on ``seed``, the concept and k alone, so that an interrupted run meets the same ones again.
    What the model makes stays a latent: the released programs write a PNG and encode that.
    """

    def __init__(self, model: DiffusionModel, config: PicturesConfig, concept: str, seed: int):
        self.model, self.config, self.concept = model, config, concept
        self._seeds = torch.randint(2**62, (config.count,), generator=seeds.generator(seed)).tolist()
        self._made: dict[int, Tensor] = {}
        self._pairs = open_pairs(config.sources[concept], caption=concept) if concept in config.sources else None

    def __len__(self) -> int:
        return self.config.count if self._pairs is None else len(self._pairs)

    def __getitem__(self, k: int) -> Tensor:
        """x_0 (1, c, h, w) of the k-th picture, in turn. The model must be as it was found (`mu.edits.tuning.Tuning.frozen`)."""
        k %= len(self)
        if self._pairs is not None:
            return self._encoded(self._pairs[k].picture())
        together = max(1, PIXELS_AT_ONCE // self.model.default_size**2)
        first = k - k % together
        if k not in self._made:
            ks = range(first, min(first + together, len(self)))
            prompts, steps, guidance = [self.concept] * len(ks), self.config.steps, self.config.guidance
            made = generate_latents(
                self.model, prompts, self._seeds[first : ks.stop], steps=steps, guidance=guidance, batch=together
            )
            self._made = dict(zip(ks, torch.cat(list(made)).split(1), strict=True))
        return self._made[k]

    def _encoded(self, picture: Image.Image) -> Tensor:
        """Short side to the model's size, then the centre. The posterior's mean, where the released programs draw from it."""
        size = self.model.default_size
        fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
        return self.model.encode_pictures(pixels[None])


def concept_pictures(
    model: DiffusionModel, config: PicturesConfig, concepts: Sequence[str], seed: int
) -> list[ConceptPictures]:
    """The pictures of each concept. Raises `ConfigError` for a source of what is no concept."""
    for name in config.sources:
        if name not in concepts:
            raise ConfigError(f"pictures.sources names {name!r}, which is not erased.{nearest(name, concepts)}")
    return [ConceptPictures(model, config, concept, seed) for concept in concepts]


def noised(model: DiffusionModel, x_0: Tensor, t: int, generator: torch.Generator) -> Tensor:
    """x_t (b, c, h, w) of the forward process at ``t``, with noise drawn from ``generator`` (on the CPU)."""
    alpha_bar = model.alphas_cumprod[t]
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
