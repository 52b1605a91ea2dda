"""One face for the family: embeddings, noise and images are those of the diffusers pipelines themselves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from mu.core.errors import ConfigError, ModelError
from mu.diffusion.sampling import generate
from mu.models import load
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.models.diffusion.schedulers import learning_rate_schedule, training_scheduler

PROMPTS = ["a star in neon style", "a dog"]
FAMILY = ("tiny", "tiny_v", "tiny_xl")


@pytest.fixture(params=FAMILY)
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    return request.getfixturevalue(request.param)


# -- text
# -------------------------------------------------------------------------------------------------------------------


def test_embeddings_are_the_pipelines(model: DiffusionModel) -> None:
    found = model.encode(PROMPTS)
    if len(model.text) > 1:
        sequence, _, pooled, _ = model.pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
        assert found.pooled is not None and torch.allclose(found.pooled, pooled, atol=1e-6)
        assert found.time_ids is not None and found.time_ids.tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    else:
        sequence, _ = model.pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
        assert found.pooled is found.time_ids is None
    assert torch.allclose(found.sequence, sequence, atol=1e-6)
    assert not torch.allclose(found.sequence[0], found.sequence[1], atol=1e-3)


def test_clip_skip_2_is_the_text_encoder_without_its_last_layer(tiny_folder: Path, tiny: DiffusionModel) -> None:
    skipping = load(tiny_folder, device="cpu", clip_skip=2)
    assert isinstance(skipping, DiffusionModel)
    encoder = tiny.components["text_encoder"]
    config = {**encoder.config.to_dict(), "num_hidden_layers": encoder.config.num_hidden_layers - 1}
    shorter = CLIPTextModel(CLIPTextConfig.from_dict(config)).eval()
    lost = shorter.load_state_dict(encoder.state_dict(), strict=False).unexpected_keys
    assert lost and all("layers.2." in name for name in lost)
    with torch.no_grad():
        wanted = shorter(tiny.text[0].tokens(PROMPTS)).last_hidden_state
    assert torch.allclose(skipping.encode(PROMPTS).sequence, wanted, atol=1e-6)
    assert not torch.allclose(tiny.encode(PROMPTS).sequence, wanted, atol=1e-3)
    with pytest.raises(ConfigError, match="clip_skip"):
        load(tiny_folder, device="cpu", clip_skip=9)


def test_a_prompt_that_is_cut_is_told_once(tiny: DiffusionModel, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(["star"] * 20) + " zebra"
    with caplog.at_level(logging.WARNING, "mu"):
        tiny.encode([long])
        tiny.encode([long])
        tiny.encode(["short"])
    assert len(caplog.records) == 1
    assert "zebra" in caplog.text


def test_conditionings_are_rows(tiny_xl: DiffusionModel) -> None:
    both = tiny_xl.encode(PROMPTS)
    assert torch.equal(both.repeat(2)[2:].sequence, both.sequence)
    again = Conditioning.cat([both[0:1], both[1:2]])
    for part in ("sequence", "pooled", "time_ids"):
        assert torch.equal(getattr(again, part), getattr(both, part))
    ids = tiny_xl.time_ids(128, 64, original=(256, 256), crop=(3, 4))
    assert both.at(ids).time_ids.tolist() == [[256, 256, 3, 4, 128, 64]] * 2  # type: ignore[union-attr]


# -- noise
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predictions_are_always_noise(kind: str, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A UNet that knew the truth, in each of the three ways of saying it, gives eps back."""
    g = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(3, 4, 8, 8, generator=g), torch.randn(3, 4, 8, 8, generator=g)
    t = torch.tensor([3, 500, 980])
    alpha_bar = tiny.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    said = {"epsilon": eps, "v_prediction": alpha * eps - sigma * clean, "sample": clean}[kind]
    monkeypatch.setattr(tiny, "prediction_type", kind)
    monkeypatch.setattr(tiny, "_forward", lambda *_, **__: type("Out", (), {"sample": said})())
    found = tiny.predict_noise(alpha * clean + sigma * eps, t, tiny.encode(["a"] * 3))
    assert torch.allclose(found, eps, atol=2e-4)
    for at in (3, 500):  # and the loss weight turns a squared error of eps into one of what is said
        other = said + 0.1
        monkeypatch.setattr(tiny, "_forward", lambda *_, said=other, **__: type("Out", (), {"sample": said})())
        shifted = tiny.predict_noise(alpha * clean + sigma * eps, t, tiny.encode(["a"] * 3))
        row = t.tolist().index(at)
        assert tiny.native_weight(at) * float((shifted - eps)[row].pow(2).mean()) == pytest.approx(0.01, rel=1e-2)


