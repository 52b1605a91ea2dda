"""ESD's equations against a step with two models in plain loops, its cost, its latents."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from mu.algorithms.esd.algorithm import ESD
from mu.core.errors import ConfigError
from mu.models.diffusion import DiffusionModel
from mu.models.formats import architectures
from mu.models.formats.compvis import UNET, component_names
from mu.training.tuning import Tuning, tuned
from tests.conftest import family_member


def method(model: DiffusionModel, **settings: Any) -> ESD:
    found = ESD({"concepts": ["neon style"], "denoising_steps": 5, **settings}, model=model)
    found.prepare(model)
    return found


@contextmanager
def moved(esd: ESD, model: DiffusionModel) -> Iterator[Tuning]:
    """The model in the midst of training: its trained weights are not those of the frozen one any more."""
    draw = torch.Generator().manual_seed(5)
    with tuned(esd.parameters(model)) as tuning:
        for parameter in tuning.parameters.values():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)
        yield tuning


def gradients(loss: Tensor, tuning: Tuning) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(tuning.parameters.values()), allow_unused=True)
    return [torch.zeros(1) if g is None else g for g in found]


def reference(
    model: DiffusionModel, frozen: UNet2DConditionModel, esd: ESD, seed: int, eta: float, prediction: str = "epsilon"
) -> Tensor:
    """The released code's step with two models, at the level of the latents; in the space that the UNet predicts in."""
    config, g = esd.config, torch.Generator().manual_seed(seed)
    c, nothing = (model.encode([text]).sequence for text in (config.concepts[0], ""))
    k = int(torch.randint(config.denoising_steps, (1,), generator=g))
    size = int(model.unet.config.sample_size)
    x = torch.randn(4, size, size, generator=g)[None]
    constants = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = DDIMScheduler(**constants, prediction_type=prediction)
    scheduler.set_timesteps(config.denoising_steps)
    sampler = frozen if config.latents_from == "frozen" else model.unet
    with torch.no_grad():
        for t in scheduler.timesteps[:k]:
            un, con = sampler(x, t, nothing).sample, sampler(x, t, c).sample
            x = scheduler.step(un + config.start_guidance * (con - un), t, x).prev_sample
        t = scheduler.timesteps[k]
        e_0, e_p = frozen(x, t, nothing).sample, frozen(x, t, c).sample
    return (model.unet(x, t, c).sample - (e_0 - eta * (e_p - e_0))).square().mean()


@pytest.mark.parametrize(
    "settings", [{}, {"variant": "esd-u", "latents_from": "frozen"}, {"negative_guidance": 2.5, "start_guidance": 7.0}]
)
def test_a_step_is_the_papers(settings: dict[str, Any], tiny: DiffusionModel) -> None:
    esd, frozen = method(tiny, **settings), copy.deepcopy(tiny.unet)
    eta = esd.config.negative_guidance
    with moved(esd, tiny) as tuning:
        for seed in range(2):
            found = esd.step(tuning, 0, torch.Generator().manual_seed(seed))["loss"]
            wanted = reference(tiny, frozen, esd, seed, eta)
            assert torch.allclose(found, wanted, rtol=1e-4)
            pairs = list(zip(gradients(found, tuning), gradients(wanted, tuning), strict=True))
            scale = max(float(w.abs().max()) for _, w in pairs)
            assert all(torch.allclose(f, w, rtol=0, atol=1e-4 * scale) for f, w in pairs)
            assert not torch.allclose(found, reference(tiny, frozen, esd, seed, 1.02 * eta), rtol=1e-4)  # control


def test_v_prediction_is_trained_in_its_own_space(tiny_v: DiffusionModel) -> None:
    esd, frozen = method(tiny_v), copy.deepcopy(tiny_v.unet)
    with moved(esd, tiny_v) as tuning:
        for seed in range(3):
            found = esd.step(tuning, 0, torch.Generator().manual_seed(seed))["loss"]
            assert torch.allclose(found, reference(tiny_v, frozen, esd, seed, 1.0, "v_prediction"), rtol=1e-3)


def test_model_evaluations_of_a_step(tiny: DiffusionModel) -> None:
    """2k + 2 samples without gradient and 1 with, k uniform in 0 .. K-1: the latents stop where the loss is taken."""
    esd, ks = method(tiny), set()
    with tuned(esd.parameters(tiny)) as tuning:
        for seed in range(12):
            seen: list[tuple[int, bool, int]] = []
            handle = tiny.unet.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append((len(args[0]), torch.is_grad_enabled(), int(args[1])))
            )
            k = int(esd.step(tuning, 0, torch.Generator().manual_seed(seed))["k"])
            handle.remove()
            assert [(n, grad) for n, grad, _ in seen] == [(2, False)] * (k + 1) + [(1, True)]
            assert [t for *_, t in seen] == [*range(800, 800 - 200 * (k + 1), -200), 800 - 200 * k]
            ks.add(k)
    assert ks == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("k", [0, 1, 9])
def test_the_released_sampler_starts_below_its_first_level(k: int, tiny: DiffusionModel) -> None:
    """At K = 50 at 961, and the UNet is told 39 .. 58 above the level of the latents, which end at 1 for k = 0 too."""
    K = 10
    esd, seen = method(tiny, denoising_steps=K, sampler="released"), list[int]()
    handle = tiny.unet.register_forward_pre_hook(lambda _, args: seen.append(int(args[1])))
    _, told, n = esd.partly_denoised(esd.encoded[0], k, torch.Generator().manual_seed(0))
    handle.remove()
    levels = [1 + 100 * j for j in reversed(range(K))]
    assert seen == levels[1 : 1 + n] and n == K - max(k, 1)
    assert 100 * k <= int(told) < 100 * (k + 1)
    esd.config.denoising_steps, seen[:] = 50, []
    assert esd.scheduler().timesteps[:2].tolist() == [981, 961]


