"""Settings of the images that a method noises. `noised_images` makes them. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from mu.core.config import MOST, BaseConfig


class ImagesConfig(BaseConfig):
    count: int = Field(1000, ge=1, le=MOST)
    """Images that the model makes of each concept, with the concept as prompt; made only as the steps need them."""
    steps: int = Field(50, ge=1, le=10_000)
    """Denoising steps for each image that the model makes."""
    guidance: float = 7.5
    """Guidance scale for each image that the model makes."""
    sources: dict[str, str] = {}
    """Your own images instead, by concept: a folder, tars, or another source that `mu.data.pairs.open_pairs` takes."""

    def idle_for(self, concepts: Sequence[str]) -> dict[str, str]:
        """What has no effect if the images of ``concepts`` are needed, as `BaseConfig.idle` of the settings above."""
        if not all(concept in self.sources for concept in concepts):
            return {}
        return dict.fromkeys(("images.steps", "images.guidance"), "images.sources has images of every concept")