def test_pure_noise_has_no_weight(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """v-prediction models with such a schedule can be trained: the last timestep says nothing, and is no division."""
    monkeypatch.setattr(tiny, "prediction_type", "v_prediction")
    assert tiny.native_weight(999) > 1
    monkeypatch.setattr(tiny, "alphas_cumprod", torch.cat([tiny.alphas_cumprod[:-1], torch.zeros(1)]))
    assert tiny.native_weight(999) == 0 < tiny.native_weight(998)


def test_the_schedule_is_the_checkpoints(tiny: DiffusionModel) -> None:
    reference = DDIMScheduler.from_config(tiny.pipeline.scheduler.config).alphas_cumprod
    assert torch.equal(tiny.alphas_cumprod, reference)


def test_training_schedulers_are_built_from_constants() -> None:
    ddim = training_scheduler("ddim")
    ddim.set_timesteps(30)
    assert ddim.timesteps.tolist() == [957 - 33 * k for k in range(30)]
    assert float(ddim.final_alpha_cumprod) == 1.0
    assert not ddim.config.clip_sample
    ddim.set_timesteps(1000)
    assert ddim.timesteps[:2].tolist() == [999, 998]
    with pytest.raises(ConfigError, match="'ddim'"):
        training_scheduler("dddim")


@pytest.mark.parametrize(
    "name",
    [
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "one_cycle",
        "adafactor:1e-3",
    ],
)
def test_learning_rate_schedules_run(name: str) -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = learning_rate_schedule(name, optimizer, 5, warmup=2, cycles=2, power=2.0)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] >= 0


# -- images
# ---------------------------------------------------------------------------------------------------------------


def test_images_are_the_pipelines(model: DiffusionModel) -> None:
    """Same noise, same scheduler: the decoded images of `generate` are those of the diffusers pipeline."""
    options: dict[str, Any] = {
        "num_inference_steps": 3,
        "guidance_scale": 7.5,
        "height": 64,
        "width": 64,
        "output_type": "pt",
    }
    model.pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    wanted = model.pipeline(PROMPTS[0], negative_prompt="blurry", latents=noise, **options).images
    found = generate(model, PROMPTS[:1], [5], steps=3, negative="blurry", height=64, width=64)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(
        generate(model, PROMPTS[:1], [6], steps=3, negative="blurry", height=64, width=64), wanted, atol=1e-2
    )


def test_the_autoencoder_is_used_as_the_pipeline_uses_it(tiny: DiffusionModel) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = tiny.vae.decode(latents / tiny.vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(tiny.decode(latents), wanted.clamp(0, 1), atol=1e-6)
    images = torch.rand(2, 3, 64, 64)
    mean = tiny.vae.encode(images * 2 - 1).latent_dist.mean * tiny.vae.config.scaling_factor
    assert torch.allclose(tiny.encode_images(images), mean, atol=1e-6)
    drawn: list[Tensor] = [tiny.encode_images(images, torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# -- loading
# ----------------------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_frozen(tiny_folder: Path) -> None:
    model = load(str(tiny_folder), device="cpu")
    assert isinstance(model, DiffusionModel)
    assert model.default_size == 64
    assert set(model.components) == {"unet", "vae", "text_encoder"}
    for module in model.components.values():
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["no/such/folder", "nothing", "./nothing", "cnvas", "missing.safetensors"])
def test_a_model_that_is_not_there_is_one_clear_line(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_half_precision_computes_nearly_the_same(tiny_folder: Path, tiny: DiffusionModel) -> None:
    half = load(tiny_folder, device="cpu", precision="bfloat16")
    assert isinstance(half, DiffusionModel)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = half.predict_noise(x, 500, half.encode(["a star"]))
    wanted = tiny.predict_noise(x, 500, tiny.encode(["a star"]))
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_schedule_that_ends_in_pure_noise_is_refused(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """eps says nothing where alpha_bar is 0: images would be NaN."""
    config = {**tiny.pipeline.scheduler.config, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    monkeypatch.setattr(tiny.pipeline, "scheduler", type(tiny.pipeline.scheduler).from_config(config))
    with pytest.raises(ModelError, match="rescale_betas_zero_snr"):
        tiny.new_scheduler(5)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_the_stock_pipeline_of_a_model_in_half_precision_makes_images(
    precision: str, tiny_folder: Path, tiny: DiffusionModel
) -> None:
    """Its autoencoder is in float32, and takes the latents in half precision that the pipeline gives it."""
    half = load(tiny_folder, device="cpu", precision=precision)
    assert isinstance(half, DiffusionModel) and half.vae.dtype == torch.float32 != half.unet.dtype
    made = []
    for pipeline in (half.pipeline, tiny.pipeline):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(pipeline("a star", num_inference_steps=2, generator=generator, output_type="pt").images.float())
    assert (made[0] - made[1]).abs().mean() < 0.05
    half.vae.decoder._forward_pre_hooks.clear()
    half.vae.post_quant_conv._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="type"):  # the control
        half.pipeline("a star", num_inference_steps=1, output_type="pt")
