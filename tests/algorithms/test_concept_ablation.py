"""Concept ablation's objective against a step with two models in plain loops, and its cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from mu.algorithms.concept_ablation.algorithm import ConceptAblation
from mu.models.diffusion import DiffusionModel
from mu.training.tuning import Tuning, tuned


def method(model: DiffusionModel, **settings: Any) -> ConceptAblation:
    images = {"count": 2, "steps": 2}
    found = ConceptAblation({"concepts": ["neon style", "star"], "pictures": images, **settings}, model=model)
    found.prepare(model)
    return found


@contextmanager
def moved(model: DiffusionModel) -> Iterator[Tuning]:
    """The model in the midst of training: its trained weights are not those of the frozen one any more."""
    draw = torch.Generator().manual_seed(5)
    with tuned(model.parameters("cross-attention")) as tuning:
        for parameter in tuning.parameters.values():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)
        yield tuning


def reference(
    model: DiffusionModel, frozen: UNet2DConditionModel, ca: ConceptAblation, i: int, seed: int, weight: float
) -> Tensor:
    """The program's step with two models, each prediction on its own; in the space that the UNet predicts in."""
    config, g = ca.config, torch.Generator().manual_seed(seed)
    n = len(config.concepts)
    template = config.templates[int(torch.randint(len(config.templates), (1,), generator=g))]
    c = model.encode([template.replace("{}", config.concepts[i % n])]).sequence
    a = model.encode([template.replace("{}", config.anchors[0]).strip()]).sequence
    t = torch.randint(1000, (1,), generator=g)
    x_0 = ca.images[i % n][i // n]
    noise = torch.randn(x_0.shape, generator=g)
    x = DDPMScheduler.from_config(model.pipeline.scheduler.config).add_noise(x_0, noise, t)
    with torch.no_grad():
        aim = frozen(x, t, a).sample
    concept, anchor = (model.unet(x, t, prompt).sample for prompt in (c, a))
    return (concept - aim).square().mean() + weight * (anchor - aim).square().mean()


@pytest.mark.parametrize(
    "settings", [{}, {"anchor_weight": 0.5, "templates": ["{} picture", "a {}"], "anchors": ["photo"]}]
)
def test_a_step_is_the_programs(settings: dict[str, Any], tiny: DiffusionModel) -> None:
    ca, frozen = method(tiny, **settings), copy.deepcopy(tiny.unet)
    weight = ca.config.anchor_weight
    with moved(tiny) as tuning:
        for i in range(4):
            found = ca.step(tuning, i, torch.Generator().manual_seed(i))["loss"]
            wanted = reference(tiny, frozen, ca, i, i, weight)
            assert torch.allclose(found, wanted, rtol=1e-4)
            weights = list(tuning.parameters.values())
            pairs = list(zip(torch.autograd.grad(found, weights), torch.autograd.grad(wanted, weights), strict=True))
            scale = max(float(w.abs().max()) for _, w in pairs)
            assert all(torch.allclose(f, w, rtol=0, atol=1e-4 * scale) for f, w in pairs)
            assert not torch.allclose(found, reference(tiny, frozen, ca, i, i, 1.02 * weight), rtol=1e-4)  # control


def test_v_prediction_is_trained_in_its_own_space(tiny_v: DiffusionModel) -> None:
    ca, frozen = method(tiny_v), copy.deepcopy(tiny_v.unet)
    with moved(tiny_v) as tuning:
        for seed in range(3):
            found = ca.step(tuning, 0, torch.Generator().manual_seed(seed))["loss"]
            assert torch.allclose(found, reference(tiny_v, frozen, ca, 0, seed, 10.0), rtol=1e-3)


def test_it_starts_at_the_distance_of_concept_and_anchor(tiny: DiffusionModel) -> None:
    """Before the first step the anchor's term is 0, up to the rounding of a batch of two, and the concept's is not."""
    ca = method(tiny)
    with tuned(tiny.parameters("cross-attention")) as tuning:
        losses = ca.step(tuning, 0, torch.Generator().manual_seed(0))
    concept, anchor = (float(losses[name].detach()) for name in ("concept", "anchor"))
    assert anchor < 1e-10
    assert concept > 1e4 * anchor


def test_model_evaluations_of_a_step(tiny: DiffusionModel) -> None:
    """One sample without gradient and two with; the images are made once, by the frozen model."""
    ca = method(tiny)
    seen: list[tuple[int, bool]] = []
    with moved(tiny) as tuning:
        handle = tiny.unet.register_forward_pre_hook(
            lambda _, args: seen.append((len(args[0]), torch.is_grad_enabled()))
        )
        for i in range(3):
            ca.step(tuning, i, torch.Generator().manual_seed(i))
        handle.remove()
        made = ca.images[0][0]
    step, make = [(1, False), (2, True)], [(4, False)] * 2  # two images at once, guided
    assert seen == make + step + make + step + step
    assert torch.allclose(made, method(tiny).images[0][0], atol=1e-6)