def test_the_two_variants_share_no_parameter_and_leave_none(tiny: DiffusionModel) -> None:
    x, u = (set(method(tiny, variant=variant).parameters(tiny)) for variant in ("esd-x", "esd-u"))
    assert all(".attn2." in name for name in x)
    assert not x & u
    assert x | u == {f"unet.{name}" for name, _ in tiny.unet.named_parameters()}


def released(variant: str, place: str, matrix: bool) -> bool:
    """Whether the released programs train a parameter, by its name in CompVis and whether its layer is a matrix."""
    outer = place.startswith("out.") or "time_embed" in place
    key = "attn2.to_k" in place or "attn2.to_v" in place
    chosen = {
        "xattn": "attn2" in place,
        "noxattn": "attn2" not in place and not outer,
        "selfattn": "attn1" in place,
        "full": True,
        "notime": not outer,
        "xlayer": "attn2" in place and ("output_blocks.6." in place or "output_blocks.8." in place),
        "selflayer": "attn1" in place and ("input_blocks.4." in place or "input_blocks.7." in place),
        "esd-all": matrix,
        "esd-u-2025": matrix and "attn2" not in place,
        "esd-x-strict": matrix and key,
    }
    return chosen[variant]


@pytest.fixture(scope="module")
def deep() -> DiffusionModel:
    """A small UNet with the blocks of Stable Diffusion 1.x."""
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    blocks = {"down_block_types": down, "up_block_types": up, "layers_per_block": 2}
    width = {"block_out_channels": [32] * 4, "cross_attention_dim": 32, "attention_head_dim": 4}
    text = {"hidden_size": 32, "intermediate_size": 64}
    return family_member(architectures.stable_diffusion_1(), "deep", unet=blocks | width, text=text)


@pytest.mark.parametrize(
    "variant",
    ["xattn", "noxattn", "selfattn", "full", "notime", "xlayer", "selflayer", "esd-all", "esd-x-strict", "esd-u-2025"],
)
def test_released_names_train_what_the_released_programs_train(variant: str, deep: DiffusionModel) -> None:
    places = component_names("sd1", "unet", dict(deep.unet.config))
    matrices = {name for name, layer in deep.unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    wanted = {
        f"unet.{name}"
        for name, place in places.items()
        if released(variant, place.removeprefix(UNET), name.rpartition(".")[0] in matrices)
    }
    found = set(method(deep, variant={"xattn": "esd-x"}.get(variant, variant)).parameters(deep))
    assert found == wanted and found
    assert len(found) == {"xlayer": 10, "selflayer": 10, "full": len(places)}.get(variant, len(found))  # control


def test_a_variant_without_a_layer_is_refused(tiny: DiffusionModel) -> None:
    """The embedded UNet has fewer blocks than the released program names."""
    with pytest.raises(ConfigError, match=r"'xlayer'.*esd-x"):
        method(tiny, variant="xlayer").parameters(tiny)


def test_concepts_take_turns(tiny: DiffusionModel) -> None:
    esd = method(tiny, concepts=["neon style", "star"])
    alone = [method(tiny, concepts=[concept]) for concept in esd.config.concepts]
    with tuned(esd.parameters(tiny)) as tuning:
        losses = [esd.step(tuning, i, torch.Generator().manual_seed(0))["loss"] for i in range(3)]
        wanted = [one.step(tuning, 0, torch.Generator().manual_seed(0))["loss"] for one in alone]
    assert torch.equal(torch.stack(losses), torch.stack([wanted[0], wanted[1], wanted[0]]))
    assert losses[0] != losses[1]


def test_templates_take_turns_as_concepts_do(tiny: DiffusionModel) -> None:
    esd, alone = (
        method(tiny, concepts=["star"], templates=["{}", "a {} image"]),
        method(tiny, concepts=["a star image"]),
    )
    with tuned(esd.parameters(tiny)) as tuning:
        first, second = (esd.step(tuning, i, torch.Generator().manual_seed(0))["loss"] for i in range(2))
        wanted = alone.step(tuning, 0, torch.Generator().manual_seed(0))["loss"]
    assert torch.equal(second, wanted)
    assert first != second


@pytest.mark.parametrize("settings", [{"clip_skip": 2}, {"prediction_type": "v_prediction"}])
def test_a_setting_that_the_given_model_was_not_loaded_with_is_refused(settings: dict, tiny: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        method(tiny, loading=settings).find_edit()


@pytest.mark.parametrize("variant", ["esd-x", "esd-u"])
def test_a_model_in_half_precision_learns_what_one_in_single_does(variant: str, tiny_folder: Path) -> None:
    settings = {
        "model": str(tiny_folder),
        "devices": "cpu",
        "variant": variant,
        "denoising_steps": 2,
        "concepts": ["neon style"],
    }
    full, half = (
        ESD({**settings, "train": {"precision": precision, "iterations": 2, "lr": 1e-5}}).find_edit()
        for precision in ("float32", "bfloat16")
    )
    a, b = (torch.cat([shift.flatten() for shift in edit.shifts.values()]) for edit in (full, half))
    assert b.dtype == torch.float32
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.7
