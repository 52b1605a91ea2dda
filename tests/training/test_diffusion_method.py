"""What the methods that shift weights share: their settings, their model, and a training that goes on where it
stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.core import loop
from mu.core.algorithm import Preset, Presets
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.training.diffusion_config import AnchoredConfig, ErasureConfig, TrainConfig
from mu.training.diffusion_method import WeightErasure
from mu.training.tuning import Tuning


class ShortConfig(TrainConfig):
    iterations: int = 5
    checkpoint_every: int = 2


class Config(AnchoredConfig):
    train: ShortConfig = ShortConfig()
    seed: int = 0


class Pulled(WeightErasure):
    """Moves the cross-attention towards random numbers."""

    name, config_class = "pulled", Config
    presets = Presets(Config, Preset("other", "another model", {"model": "other", "train": {"lr": 1e-3}}))
    stop_at = -1

    def find_edit(self, run: RunDirectory | None = None, log: loop.Log | None = None) -> WeightEdit:
        model = self.load_model()
        return self.edit(self.train(model.parameters("cross-attention"), self.step, run, log))

    def step(self, tuning: Tuning, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        if i == self.stop_at:
            raise KeyboardInterrupt
        aim = torch.randn(1, generator=generator)
        return {"loss": torch.stack([(p - aim).square().mean() for p in tuning.parameters.values()]).sum()}


@pytest.mark.parametrize("gradients", ["zeroed", "summed"])
def test_an_interrupted_run_ends_in_the_same_numbers(gradients: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    settings = {"train": {"gradients": gradients}}
    wanted = Pulled(settings, model=tiny).find_edit()
    cut, run = Pulled(settings, model=tiny), RunDirectory(tmp_path)
    cut.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        cut.find_edit(run)
    assert (run.checkpoints / "training.pt").exists()
    cut.stop_at = -1
    steps: list[Any] = []
    found = cut.find_edit(run, steps.append)
    assert [row["step"] for row in steps] == [3, 4]
    assert all(torch.equal(found.shifts[name], wanted.shifts[name]) for name in wanted.shifts)
    assert all(shift.any() for shift in wanted.shifts.values())  # control: it moved


def test_summed_gradients_move_further(tiny: DiffusionModel) -> None:
    moves = [
        float(sum(s.abs().sum() for s in Pulled({"train": {"gradients": how}}, model=tiny).find_edit().shifts.values()))
        for how in ("zeroed", "summed")
    ]
    assert moves[1] > 1.05 * moves[0]


def test_concepts_go_into_settings() -> None:
    chosen = Pulled.for_concepts(["a", "b"], "other")
    assert (chosen.concepts, chosen.model, chosen.train.lr) == (["a", "b"], "other", 1e-3)  # type: ignore[attr-defined]
    assert Pulled.for_concepts(["a"], "x.ckpt").train.iterations == 5  # type: ignore[attr-defined]
    assert Pulled.for_concepts(["a"], "x.ckpt", "other").model == "x.ckpt"  # type: ignore[attr-defined]
    assert Pulled.for_concepts(["a"], preset=Config(seed=3)).seed == 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="'other'"):
        Pulled.for_concepts(["a"], None, "othr")


def test_settings_that_say_nothing_are_refused() -> None:
    assert ErasureConfig.parse({"concepts": [" Van  Gogh", "Van Gogh"], "devices": 0}).concepts == ["Van Gogh"]
    with pytest.raises(ConfigError, match="concepts"):
        Config.parse({"concepts": []})
    with pytest.raises(DataError, match="concept"):
        Config.parse({"concepts": [" "]})
    with pytest.raises(ConfigError, match=r"^templates"):
        Config.parse({"templates": ["a picture"]})
    with pytest.raises(ConfigError, match=r"\b3\b.*\b2\b"):
        Config.parse({"concepts": ["a", "b"], "anchors": ["x", "y", "z"]})
    with pytest.raises(ConfigError, match="'Van Gogh'"):
        Config.parse({"concepts": ["Van Gogh"], "anchors": ["van  gogh"]})


def test_concepts_and_anchors_in_templates() -> None:
    config = Config.parse({"concepts": ["star", "moon"], "templates": ["{}", "a {} image"], "anchors": ["", "ring"]})
    assert config.pairs() == [
        [("star", ""), ("a star image", "a image")],
        [("moon", "ring"), ("a moon image", "a ring image")],
    ]


def test_settings_are_held_against_the_model_given(
    tiny: DiffusionModel, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision.* float32"):
        Pulled({"train": {"precision": "bf16"}}, model=tiny).load_model()
    with caplog.at_level(logging.WARNING, "mu"):
        assert Pulled({"devices": "cpu", "train": {"precision": "fp32"}}, model=tiny).load_model() is tiny
    assert not caplog.records
    with pytest.raises(ConfigError, match="'canvas-clip'"):
        Pulled(model=load("canvas-clip", device="cpu")).load_model()
    loaded = Pulled({"model": str(tiny_folder), "devices": "cpu", "train": {"precision": "bf16"}}).load_model()
    assert loaded.precision == torch.bfloat16
