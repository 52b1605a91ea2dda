"""What the methods that shift weights share: their settings, their model, and a training that goes on where it
stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.core import compute, loop
from mu.core.algorithm import Preset, Presets
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.diffusion.denoising import initial_noise
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.training.calibration import Calibration
from mu.training.calibration_config import CalibrateConfig
from mu.training.diffusion_config import AnchoredConfig, ErasureConfig, TrainConfig
from mu.training.diffusion_method import RETAINED, WeightErasure
from mu.training.kept_directions import LONGER
from mu.training.kept_images import KeptImages
from mu.training.probe import Reading
from mu.training.surroundings import Surroundings
from mu.training.tuning import Tuning, tuned
from mu.training.watch import relative_rate


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


class Calibrated(Pulled):
    """A search that reads a weight in place of images, so the same weights are read alike."""

    trained = "text-values"

    def find_edit(self, run: RunDirectory | None = None, log: loop.Log | None = None) -> WeightEdit:
        model = self.load_model()
        weight = next(iter(model.parameters(self.trained).values()))
        probe: Any = SimpleNamespace(
            model=model, read=lambda: Reading(float(weight.detach().abs().sum()), 1.0, 0.0, 0.0, 0.0)
        )
        around = Surroundings(
            "neon", ("sketch",), ("fish",), ("{}",), ("one {}",), ("a fish", "sketch", "a sketch fish")
        )
        self.calibrations = [Calibration(CalibrateConfig(on=True, every=2), around, probe)]
        return self.edit(self.train(model.parameters(self.trained), self.step, run, log))


class OfAllCrossAttention(Calibrated):
    trained = "cross-attention"


def moved(edit: WeightEdit, model: DiffusionModel) -> float:
    """How far values of kept prompts move, over how far those of any rows do."""
    values = {name: shift for name, shift in edit.shifts.items() if name in model.parameters("text-values")}
    rows = model.encode(["a fish", "sketch", "a sketch fish"]).sequence.flatten(0, 1)
    of_kept = sum(float((rows @ shift.T).square().sum()) for shift in values.values()) / float(rows.square().sum())
    return of_kept / sum(float(shift.square().sum()) for shift in values.values())


def unshortened(rows: Tensor) -> Tensor:
    return torch.eye(rows.shape[1], dtype=rows.dtype)


def test_a_calibrated_search_of_keys_and_values_spares_kept_prompts(
    tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Calibrated({}, model=tiny).find_edit()
    monkeypatch.setattr("mu.training.diffusion_method.shortening", unshortened)
    assert moved(short, tiny) < 0.1 * moved(Calibrated({}, model=tiny).find_edit(), tiny)


def test_a_search_that_trains_more_takes_usual_steps_at_the_usual_rate(
    tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, short = OfAllCrossAttention({}, model=tiny), Calibrated({}, model=tiny)
    found = whole.find_edit()
    short.find_edit()
    assert whole.watch and short.watch
    size = relative_rate([p for p in tiny.parameters("cross-attention").values()], CalibrateConfig().rate)
    assert whole.watch.first == pytest.approx(size)
    of_values = relative_rate([p for p in tiny.parameters("text-values").values()], CalibrateConfig().rate)
    assert short.watch.first == pytest.approx(LONGER * of_values)
    monkeypatch.setattr("mu.training.diffusion_method.shortening", unshortened)
    again = OfAllCrossAttention({}, model=tiny).find_edit()
    assert all(torch.equal(found.shifts[name], again.shifts[name]) for name in found.shifts)


def test_predictions_for_what_should_stay_are_kept_where_they_belong(tiny: DiffusionModel) -> None:
    """At latents of the step with any kept prompt, and on the way to kept images with their own."""
    search = Calibrated({}, model=tiny)
    search.find_edit()
    kept = KeptImages(tiny, search.calibrations[0].kept)
    search.kept_images = [kept]
    here, seen = initial_noise(tiny, tiny.default_size, tiny.default_size, [compute.generator(3)]), []
    with tuned(tiny.parameters("text-values")) as tuning:
        predict = tiny.predict

        def spied(x: Tensor, level: Any, c: Any) -> Tensor:
            seen.append((x, level, c))
            return predict(x, level, c)

        tiny.predict = spied  # type: ignore[method-assign]
        try:
            generator = compute.generator(0)
            same = search.with_retained({"loss": torch.tensor(1.0)}, tuning, here, 300, generator)
            with torch.no_grad():
                for weight in tuning.tensors:
                    weight.mul_(1.5)
            other = search.with_retained({"loss": torch.tensor(1.0)}, tuning, here, 300, generator)
        finally:
            del tiny.predict
    assert same["retained"] == 0 and same["loss"] == 1 < other["loss"]
    loss, retained = (float(other[name].detach()) for name in ("loss", "retained"))
    assert loss == pytest.approx(1 + CalibrateConfig().weight * retained)
    for x, level, c in seen:
        assert len(x) == len(c) == 2 * RETAINED
        assert torch.equal(x[:RETAINED], here.expand(RETAINED, -1, -1, -1))
        for k in range(RETAINED, 2 * RETAINED):
            step, image = next(
                (s, n) for s in range(len(kept.times)) for n in range(3) if torch.equal(x[k], kept.latents[s, n])
            )
            assert torch.equal(level.alpha[k], tiny.level(kept.times[step]).alpha[0])
            assert torch.equal(c.sequence[k], kept.prompts.sequence[image])


@pytest.mark.parametrize("gradients", ["zeroed", "summed"])
def test_an_interrupted_calibrated_run_ends_in_the_same_numbers(
    gradients: str, tiny: DiffusionModel, tmp_path: Path
) -> None:
    settings = {"train": {"gradients": gradients, "iterations": 7}}
    wanted = Calibrated(settings, model=tiny).find_edit()
    cut, run = Calibrated(settings, model=tiny), RunDirectory(tmp_path)
    cut.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        cut.find_edit(run)
    cut.stop_at = -1
    found = cut.find_edit(run)
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
