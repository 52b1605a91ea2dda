"""Guidance, partial denoising and generation against direct computations."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from mu.core.errors import ConfigError, DataError
from mu.diffusion.denoising import denoise, guided_noise, initial_noise
from mu.diffusion.sampling import generate
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.models.diffusion.schedulers import training_scheduler

PROMPTS = ["a star", "a dog in neon style", "a hat"]


def noise(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_guidance_is_linear(guidance: float, tiny: DiffusionModel) -> None:
    x, cond, uncond = noise(), tiny.encode(PROMPTS[:2]), tiny.encode([""] * 2)
    con, un = tiny.predict_noise(x, 500, cond), tiny.predict_noise(x, 500, uncond)
    found = guided_noise(tiny, x, 500, Conditioning.cat([uncond, cond]), guidance)
    assert torch.allclose(found, un + guidance * (con - un), atol=1e-5)


def test_rescaled_guidance_has_the_conditionals_deviation(tiny: DiffusionModel) -> None:
    """Lin et al. 2023, Eq. 15-16: fully rescaled, the deviation of each sample is the conditional one's."""
    x, cond, uncond = noise(), tiny.encode(PROMPTS[:2]), tiny.encode([""] * 2)
    both, con = Conditioning.cat([uncond, cond]), tiny.predict_noise(x, 500, cond)
    plain = guided_noise(tiny, x, 500, both, 7.5)
    full = guided_noise(tiny, x, 500, both, 7.5, rescale=1.0)
    assert torch.allclose(full.std(dim=(1, 2, 3)), con.std(dim=(1, 2, 3)), atol=1e-5)
    part = guided_noise(tiny, x, 500, both, 7.5, rescale=0.7)
    assert torch.allclose(part, 0.7 * full + 0.3 * plain, atol=1e-5)
    assert torch.allclose(guided_noise(tiny, x, 500, both, 1.0, rescale=0.7), con, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "euler_a"])
def test_denoising_part_by_part_is_denoising_at_once(name: str, tiny: DiffusionModel) -> None:
    cond, uncond = tiny.encode(PROMPTS[:1]), tiny.encode([""])

    def run(*parts: tuple[int, int | None]) -> torch.Tensor:
        scheduler, x = training_scheduler(name), noise(1)
        scheduler.set_timesteps(6)
        generators = [torch.Generator().manual_seed(3)]
        for start, stop in parts:
            x = denoise(tiny, x, cond, uncond, scheduler, start=start, steps=stop, guidance=3.0, generators=generators)
        return x

    assert torch.equal(run((0, 2), (2, 5)), run((0, 5)))
    assert torch.equal(run((0, None)), run((0, 6)))
    assert not torch.allclose(run((0, 4)), run((0, 5)), atol=1e-3)


def test_guidance_1_evaluates_one_half(tiny: DiffusionModel) -> None:
    seen: list[int] = []
    handle = tiny.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    cond, uncond = tiny.encode(PROMPTS[:2]), tiny.encode([""] * 2)
    try:
        for guidance in (1.0, 3.0):
            scheduler = training_scheduler("ddim")
            scheduler.set_timesteps(2)
            denoise(tiny, noise(), cond, uncond, scheduler, guidance=guidance)
    finally:
        handle.remove()
    assert seen == [2, 2, 4, 4]


def test_noise_is_each_samples_own() -> None:
    class Shape:
        pixels_per_latent, device = 8, torch.device("cpu")
        latent_channels = 4

    def draw(*seeds: int) -> torch.Tensor:
        return initial_noise(Shape(), 64, 128, [torch.Generator().manual_seed(s) for s in seeds])  # type: ignore[arg-type]

    assert draw(1, 2).shape == (2, 4, 8, 16)
    assert torch.equal(draw(1, 2)[1], draw(2)[0])
    assert not torch.equal(draw(1)[0], draw(2)[0])


@pytest.mark.parametrize("ancestral", [False, True])
def test_a_image_does_not_depend_on_its_batch(
    ancestral: bool, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ancestral:
        monkeypatch.setattr(
            tiny.pipeline, "scheduler", EulerAncestralDiscreteScheduler.from_config(tiny.pipeline.scheduler.config)
        )
    together = generate(tiny, PROMPTS, [1, 2, 3], steps=2, batch=3)
    assert together.shape == (3, 3, 64, 64)
    assert 0 <= together.min() < together.max() <= 1
    for batch in (1, 2):
        assert torch.allclose(generate(tiny, PROMPTS, [1, 2, 3], steps=2, batch=batch), together, atol=1e-5)
    assert torch.allclose(generate(tiny, PROMPTS[2:], [3], steps=2), together[2:], atol=1e-5)
    assert not torch.allclose(generate(tiny, PROMPTS[2:], [4], steps=2), together[2:], atol=1e-2)


def test_generation_leaves_the_global_generator_alone(tiny: DiffusionModel) -> None:
    state = torch.get_rng_state()
    generate(tiny, PROMPTS[:1], [1], steps=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_told(tiny: DiffusionModel) -> None:
    done: list[int] = []
    generate(tiny, PROMPTS, [1, 2, 3], steps=1, batch=2, progress=done.append)
    assert done == [2, 3]


@pytest.mark.parametrize(
    "wrong", [{"seeds": [1]}, {"prompts": [], "seeds": []}, {"height": 63}, {"width": 0 + 4}, {"steps": 0}]
)
def test_bad_requests_are_one_clear_line(wrong: dict, tiny: DiffusionModel) -> None:  # type: ignore[type-arg]
    with pytest.raises((ConfigError, DataError)) as caught:
        generate(tiny, **({"prompts": PROMPTS, "seeds": [1, 2, 3], "steps": 1} | wrong))
    assert "\n" not in str(caught.value)


def test_seeds_out_of_range_and_images_that_are_no_numbers_are_refused(
    tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (-1, 2**64, 10**30):
        with pytest.raises(ConfigError, match=str(seed)[:20]):
            generate(tiny, ["a star"], [seed], steps=1)
    assert generate(tiny, ["a star"], [2**64 - 1], steps=1).isfinite().all(), "control"
    noise = tiny.predict_noise
    monkeypatch.setattr(tiny, "predict_noise", lambda *args: noise(*args) * float("inf"))
    with pytest.raises(DataError, match="a star"):
        generate(tiny, ["a star"], [1], steps=1)


@pytest.mark.parametrize("steps", [0, -1, 10**9, 2**70])
def test_a_number_of_steps_without_end_is_refused(steps: int, tiny) -> None:
    """Whatever the scheduler: some make a list of that length."""
    with pytest.raises(ConfigError, match="denoising steps is from 1 to"):
        generate(tiny, ["a star"], [0], steps=steps)
