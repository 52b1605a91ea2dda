"""Latents on the way to images of what should stay."""

from __future__ import annotations

import torch

from mu.core import compute
from mu.diffusion.denoising import denoise, initial_noise
from mu.models.diffusion import DiffusionModel
from mu.training.kept_images import FIRST_SEED, IMAGES, STEPS, KeptImages
from mu.training.probe import GUIDANCE, Probe
from mu.training.surroundings import Surroundings

AROUND = Surroundings("neon", ("sketch",), ("fish",), ("{}",), ("one {}", "my {}"), ("a fish", "sketch", ""))


def test_they_are_those_of_images_whose_noise_no_probe_reads(tiny: DiffusionModel):
    prompts = tiny.encode(["a fish", "sketch", ""])
    kept = KeptImages(tiny, prompts)
    assert kept.latents.shape[:2] == (len(kept.times), 3) == (STEPS, 3)
    size, n = tiny.default_size, 3
    noise = initial_noise(tiny, size, size, [torch.Generator().manual_seed(FIRST_SEED + k) for k in range(n)])
    scheduler = tiny.new_scheduler(STEPS)
    assert torch.equal(kept.times, scheduler.timesteps.to(kept.times))
    assert torch.equal(kept.prompts.sequence, prompts.sequence)
    for k in (1, STEPS - 1):
        x = denoise(
            tiny, noise, prompts, tiny.encode([""]).repeat(n), tiny.new_scheduler(STEPS), steps=k, guidance=GUIDANCE
        )
        assert torch.allclose(x, kept.latents[k], atol=1e-4)
        assert not torch.allclose(x, kept.latents[k - 1], atol=1e-2), "control: another level"
    of_probe = torch.cat([x for x, _ in Probe(tiny, AROUND).starts])
    far = torch.cdist(kept.latents[0].flatten(1), of_probe.flatten(1)).min()
    assert far > 1, "no noise of the probe is trained on"
    same = initial_noise(tiny, size, size, [torch.Generator().manual_seed(0)])
    assert torch.cdist(same.flatten(1), of_probe.flatten(1)).min() == 0, "control"


def test_what_is_drawn_belongs_together(tiny: DiffusionModel):
    kept = KeptImages(tiny, tiny.encode(["a fish", "sketch", ""]))
    x, t, c = kept.drawn(200, compute.generator(0))
    for k in range(200):
        step = kept.times.tolist().index(t[k].item())
        image = [bool(torch.equal(x[k], latents)) for latents in kept.latents[step]].index(True)
        assert torch.equal(c.sequence[k], kept.prompts.sequence[image])
    assert len(set(t.tolist())) == STEPS, "control: of every level"


def test_batches_are_of_the_probe_s_size_and_many_prompts_are_spread(tiny: DiffusionModel):
    prompts = tiny.encode([f"a fish {k}" for k in range(60)])
    most: list[int] = []
    handle = tiny.unet.register_forward_pre_hook(lambda _, given: most.append(len(given[0])))
    try:
        kept = KeptImages(tiny, prompts)
    finally:
        handle.remove()
    assert len(kept.prompts) == IMAGES and max(most) == 32 and sum(most) == 2 * STEPS * IMAGES
    assert torch.equal(kept.prompts.sequence[-1], prompts.sequence[-1])
