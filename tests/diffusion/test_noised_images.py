"""Images of concepts as latents, and the forward process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from mu.core.errors import ConfigError
from mu.diffusion.noised_images import ImagesConfig, concept_images, noised
from mu.diffusion.sampling import generate
from mu.models.diffusion import DiffusionModel


def test_the_forward_process_is_that_of_diffusers(tiny: DiffusionModel) -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (0, 500, 999):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        wanted = DDPMScheduler.from_config(tiny.pipeline.scheduler.config).add_noise(x, noise, torch.tensor([t]))
        found, drawn = noised(tiny, x, t, torch.Generator().manual_seed(7))
        assert torch.equal(drawn, noise) and torch.allclose(found, wanted, atol=1e-6)
        other, _ = noised(tiny, x, (t + 500) % 1000, torch.Generator().manual_seed(7))
        assert not torch.allclose(other, wanted, atol=1e-2)  # control


def test_made_images_depend_on_seed_concept_and_number(tiny: DiffusionModel) -> None:
    config = ImagesConfig(count=3, steps=2, guidance=3.0)
    one, other = concept_images(tiny, config, ["neon style", "star"], seed=0)
    again, _ = concept_images(tiny, config, ["neon style", "star"], seed=0)
    assert torch.equal(again[2], one[2])  # whichever was asked for first
    assert torch.equal(one[0], again[3])  # in turn
    kinds = [one[0], one[1], other[0], concept_images(tiny, config, ["neon style"], seed=1)[0][0]]
    assert all(not torch.allclose(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    (image,) = generate(tiny, ["neon style"], [one.seeds[1]], steps=2, guidance=3.0)
    assert torch.allclose(tiny.decode(one[1])[0], image, atol=1e-4)


def test_own_images_are_fitted_and_encoded(tiny: DiffusionModel, tmp_path: Path) -> None:
    size = tiny.default_size
    wide = Image.new("RGB", (3 * size, size), (255, 0, 0))
    wide.paste(Image.new("RGB", (size, size), (0, 0, 255)), (size, 0))  # the centre is blue
    wide.save(tmp_path / "a.png")
    config = ImagesConfig(sources={"star": str(tmp_path)})
    (images,) = concept_images(tiny, config, ["star"], seed=0)
    blue = torch.tensor([0.0, 0, 1]).reshape(1, 3, 1, 1).expand(1, 3, size, size)
    assert len(images) == 1

    def encoded(image: torch.Tensor) -> torch.Tensor:
        return tiny.encode_images(image, torch.Generator().manual_seed(images.seeds[0]))

    assert torch.allclose(images[5], encoded(blue), atol=1e-5)
    assert not torch.allclose(images[5], encoded(blue.flip(1)), atol=1e-3)  # control
    with pytest.raises(ConfigError, match="'star'"):
        concept_images(tiny, ImagesConfig(sources={"stars": "x"}), ["star"], seed=0)
