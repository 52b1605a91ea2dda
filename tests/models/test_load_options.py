"""What a loading must be told is set, checked and noted, and never guessed where notes differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mu.core.errors import ConfigError
from mu.models import EMBEDDED, load, load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.models.load_options import LoadingConfig, loading


def noted(base: str = "a", **options: Any) -> Any:
    return SimpleNamespace(base=base, loading=options)


def test_what_is_given_counts_then_what_is_noted_of_the_same_base() -> None:
    notes = [noted(clip_skip=2, prediction_type="epsilon"), noted(), noted("b", clip_skip=3)]
    assert loading("a", notes, clip_skip=None, prediction_type=None) == {"clip_skip": 2, "prediction_type": "epsilon"}
    assert loading("a", notes, clip_skip=1) == {"clip_skip": 1}  # what is not asked for is left out
    assert loading("c", notes, clip_skip=None) == {}
    assert loading("a", [], clip_skip=None) == {}


def test_notes_that_differ_are_not_guessed_from() -> None:
    notes = [noted(clip_skip=2), noted(clip_skip=1)]
    with pytest.raises(ConfigError, match=r"clip_skip 1.* 2.*--clip-skip"):
        loading("a", notes, clip_skip=None)
    assert loading("a", notes, clip_skip=2) == {"clip_skip": 2}
    with pytest.raises(ConfigError, match="clip_skip"):  # a file may hold anything
        loading("a", [noted(clip_skip="much")], clip_skip=None)


def test_settings_are_held_against_a_loaded_model(tiny: DiffusionModel) -> None:
    LoadingConfig().check(tiny)
    LoadingConfig(clip_skip=1, prediction_type="epsilon").check(tiny)
    with pytest.raises(ConfigError, match=r"loading\.clip_skip.*\b2\b.*\b1\b"):
        LoadingConfig(clip_skip=2).check(tiny)
    with pytest.raises(ConfigError, match=r"loading\.prediction_type.*'a CLIP'"):
        LoadingConfig(prediction_type="epsilon").check(SimpleNamespace(name="a CLIP", components={}))


def test_a_folder_may_be_said_to_predict_something_else(tiny: DiffusionModel, tiny_folder: Path) -> None:
    """Its scheduler says epsilon; eps = alpha v + sigma x is what the UNet's output then means."""
    other = load_diffusion(tiny_folder, device="cpu", prediction_type="v_prediction")
    assert (tiny.loading, other.loading) == (
        {"clip_skip": 1, "prediction_type": "epsilon"},
        {"clip_skip": 1, "prediction_type": "v_prediction"},
    )
    assert other.pipeline.scheduler.config.prediction_type == "v_prediction"  # what a merged folder will say
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 500
    alpha_bar = tiny.alphas_cumprod[t]
    out, eps = (model.predict_noise(x, t, tiny.encode(["a star"])) for model in (tiny, other))
    assert torch.allclose(eps, alpha_bar.sqrt() * out + (1 - alpha_bar).sqrt() * x, atol=1e-5)
    assert not torch.allclose(eps, out, atol=1e-2)
    with pytest.raises(ConfigError, match="'v_prediction'"):
        load(tiny_folder, prediction_type="v-prediction")


@pytest.mark.parametrize("name", ["canvas-clip", "canvas-vlm"])
def test_other_models_take_neither(name: str) -> None:
    if not EMBEDDED[name].exists():
        pytest.skip("the embedded model's weights are not in this checkout")
    for options in ({"clip_skip": 2}, {"prediction_type": "epsilon"}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}.*'{name}'"):
            load(name, **options)  # type: ignore[arg-type]
