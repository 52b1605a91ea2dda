"""`generate` is the stock pipeline: for every family, every scheduler that mu takes, and their settings."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from mu.core.errors import ConfigError, ModelError
from mu.diffusion.sampling import generate_latents
from mu.models.diffusion import DiffusionModel, face
from mu.models.diffusion.border import SCHEDULERS
from mu.models.quiet import quiet_libraries

FAMILIES = ("tiny", "tiny_v", "tiny_xl")
PROMPTS, SEEDS = ["a star in neon style", "a dog"], [5, 6]
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Karras levels": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "Karras levels of Euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "timesteps between two": ("LMSDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "random solver": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "predicts the image": ("DDIMScheduler", {"prediction_type": "sample", "timestep_spacing": "trailing"}),
    "ends in pure noise": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "ends in pure noise, Euler": (
        "EulerDiscreteScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
}


def steps(pipeline: Any) -> int:
    return 4 if type(pipeline.scheduler).__name__ == "PNDMScheduler" else 3  # PNDM needs four


def with_scheduler(base: DiffusionModel, kind: str, **settings: Any) -> Any:
    """A pipeline with the modules of ``base`` and another scheduler."""
    with quiet_libraries():
        pipeline = copy(base.pipeline)
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock(pipeline: Any, guidance: float = 4.0, **options: Any) -> Tensor:
    """Latents (n, c, h, w) of the pipeline itself, by seeds."""
    size = {"height": 64, "width": 64, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {
        "num_inference_steps": steps(pipeline),
        "guidance_scale": guidance,
        "generator": generators,
        **size,
        **options,
    }
    with quiet_libraries():
        return pipeline(PROMPTS, **options).images


def ours(pipeline: Any, guidance: float = 4.0, **options: Any) -> Tensor:
    model = face(pipeline, "a model")
    found = generate_latents(
        model, PROMPTS, SEEDS, steps=steps(pipeline), guidance=guidance, height=64, width=64, batch=2, **options
    )
    return torch.cat(list(found))


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, in standard deviations of ``b``."""
    return float((a - b).abs().max() / b.std())


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest) -> DiffusionModel:
    return request.getfixturevalue(request.param)


def each_of_each() -> Iterator[Any]:
    """Every scheduler with every family; KDPM2's take a second of SDXL, and so are marked as slow."""
    for family in FAMILIES:
        for kind in SCHEDULERS:
            slow = kind.startswith("KDPM2") and family == "tiny_xl"
            yield pytest.param(family, kind, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("base", "kind"), each_of_each(), indirect=["base"])
def test_every_scheduler_of_every_family(base: DiffusionModel, kind: str) -> None:
    pipeline = with_scheduler(base, kind)
    wanted = stock(pipeline)
    assert far(ours(pipeline), wanted) < 1e-4
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[base.prediction_type]
    assert far(ours(with_scheduler(base, kind, prediction_type=other)), wanted) > 1e-2, "control: a wrong setting"


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_schedulers(case: str, base: DiffusionModel) -> None:
    kind, settings = SETTINGS[case]
    pipeline = with_scheduler(base, kind, **settings)
    found = ours(pipeline)
    assert found.isfinite().all()
    assert far(found, stock(pipeline)) < 1e-4
    assert far(found, stock(with_scheduler(base, "DDIMScheduler"))) > 1e-2, "control: the setting acts"


def test_no_guidance_and_a_negative_prompt(base: DiffusionModel) -> None:
    pipeline = with_scheduler(base, "TCDScheduler")
    assert far(ours(pipeline, 1.0), stock(pipeline, 1.0)) < 1e-4
    given = stock(pipeline, negative_prompt=["blurry"] * 2)
    assert far(ours(pipeline, negative="blurry"), given) < 1e-4
    assert far(ours(pipeline), given) > 1e-2


def test_no_negative_prompt_is_not_an_empty_one(tiny_xl: DiffusionModel) -> None:
    """SDXL says ``force_zeros_for_empty_prompt``: zeros are the embedding of no negative prompt, but not of ``""``."""
    pipeline = with_scheduler(tiny_xl, "EulerDiscreteScheduler")
    assert pipeline.config.force_zeros_for_empty_prompt
    none, empty = ours(pipeline), ours(pipeline, negative="")
    assert far(none, stock(pipeline)) < 1e-4
    assert far(empty, stock(pipeline, negative_prompt=["", ""])) < 1e-4
    assert far(none, empty) > 1e-2
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert far(ours(pipeline), stock(pipeline)) < 1e-4
    assert far(ours(pipeline), empty) < 1e-4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("EDMEulerScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("DDIMInverseScheduler", {}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    ],
)
def test_schedulers_with_other_noise_are_refused(kind: str, settings: dict[str, Any], tiny: DiffusionModel) -> None:
    pipeline = with_scheduler(tiny, "EulerDiscreteScheduler")
    face(pipeline, "control")
    with quiet_libraries():
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **settings)
    with pytest.raises(ModelError) as caught:
        face(pipeline, "a model")
    assert "\n" not in str(caught.value) and "'a model'" in str(caught.value)
    assert next(iter(settings), kind) in str(caught.value)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_levels_between_two_timesteps_are_the_schedulers(kind: str, tiny: DiffusionModel) -> None:
    scheduler = with_scheduler(tiny, kind, timestep_spacing="linspace").scheduler
    scheduler.set_timesteps(7)
    t = scheduler.timesteps
    assert bool((t != t.floor()).any()), "control: some lie between two"
    level = tiny.level(t)
    found = (level.sigma / level.alpha).flatten()
    assert torch.allclose(found, scheduler.sigmas[:-1], rtol=1e-4)
    floored = tiny.level(t.long())
    assert not torch.allclose((floored.sigma / floored.alpha).flatten(), scheduler.sigmas[:-1], rtol=1e-4)


def test_as_many_steps_as_in_training(tiny: DiffusionModel) -> None:
    """With ``steps_offset`` 1 the first timestep is then past the last level, and the stock pipeline fails too."""
    model = face(with_scheduler(tiny, "DDIMScheduler", steps_offset=1, timestep_spacing="leading"), "a model")
    with pytest.raises(ConfigError, match="1000"):
        model.new_scheduler(1000)
    assert int(model.new_scheduler(999).timesteps.max()) == 999  # control


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_about_as_many_steps_as_in_training_are_possible_or_one_line(
    kind: str, spacing: str, tiny: DiffusionModel
) -> None:
    """Whatever the scheduler: every timestep that is given is one of training, and few steps always are."""
    model, possible = face(with_scheduler(tiny, kind, steps_offset=1, timestep_spacing=spacing), "a model"), []
    for count in (4, 500, 998, 999, 1000, 1001):
        try:
            timesteps = model.new_scheduler(count).timesteps
        except ConfigError as error:
            assert str(count) in str(error) and "\n" not in str(error)
        else:
            assert float(timesteps.min()) >= 0 and float(timesteps.max()) <= 999
            possible.append(count)
    assert {4, 500} <= set(possible) and (spacing == "trailing" or 998 in possible)
    for count in (0, -1, 10**9):
        with pytest.raises(ConfigError, match="number of denoising steps"):
            model.new_scheduler(count)
