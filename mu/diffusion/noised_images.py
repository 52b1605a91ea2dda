"""Noised latents of a concept's images, as in the training of a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mu.core import compute
from mu.core.errors import ConfigError, nearest, titled
from mu.data.pairs import Pair, open_pairs
from mu.diffusion.images_config import ImagesConfig
from mu.diffusion.sampling import PIXELS_AT_ONCE, generate_latents
from mu.models.diffusion import DiffusionModel

AHEAD = 16
"""Largest number of images made at once. More might never be needed by the training."""


class ConceptImages:
    """The clean latents of a concept's images: ``own`` images, or images that the model makes on first use.

    The k-th latents show the k-th of ``prompts``, in turn. They depend on that prompt and the k-th of ``seeds`` alone,
    so an interrupted run gets the same latents again. Images that the model makes stay latents. The released programs
    write a PNG and encode that.
    """

    def __init__(
        self, model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float,
        own: Sequence[Pair] = (),
    ):  # fmt: skip
        self.model, self.prompts, self.seeds, self.own = model, prompts, seeds, own
        self.steps, self.guidance = steps, guidance
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.own) or len(self.seeds)

    def __getitem__(self, k: int) -> Tensor:
        """x_0 (1, c, h, w) of the k-th image, in turn.

        The model must be the unedited one (`mu.training.tuning.Tuning.frozen`).
        """
        k %= len(self)
        if k not in self._kept:
            self._kept |= {k: self._encoded(k)} if self.own else self._made(k)
        return self._kept[k]

    def _made(self, k: int) -> dict[int, Tensor]:
        """The latents of the k-th image and of its neighbours that fit into one batch, by index."""
        together = max(1, min(PIXELS_AT_ONCE // self.model.default_size**2, AHEAD))
        ks = range(k - k % together, min(k - k % together + together, len(self)))
        texts, seeds = [self.prompts[j % len(self.prompts)] for j in ks], [self.seeds[j] for j in ks]
        made = generate_latents(self.model, texts, seeds, steps=self.steps, guidance=self.guidance, batch=together)
        return dict(zip(ks, torch.cat(list(made)).split(1), strict=True))

    def _encoded(self, k: int) -> Tensor:
        """Resize the short side to the model's size, crop the centre, and sample the autoencoder's posterior."""
        size = self.model.default_size
        fitted = ImageOps.fit(self.own[k].image(), (size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
        generator = compute.generator(self.seeds[k % len(self.seeds)])
        return self.model.encode_images(pixels[None], generator)


def concept_images(
    model: DiffusionModel,
    config: ImagesConfig,
    concepts: Sequence[str],
    seed: int,
    prompts: Sequence[Sequence[str]] | None = None,
) -> list[ConceptImages]:
    """The images of each concept, or those that its ``prompts`` describe, in turn.

    Raises `ConfigError` if ``config.sources`` names something that is not erased.
    """
    for name in config.sources:
        if name not in concepts:
            raise ConfigError(f"images.sources names {titled(name)}, which is not erased.{nearest(name, concepts)}")
    drawn = torch.randint(2**62, (config.count,), generator=compute.generator(seed)).tolist()

    def images(concept: str, texts: Sequence[str]) -> ConceptImages:
        own = open_pairs(config.sources[concept], caption=concept) if concept in config.sources else ()
        return ConceptImages(model, texts, drawn, steps=config.steps, guidance=config.guidance, own=own)

    return [images(*each) for each in zip(concepts, prompts or [[concept] for concept in concepts], strict=True)]


def noised(model: DiffusionModel, x_0: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_t (b, c, h, w) of the forward process at ``t``, and its noise, drawn from ``generator`` (on the CPU)."""
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    return model.level(t).noised(x_0, noise), noise
