"""One weight file is a whole pipeline: there and back bit for bit, for small random models of every family."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from mu.core.errors import ConfigError, ModelError, OutputError
from mu.edits.files import open_edit
from mu.models import load_diffusion
from mu.models.formats import architectures, compvis, single_file
from mu.models.formats.packing import pack
from mu.models.formats.single_file import load_single_file, to_compvis
from mu.models.quiet import quiet_libraries

PUBLISHED = {
    "sd1": architectures.stable_diffusion_1,
    "sd2": architectures.stable_diffusion_2,
    "sdxl": architectures.stable_diffusion_xl,
}
FAMILIES = tuple(PUBLISHED)
Tensors = dict[str, torch.Tensor]


# -- small models of each family
# --------------------------------------------------------------------------------------------


def small_tokenizer(pad: str = "!") -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>")]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        single_file.START,
        single_file.END,
    ]
    return CLIPTokenizer(
        vocab={token: k for k, token in enumerate(tokens)}, merges=merges, model_max_length=8, pad_token=pad
    )


VOCABULARY = 2 * 256 + 2 + 2
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
}


def small_configs(family: str) -> dict[str, dict[str, Any]]:
    """The published configs of ``family``, narrow and shallow, with all their kinds of blocks."""
    configs = PUBLISHED[family]()
    blocks = len(configs["unet"]["block_out_channels"])
    narrow = {
        "block_out_channels": [8, 16, 16, 16][:blocks],
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "sample_size": 8,
        "layers_per_block": 1,
    }
    configs["unet"] |= narrow | {"cross_attention_dim": 16 + 24 if family == "sdxl" else 16}
    configs["vae"] |= {
        "block_out_channels": [4, 8, 8, 8],
        "norm_num_groups": 4,
        "sample_size": 64,
        "layers_per_block": 1,
    }
    configs["text_encoder"] |= TEXT
    if family == "sdxl":
        sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 24 + 6 * 4}
        configs["unet"] |= sizes | {"transformer_layers_per_block": [1, 2, 3]}
        configs["text_encoder_2"] |= TEXT | {"hidden_size": 24, "projection_dim": 24}
    return configs


def pipeline_of(configs: dict[str, dict[str, Any]]) -> DiffusionPipeline:
    torch.manual_seed(0)
    with quiet_libraries():
        parts = {part: architectures.new_component(config) for part, config in configs.items()}
        for module in parts.values():
            for parameter in module.parameters() if isinstance(module, torch.nn.Module) else ():
                parameter.data.normal_()  # norms and biases too: no two tensors are alike
        if "text_encoder_2" in parts:
            tokenizers = {"tokenizer": small_tokenizer(single_file.END), "tokenizer_2": small_tokenizer()}
            return StableDiffusionXLPipeline(**parts, **tokenizers, add_watermarker=False)
        return StableDiffusionPipeline(
            **parts,
            tokenizer=small_tokenizer(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> a diffusers folder with a small random model of it."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            with quiet_libraries():
                pipeline_of(small_configs(family)).save_pretrained(made[family])
        return made[family]

    return folder


def opened(folder: Path) -> DiffusionPipeline:
    with quiet_libraries():
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


@cache
def _weights_of(folder: Path) -> Tensors:
    return to_compvis(opened(folder))


def checkpoint_of(folder: Path) -> Tensors:
    """The single file of the model in ``folder``, in a mapping of the caller's own; nobody writes into the tensors."""
    return dict(_weights_of(folder))


def written(checkpoint: Tensors, path: Path, **extra: torch.Tensor) -> Path:
    if path.suffix == ".safetensors":
        save_file(checkpoint | extra, path)
    else:
        torch.save({"state_dict": checkpoint | extra, "global_step": 1}, path)
    return path


def weights(pipeline: Any) -> Tensors:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}


def same(some: Tensors, other: Tensors) -> bool:
    return some.keys() == other.keys() and all(
        some[k].dtype == other[k].dtype and torch.equal(some[k], other[k]) for k in some
    )


def image(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "num_inference_steps": 2,
        "height": 16,
        "width": 16,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
    }
    return torch.from_numpy(pipeline("a cat!", **settings).images)


# -- there and back
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_to_file_to_folder_is_exact(family: str, suffix: str, folders: Callable[[str], Path], tmp_path: Path):
    pipeline = opened(folders(family))
    path = written(to_compvis(pipeline), tmp_path / f"model{suffix}")
    again = load_single_file(path, configs=folders(family))
    assert type(again) is type(pipeline)
    assert same(weights(again), weights(pipeline))
    again.save_pretrained(tmp_path / "folder")
    last = opened(tmp_path / "folder")
    assert same(weights(last), weights(pipeline))
    assert same(to_compvis(last), to_compvis(pipeline))
    last.unet.conv_out.bias.data[0] += 1e-6
    assert not same(weights(last), weights(pipeline))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loaded_pipeline_draws_the_same_image(family: str, folders: Callable[[str], Path], tmp_path: Path):
    pipeline = opened(folders(family))
    again = load_single_file(written(to_compvis(pipeline), tmp_path / "model.safetensors"), configs=folders(family))
    assert not again.unet.training and not again.text_encoder.training
    for parameter in (*pipeline.unet.parameters(), *pipeline.vae.parameters(), *pipeline.text_encoder.parameters()):
        parameter.data = parameter.data.clone()  # where a tensor starts in memory decides how a kernel rounds
    expected = image(pipeline)
    assert torch.equal(image(again), expected)
    again.text_encoder.get_input_embeddings().weight.data.mul_(1.1)
    assert not torch.equal(image(again), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_the_same_weights_from_the_file(family: str, folders: Callable[[str], Path], tmp_path: Path):
    """An independent converter, which is given the architecture."""
    pipeline = opened(folders(family))
    path = written(to_compvis(pipeline), tmp_path / "model.safetensors")
    with quiet_libraries():
        theirs = type(pipeline).from_single_file(str(path), config=str(folders(family)), local_files_only=True)
    assert same(weights(theirs), weights(pipeline))
    file = load_file(path)
    key = next(key for key in file if key.endswith(("attn.in_proj_weight", "layers.0.self_attn.q_proj.weight")))
    save_file(file | {key: file[key].roll(1, 0)}, path)
    with quiet_libraries():
        theirs = type(pipeline).from_single_file(str(path), config=str(folders(family)), local_files_only=True)
    assert not same(weights(theirs), weights(pipeline))


def test_the_embedded_model_has_a_single_file_too(tmp_path: Path):
    from mu.models.canvas import architecture as world

    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    text = architectures.new_component(
        TEXT | {"hidden_size": world.Sizes().text_width, "num_attention_heads": 6, "architectures": ["CLIPTextModel"]}
    )
    parts = {
        "unet": world.new_unet(),
        "vae": world.new_autoencoder(),
        "text_encoder": text,
        "scheduler": world.new_scheduler(),
    }
    safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with quiet_libraries():
        pipeline = StableDiffusionPipeline(**parts, tokenizer=tokenizer, **safety)
        pipeline.save_pretrained(tmp_path)
    again = load_single_file(written(to_compvis(pipeline), tmp_path / "model.safetensors"), configs=tmp_path)
    assert same(weights(again), weights(pipeline))
    assert again.scheduler.betas.equal(pipeline.scheduler.betas) and type(again.scheduler) is type(pipeline.scheduler)


@pytest.mark.parametrize(
    ("family", "count"),
    [("sd1", 686 + 248 + 196), ("sd2", 686 + 248 + 23 * 12 + 4), ("sdxl", 1680 + 248 + 196 + 32 * 12 + 5)],
)
def test_the_keys_of_full_size_checkpoints(family: str, count: int):
    checkpoint: Tensors = {}
    for part, config in PUBLISHED[family]().items():
        if part != "scheduler":
            checkpoint |= pack(
                architectures.blueprint(config).state_dict(), compvis.component_names(family, part, config)
            )
    assert len(checkpoint) == count
    shape = {key: tuple(tensor.shape) for key, tensor in checkpoint.items()}
    assert shape["first_stage_model.decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shape["model.diffusion_model.input_blocks.0.0.weight"] == (320, 4, 3, 3)
    if family == "sd1":
        assert shape["model.diffusion_model.input_blocks.1.1.proj_in.weight"] == (320, 320, 1, 1)
        assert shape["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] == (49408, 768)
    if family == "sd2":
        assert shape["model.diffusion_model.input_blocks.1.1.proj_in.weight"] == (320, 320)
        assert shape["cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"] == (3072, 1024)
    if family == "sdxl":
        assert shape["conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_fc.weight"] == (5120, 1280)
        assert shape["conditioner.embedders.1.model.text_projection"] == (1280, 1280)
        assert shape["model.diffusion_model.label_emb.0.0.weight"] == (1280, 2816)


# -- what published files hold besides
# ------------------------------------------------------------------------------------


def test_remains_of_training_and_unused_layers_are_passed_over(folders: Callable[[str], Path], tmp_path: Path):
    folder = folders("sd2")
    pipeline = opened(folder)
    checkpoint = to_compvis(pipeline)
    layer = "cond_stage_model.model.transformer.resblocks."
    last = {
        key.replace(f"{layer}1.", f"{layer}2."): tensor + 1
        for key, tensor in checkpoint.items()
        if key.startswith(f"{layer}1.")
    }
    assert len(last) == 12
    remains = {
        "cond_stage_model.model.text_projection": torch.randn(16, 16),
        "cond_stage_model.model.logit_scale": torch.tensor(1.0),
        "cond_stage_model.model.visual.proj": torch.ones(1),
        "first_stage_model.loss.logvar": torch.ones(1),
        "betas": torch.ones(1000),
        "model_ema.decay": torch.tensor(1.0),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
    }
    again = load_single_file(written(checkpoint | last | remains, tmp_path / "model.ckpt"), configs=folder)
    assert same(weights(again), weights(pipeline))


def test_only_the_last_layer_of_the_text_encoder_is_passed_over(folders: Callable[[str], Path], tmp_path: Path):
    checkpoint = checkpoint_of(folders("sd2"))
    checkpoint["cond_stage_model.model.transformer.resblocks.3.ln_1.bias"] = torch.ones(
        16
    )  # 0 and 1 are read, 2 is the last
    with pytest.raises(ModelError, match=r"1 tensors.*sd2.*cond_stage.*resblocks\.3\.ln_1\.bias"):
        load_single_file(written(checkpoint, tmp_path / "model.ckpt"), configs=folders("sd2"))


def test_text_encoders_without_the_level_text_model_are_read(folders: Callable[[str], Path], tmp_path: Path):
    pipeline = opened(folders("sd1"))
    bare = {
        key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in to_compvis(pipeline).items()
    }
    bare["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(8)[None]
    assert not any("text_model" in key for key in bare)
    assert same(
        weights(load_single_file(written(bare, tmp_path / "m.ckpt"), configs=folders("sd1"))), weights(pipeline)
    )


def test_precision_is_single_unless_the_files_is_asked_for(folders: Callable[[str], Path], tmp_path: Path):
    halves = {key: tensor.half() for key, tensor in checkpoint_of(folders("sd1")).items()}
    path = written(halves, tmp_path / "model.safetensors")
    assert {t.dtype for t in weights(load_single_file(path, configs=folders("sd1"))).values()} == {torch.float32}
    kept = load_single_file(path, configs=folders("sd1"), dtype=None)
    assert same(to_compvis(kept), halves)


@pytest.mark.parametrize("half", [False, True])
def test_checkpoint_folder_and_edits_are_one_by_name(
    half: bool,
    folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A CompVis checkpoint as published (EMA copies, schedule, perhaps in half precision), its diffusers folder and a
    SepCE-like edit: the edit found on one fits the other, a merge touches the keys and values of the cross-attentions
    and no other tensor of UNet, VAE or text encoder, and what it adds is the edit's shift, by the names that each
    layout has."""
    from mu.edits.bank import Bank
    from mu.edits.edit import EditInfo, described
    from mu.edits.export import export
    from mu.edits.low_rank import LowRankEdit
    from mu.edits.membrane import Factors
    from mu.models.diffusion import face

    monkeypatch.setattr(single_file, "_published", lambda family, prediction_type: small_configs(family))
    plain = checkpoint_of(folders("sd1"))
    stored = {key: tensor.half() if half else tensor for key, tensor in plain.items()}
    training = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(1000),
        "betas": torch.ones(1000),
        **{
            f"model_ema.{key.replace('.', '')}": tensor + 1
            for key, tensor in plain.items()
            if key.startswith("model.diffusion_model")
        },
    }
    file = written(stored | training, tmp_path / "full-ema.ckpt")
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    model = face(load_single_file(file), str(file))
    assert same(to_compvis(model.pipeline), {key: tensor.float() for key, tensor in stored.items()}), (
        "every tensor, no EMA copy"
    )

    g = torch.Generator().manual_seed(0)
    layers = {
        n: p for n, p in model.layers("transformer").items() if n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    }
    down = torch.randn(3, 16, generator=g)
    factors = {n: Factors(down, torch.randn(len(p.weight), 3, generator=g), 3.0) for n, p in layers.items()}
    edit = LowRankEdit(factors, EditInfo("sepce", ("cat",), protects=("",), **described(model, list(factors))))
    edit.save(tmp_path / "edit.safetensors")

    with quiet_libraries():
        model.pipeline.save_pretrained(tmp_path / "folder")
        other = face(opened(tmp_path / "folder"), "folder")
    merged = export(Bank(other, [open_edit(tmp_path / "edit.safetensors")]), tmp_path / "merged.ckpt", "compvis")
    assert not [record for record in caplog.records if record.name == "mu"], "the same weights: nothing to warn of"
    base, found = to_compvis(model.pipeline), to_compvis(load_single_file(merged))
    changed = {key for key in base if not torch.equal(base[key], found[key])}
    blocks = {key.removesuffix(".to_k.weight") for key in base if key.endswith("attn2.to_k.weight")}
    assert changed == {f"{block}.{part}.weight" for block in blocks for part in ("to_k", "to_v")} and len(
        changed
    ) == len(layers)
    by_name = compvis.component_names("sd1", "unet", other.unet.config)
    for name, shift in edit.deltas():
        key = by_name[name.removeprefix("unet.")]
        assert torch.equal(found[key], base[key] + shift.reshape(base[key].shape)), key
    control = dict(zip(layers, sorted(changed), strict=True))  # by position: diffusers lists the middle last
    assert any(by_name[name.removeprefix("unet.")] != key for name, key in control.items())
    assert same(to_compvis(other.pipeline), base), "the base of the merge is untouched"


# -- what the UNet predicts
# -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the small models were the published ones, so that files load without ``configs``."""
    monkeypatch.setattr(
        single_file,
        "_published",
        lambda family, prediction_type, real=single_file._published: shrunk(real(family, prediction_type), family),
    )


def shrunk(published: dict[str, Any], family: str) -> dict[str, Any]:
    return small_configs(family) | {"scheduler": published["scheduler"]}


@pytest.mark.usefixtures("small_published")
@pytest.mark.parametrize(
    ("family", "given", "marker", "expected"),
    [
        ("sd1", None, False, "epsilon"),
        ("sd1", "v_prediction", False, "v_prediction"),
        ("sd2", None, False, "v_prediction"),
        ("sd2", "epsilon", False, "epsilon"),
        ("sdxl", None, False, "epsilon"),
        ("sdxl", None, True, "v_prediction"),
        ("sdxl", "epsilon", True, "epsilon"),
    ],
)
def test_prediction_type(
    family: str, given: str | None, marker: bool, expected: str, folders: Callable[[str], Path], tmp_path: Path
):
    extra = {"v_pred": torch.empty(0)} if marker else {}
    path = written(checkpoint_of(folders(family)), tmp_path / "model.safetensors", **extra)
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert load_single_file(path, prediction_type=given).scheduler.config.prediction_type == expected


MARK = torch.empty(0)
EDM = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
STATEMENTS: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, str], str, str]] = {
    # family, marker tensors, metadata, .yaml beside, what is expected: a prediction type, or a part of the error
    "marker of SD 1": ("sd1", {"v_pred": MARK}, {}, "", "v_prediction"),
    "metadata of SD 2": ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, "", "epsilon"),
    "metadata of SD 1": ("sd1", {}, {"modelspec.prediction_type": "v"}, "", "v_prediction"),
    "architecture": ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "", "epsilon"),
    "sd-scripts": ("sd1", {}, {"ss_v_parameterization": "True"}, "", "v_prediction"),
    "CompVis": ("sd1", {}, {}, "model: {params: {parameterization: v}}", "v_prediction"),
    "CompVis, image": ("sd1", {}, {}, "model: {params: {parameterization: x0}}", "sample"),
    "CompVis, eps": ("sd2", {}, {}, "model: {params: {parameterization: eps}}", "epsilon"),
    "SGM": (
        "sdxl", {}, {},
        "model: {params: {denoiser_config: {params: {scaling_config: {target: sgm.modules.a.VScaling}}}}}",
        "v_prediction",
    ),
    "SGM, EDM": (
        "sdxl", {}, {},
        "model: {params: {denoiser_config: {params: {scaling_config: {target: sgm.a.VScalingWithEDMcNoise}}}}}",
        "EDM",
    ),
    "CosXL": ("sdxl", EDM, {}, "", "EDM"),
    "Playground": ("sdxl", {"edm_std": torch.ones(1), "edm_mean": torch.ones(1)}, {}, "", "EDM"),
    "EDM by architecture": ("sdxl", {}, {"modelspec.architecture": "stable-diffusion-xl-v1-edm"}, "", "EDM"),
    "architecture of SD 1": ("sd1", {}, {"modelspec.architecture": "stable-diffusion-v1"}, "", "epsilon"),
    "a name that begins like another": ("sd1", {}, {"modelspec.architecture": "fluxmania"}, "", "epsilon"),
    "diffusers' name of the schedule": (
        "sd1", {}, {}, "model: {params: {timesteps: '1000', beta_schedule: scaled_linear}}", "epsilon"
    ),
    "nothing stated": ("sd1", {}, {}, "model: {params: {timesteps: null, beta_schedule: null}}", "epsilon"),
    "architecture of its own": ("sd1", {}, {"modelspec.architecture": "my-mix/v3"}, "", "epsilon"),
    "another architecture": (
        "sd1", {}, {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "", "modelspec.architecture"
    ),
    "a flow model": ("sd1", {}, {"modelspec.architecture": "stable-diffusion-3-medium"}, "", "modelspec.architecture"),
    "two statements": ("sd1", {"v_pred": MARK}, {"modelspec.prediction_type": "epsilon"}, "", "two things"),
    "unknown word": ("sd1", {}, {"modelspec.prediction_type": "flow"}, "", "'flow'"),
    "part of a model": ("sd1", {}, {"modelspec.timestep_range": "0,200"}, "", "0,200"),
    "no YAML": ("sd1", {}, {}, "model: [", "model.yaml"),
    "strange numbers": ("sd1", {}, {}, "model: {params: {linear_start: many}}", "linear_start"),
    "CompVis as published": (
        "sd1", {}, {}, "model: {params: {timesteps: 1000, beta_schedule: linear, parameterization: v}}", "v_prediction"
    ),
    "another schedule": ("sd1", {}, {}, "model: {params: {beta_schedule: cosine}}", "beta_schedule 'cosine'"),
    "fewer timesteps": ("sd1", {}, {}, "model: {params: {timesteps: 500}}", "timesteps 500"),
    "pure noise and eps": ("sd1", {"ztsnr": MARK}, {}, "", "ztsnr"),
    "a schedule of its own": ("sd1", {"alphas_cumprod": torch.linspace(1, 0, 1000)}, {}, "", "alphas_cumprod"),
}  # fmt: skip


@pytest.mark.usefixtures("small_published")
@pytest.mark.parametrize("case", STATEMENTS)
def test_what_a_file_says_of_itself_is_obeyed_or_refused(case: str, folders: Callable[[str], Path], tmp_path: Path):
    family, extra, metadata, yaml, expected = STATEMENTS[case]
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoint, path = checkpoint_of(folders(family)), tmp_path / "model.safetensors"
    save_file(checkpoint, path)
    plain = load_single_file(path).scheduler.config.prediction_type
    assert plain == ("v_prediction" if family == "sd2" else "epsilon"), "control: nothing is said"
    save_file(checkpoint | extra, path, metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    if expected in ("epsilon", "v_prediction", "sample"):
        assert load_single_file(path).scheduler.config.prediction_type == expected
    else:
        with pytest.raises(ModelError, match=expected) as caught:
            load_single_file(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["time_embed.0.weight", "cond_stage_model", "first_stage_model.decoder.conv_out.bias"])
def test_whole_numbers_of_8_bits_are_no_weights(name: str, folders: Callable[[str], Path], tmp_path: Path):
    checkpoint = to_compvis(opened(folders("sd1")))
    key = next(each for each in checkpoint if name in each)
    with pytest.raises(ModelError, match=f"{key} is in 8-bit whole numbers"):
        path = written(checkpoint | {key: checkpoint[key].to(torch.int8)}, tmp_path / "model.safetensors")
        load_single_file(path, configs=folders("sd1"))


@pytest.mark.usefixtures("small_published")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_schedule_that_ends_in_pure_noise_is_used(family: str, folders: Callable[[str], Path], tmp_path: Path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoint, path = checkpoint_of(folders(family)), tmp_path / "model.safetensors"
    written(checkpoint, path, v_pred=MARK, ztsnr=MARK)
    scheduler = load_single_file(path).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    written(checkpoint, path, v_pred=MARK)
    assert float(load_single_file(path).scheduler.alphas_cumprod[-1]) > 1e-3, "control"


@pytest.mark.usefixtures("small_published")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_noise_schedule_may_be_that_from_before_it_ends_in_pure_noise(
    family: str, folders: Callable[[str], Path], tmp_path: Path
):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoint, path = checkpoint_of(folders(family)), tmp_path / "model.safetensors"
    plain = load_single_file(written(checkpoint, path)).scheduler.alphas_cumprod
    rescaled = load_single_file(written(checkpoint, path, v_pred=MARK, ztsnr=MARK)).scheduler.alphas_cumprod
    assert (plain - rescaled).abs().max() > 0.02, "two tables"
    for table in (plain, rescaled, rescaled.half()):
        found = load_single_file(written(checkpoint, path, v_pred=MARK, ztsnr=MARK, alphas_cumprod=table)).scheduler
        assert torch.equal(found.alphas_cumprod, rescaled), "the mark says which one is used"
    for marks, table in (({"v_pred": MARK, "ztsnr": MARK}, plain**2), ({"v_pred": MARK}, rescaled)):
        with pytest.raises(ModelError, match="alphas_cumprod"):  # controls: another table, and no mark
            load_single_file(written(checkpoint, path, **marks, alphas_cumprod=table))


@pytest.mark.usefixtures("small_published")
def test_a_yaml_beside_the_file_sets_schedule_and_scale(folders: Callable[[str], Path], tmp_path: Path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    path = written(checkpoint_of(folders("sd1")), tmp_path / "model.safetensors")
    path.with_suffix(".yaml").write_text("model: {params: {linear_start: 0.001, linear_end: 0.02, scale_factor: 0.5}}")
    found = load_single_file(path)
    assert (found.scheduler.config.beta_start, found.scheduler.config.beta_end) == (0.001, 0.02)
    assert found.vae.config.scaling_factor == 0.5


@pytest.mark.usefixtures("small_published")
def test_metadata_give_the_size_and_tell_the_layer(
    folders: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoint, path = checkpoint_of(folders("sd1")), tmp_path / "model.safetensors"
    for said, sample_size in (("768x768", 96), ("768x512", 8), ("0x0", 8), ("many", 8)):
        save_file(checkpoint, path, {"modelspec.resolution": said, "modelspec.encoder_layer": "2"})
        assert load_single_file(path).unet.config.sample_size == sample_size
    with caplog.at_level(logging.WARNING, "mu"):
        load_diffusion(path, device="cpu", clip_skip=2)
        assert not caplog.records, "control"
        load_diffusion(path, device="cpu")
    assert "clip_skip 2" in caplog.text


@pytest.mark.parametrize("names", [("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")])
def test_the_autoencoders_attention_may_have_the_names_of_diffusers(
    names: tuple[str, ...], folders: Callable[[str], Path], tmp_path: Path
):
    checkpoint = checkpoint_of(folders("sd1"))
    for old, new in zip(("q", "k", "v", "proj_out"), names, strict=True):
        for name in [name for name in checkpoint if f".mid.attn_1.{old}." in name]:
            checkpoint[name.replace(f".{old}.", f".{new}.")] = checkpoint.pop(name).squeeze()
    assert not any(".mid.attn_1.q." in name for name in checkpoint), "control: the usual names are gone"
    found = load_single_file(written(checkpoint, tmp_path / "model.safetensors"), configs=folders("sd1"))
    assert same(weights(found), weights(opened(folders("sd1"))))


def test_the_prediction_type_is_set_in_a_given_scheduler(folders: Callable[[str], Path], tmp_path: Path):
    pipeline = opened(folders("sd1"))
    path = written(to_compvis(pipeline), tmp_path / "model.safetensors")
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    scheduler = architectures.new_component(
        {"_class_name": "DDIMScheduler"}
    ).config  # lists prediction_type among its defaults
    configs = small_configs("sd1") | {"scheduler": scheduler}
    found = [load_single_file(path, configs=configs, prediction_type=kind).scheduler for kind in (None, "v_prediction")]
    assert [type(one).__name__ for one in found] == ["DDIMScheduler"] * 2
    assert [one.config.prediction_type for one in found] == ["epsilon", "v_prediction"]
    with pytest.raises(ConfigError, match="'v_prediction'"):
        load_single_file(path, prediction_type="vprediction")


# -- what a merged file says of itself
# ------------------------------------------------------------------------------------


def used(model: Any) -> tuple[Any, ...]:
    """How the weights of a loaded model are used."""
    scheduler = model.pipeline.scheduler.config
    betas = (scheduler.beta_start, scheduler.beta_end, bool(scheduler.get("rescale_betas_zero_snr")))
    size = model.default_size
    return model.prediction_type, model.pipeline.vae.config.scaling_factor, *betas, size, model.alphas_cumprod.tolist()


def unusual_yaml(**params: Any) -> str:
    return json.dumps({"model": {"params": params}})


V = {"prediction_type": "v_prediction"}
EPS = {"prediction_type": "epsilon"}
SAMPLE = {"prediction_type": "sample"}
SOURCES: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, str], str, dict[str, Any]]] = {
    # family, marker tensors, metadata, .yaml beside, options of loading
    "told as v": ("sd1", {}, {}, "", V),
    "told as sample": ("sdxl", {}, {}, "", SAMPLE),
    "told as eps": ("sd2", {}, {}, "", EPS),
    "marked v, told as eps": ("sd1", {"v_pred": MARK}, {}, "", EPS),
    "sd-scripts say v, told as eps": ("sd1", {}, {"ss_v_parameterization": "True"}, "", EPS),
    "says eps, told as v": ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "", V),
    "two statements, told as v": ("sd1", {"v_pred": MARK}, {"modelspec.prediction_type": "epsilon"}, "", V),
    "yaml": ("sd1", {}, {}, unusual_yaml(parameterization="v", scale_factor=0.13, linear_end=0.02), {}),
    "yaml with one number": ("sdxl", {}, {}, unusual_yaml(scale_factor=0.5), {}),
    "yaml and told": ("sd2", {}, {}, unusual_yaml(linear_start=0.002), SAMPLE),
    "yaml with pure noise": ("sd1", {}, {}, unusual_yaml(parameterization="v", zero_snr=True), {}),
    "marks and a kept schedule": ("sdxl", {"v_pred": MARK, "ztsnr": MARK, "alphas_cumprod": MARK}, {}, "", {}),
    "size": ("sd1", {}, {"modelspec.resolution": "128x128"}, "", V),
}  # fmt: skip


FIRST = ("told as v", "marked v, told as eps", "yaml with one number", "yaml and told", "marks and a kept schedule")
"""A kind of statement each, over all families; the others are slow tests."""


def merge(model: Any, out: Path, **how: Any) -> Path:
    """Of an edit that changes one tensor."""
    from mu.edits.bank import Bank
    from mu.edits.edit import EditInfo
    from mu.edits.export import export
    from mu.edits.weights import WeightEdit

    shift = torch.ones_like(model.unet.conv_in.weight)
    edit = WeightEdit({"unet.conv_in.weight": shift}, EditInfo("test", ("cat",)))
    return export(Bank(model, [edit]), out, "compvis", **how)


def place(folder: Path) -> Path:
    folder.mkdir()
    small_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.usefixtures("small_published")
@pytest.mark.parametrize(
    ("case", "ending"),
    [
        *(pytest.param(case, ".safetensors", marks=() if case in FIRST else pytest.mark.slow) for case in SOURCES),
        ("yaml", ".ckpt"),
        *(pytest.param(case, ".ckpt", marks=pytest.mark.slow) for case in ("told as eps", "told as sample")),
    ],
)
def test_a_merged_file_is_used_as_its_source_was(
    case: str, ending: str, folders: Callable[[str], Path], tmp_path: Path
):
    family, marks, metadata, yaml, options = SOURCES[case]
    source, out = place(tmp_path / "in") / "model.safetensors", place(tmp_path / "out") / f"merged{ending}"
    checkpoint = checkpoint_of(folders(family))
    save_file(checkpoint, source)
    plain = load_diffusion(source, device="cpu")
    kept = {name: plain.alphas_cumprod.clone() if name == "alphas_cumprod" else mark for name, mark in marks.items()}
    save_file(checkpoint | kept, source, metadata)
    if yaml:
        source.with_suffix(".yaml").write_text(yaml)
    model = load_diffusion(source, device="cpu", **options)
    again = load_diffusion(merge(model, out), device="cpu")
    assert used(again) == used(model)
    silent = [plain] if case.startswith("two") else [plain, load_diffusion(source, device="cpu")]
    assert any(used(each) != used(model) for each in silent), "control: without a word, or without the option"
    assert again.pipeline.scheduler.__class__ is model.pipeline.scheduler.__class__
    assert (again.unet.conv_in.weight - model.unet.conv_in.weight).mean() == pytest.approx(1, abs=1e-3)


@pytest.mark.usefixtures("small_published")
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_folder_as_one_file_is_used_as_the_folder_or_refused(
    ending: str, folders: Callable[[str], Path], tmp_path: Path
):
    folder, out = tmp_path / "model", place(tmp_path / "out") / f"merged{ending}"
    pipeline = opened(folders("sd1"))

    def with_schedule(**settings: Any) -> Any:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **settings)
        pipeline.save_pretrained(folder)
        return load_diffusion(folder, device="cpu")

    with quiet_libraries():
        pipeline.vae.register_to_config(scaling_factor=0.7)
        model = with_schedule(beta_end=0.03)
        again = load_diffusion(merge(model, out), device="cpu")
        assert used(again) == used(model) and "scale_factor: 0.7" in out.with_suffix(".yaml").read_text()
        before = {file: file.read_bytes() for file in out.parent.iterdir() if file.is_file()}
        for settings in ({"beta_schedule": "linear"}, {"num_train_timesteps": 500}, {"beta_end": 1e-9}):
            with pytest.raises(ModelError, match="a single file cannot state") as caught:
                merge(with_schedule(**({"beta_schedule": "scaled_linear"} | settings)), out, overwrite=True)
            assert "\n" not in str(caught.value)
        pipeline.scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
        with pytest.raises(ModelError, match="pure noise"):
            merge(with_schedule(rescale_betas_zero_snr=True), out, overwrite=True)
    assert {file: file.read_bytes() for file in out.parent.iterdir() if file.is_file()} == before


@pytest.mark.usefixtures("small_published")
def test_a_description_beside_a_merged_file_belongs_to_it(folders: Callable[[str], Path], tmp_path: Path):
    source, out = place(tmp_path / "in") / "model.safetensors", place(tmp_path / "out") / "merged.safetensors"
    save_file(checkpoint_of(folders("sd1")), source)
    plain = load_diffusion(source, device="cpu")
    source.with_suffix(".yaml").write_text(unusual_yaml(scale_factor=0.5))
    unusual = load_diffusion(source, device="cpu")
    for ending in (".yaml", ".yml"):
        out.with_suffix(ending).write_text("mine: true\n")
        for model in (plain, unusual):
            with pytest.raises(OutputError, match=f"merged{ending}.*description"):
                merge(model, out, overwrite=True)
        assert out.with_suffix(ending).read_text() == "mine: true\n" and not out.exists()
        out.with_suffix(ending).unlink()
    merge(unusual, out)
    out.unlink()
    with pytest.raises(OutputError, match=r"merged\.yaml exists"):
        merge(plain, out)
    merge(plain, out, overwrite=True)
    assert not out.with_suffix(".yaml").exists() and used(load_diffusion(out, device="cpu")) == used(plain)


# -- tokenizers
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Hugging Face cache and without open_clip."""
    monkeypatch.setattr(single_file, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(single_file, "_from_open_clip", lambda *_: None)


def found_in(places: list[Path], folder: str = "tokenizer", pad: str = single_file.END) -> CLIPTokenizer:
    return single_file.find_tokenizer(places, folder, {}, pad)


def fake_open_clip(place: Path) -> None:
    """A package with the list of merges only; importing it fails."""
    package = place / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not to be imported')")
    letters = sorted(ByteLevel.alphabet())
    pairs = dict.fromkeys(["c a", "ca t</w>", *(f"{one} {other}" for one in letters for other in letters)])
    lines = ["#version: 0.2", *pairs]
    assert len(pairs) > 49_152
    with gzip.open(package / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8", compresslevel=1) as file:
        file.write("\n".join(lines))


def test_the_folder_beside_comes_first_then_the_cache_then_open_clip(
    tmp_path: Path, no_tokenizer: None, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ModelError, match=r"pip install open_clip_torch.*tokenizer/"):
        found_in([tmp_path])
    monkeypatch.undo()

    monkeypatch.setattr(single_file, "try_to_load_from_cache", lambda *_: None)
    fake_open_clip(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert len(found_in([tmp_path])) == 49_408

    cached = tmp_path / "snapshot"
    small_tokenizer().save_pretrained(cached)
    monkeypatch.setattr(single_file, "try_to_load_from_cache", lambda repo, name: str(cached / name))
    assert len(found_in([tmp_path])) == VOCABULARY
    assert found_in([tmp_path], pad="!").pad_token_id == 0

    (tmp_path / "tokenizer").mkdir()
    assert found_in([tmp_path]).model_max_length == 77, "an empty folder is none"
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert found_in([tmp_path]).model_max_length == 8


def test_the_vocabulary_from_open_clip_is_clips(tmp_path: Path, no_tokenizer: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setattr(single_file, "try_to_load_from_cache", lambda *_: None)
    fake_open_clip(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    tokenizer = found_in([tmp_path], "tokenizer_2", "!")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49_406, 49_407, 0)
    assert tokenizer("a cat").input_ids == [49_406, 320, 512 + 1, 49_407], (
        "'a</w>' is token 320 in CLIP; 'cat' is the second merge here"
    )
    assert tokenizer("a", padding="max_length").input_ids == [49_406, 320, 49_407] + [0] * 74
    assert "open_clip" not in sys.modules


def test_clips_own_tokens_where_open_clip_is_installed(monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    monkeypatch.setattr(single_file, "try_to_load_from_cache", lambda *_: None)
    tokenizer = found_in([])
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_folders_of_published_models_have_two_text_files(tmp_path: Path, no_tokenizer: None):
    """vocab.json and merges.txt, as transformers wrote them before there was tokenizer.json."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = small_tokenizer()
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, "pad_token": "!"})
    )
    found = found_in([tmp_path])
    assert found("a cat", padding="max_length").input_ids == tokenizer("a cat", padding="max_length").input_ids
    assert found_in([tmp_path], "tokenizer_2", "!").pad_token == "!"
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match="/tokenizer "):
        found_in([tmp_path])


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_refused(tmp_path: Path, no_tokenizer: None):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert single_file.find_tokenizer([tmp_path], "tokenizer", {"vocab_size": VOCABULARY}, "!")
    with pytest.raises(ModelError, match=f"{VOCABULARY} .*{VOCABULARY - 1}"):
        single_file.find_tokenizer([tmp_path], "tokenizer", {"vocab_size": VOCABULARY - 1}, "!")


# -- refusals
# -------------------------------------------------------------------------------------------------------------


def changed(checkpoint: Tensors, change: str) -> Tensors:
    unet = {key: tensor for key, tensor in checkpoint.items() if key.startswith(compvis.UNET)}
    conv_in, conv_out = f"{compvis.UNET}input_blocks.0.0.weight", f"{compvis.UNET}out.2.bias"
    return {
        "nothing": checkpoint,
        "no unet": {"lora_unet_down.lora_down.weight": torch.ones(1)},
        "no text encoder": unet,
        "refiner": unet | {"conditioner.embedders.0.model.ln_final.weight": torch.ones(1)},
        "edm": checkpoint | {"edm_mean": torch.ones(1)},
        "inpainting": checkpoint | {conv_in: torch.ones(8, 9, 3, 3)},
        "missing": {key: tensor for key, tensor in checkpoint.items() if key != conv_out},
        "more": checkpoint | {f"{compvis.UNET}input_blocks.12.0.weight": torch.ones(1)},
        "more of the autoencoder": checkpoint | {f"{compvis.VAE}encoder.down.4.block.0.norm1.weight": torch.ones(1)},
        "more of the text encoder": checkpoint | {f"{compvis.CLIP}encoder.layers.2.mlp.fc1.bias": torch.ones(1)},
    }[change]


REFUSED = {
    "no unet": r"model\.ckpt.*lora_unet_down\.lora_down\.weight",
    "no text encoder": "text encoder",
    "refiner": "SDXL refiner",
    "edm": "EDM",
    "inpainting": r"unet .*input_blocks\.0\.0\.weight.* 8x9x3x3.* 8x4x3x3.*`configs`",
    "missing": r"unet .*\(model\.diffusion_model\.out\.2\.bias\)",
    "more": r"\bsd1\b.*model\.diffusion_model\.input_blocks\.12\.0\.weight",
    "more of the autoencoder": r"\bsd1\b.*first_stage_model\.encoder\.down\.4",
    "more of the text encoder": r"\bsd1\b.*cond_stage_model.*layers\.2\.mlp\.fc1\.bias",
}


@pytest.mark.parametrize("change", REFUSED)
def test_other_files_are_refused_in_one_line(change: str, folders: Callable[[str], Path], tmp_path: Path):
    checkpoint = checkpoint_of(folders("sd1"))
    assert load_single_file(written(changed(checkpoint, "nothing"), tmp_path / "good.ckpt"), configs=folders("sd1"))
    with pytest.raises(ModelError, match=REFUSED[change]) as caught:
        load_single_file(written(changed(checkpoint, change), tmp_path / "model.ckpt"), configs=folders("sd1"))
    assert "\n" not in str(caught.value)


def test_configs_that_cannot_be_used_are_refused(folders: Callable[[str], Path], tmp_path: Path):
    path = written(checkpoint_of(folders("sd1")), tmp_path / "model.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="/empty "):
        load_single_file(path, configs=tmp_path / "empty")
    (tmp_path / "bad" / "unet").mkdir(parents=True)
    for text, told in (("{", "not JSON"), ("[" * 100_000, "nested too deep"), ("[1]", "not a config")):
        (tmp_path / "bad" / "unet" / "config.json").write_text(text)
        with pytest.raises(ModelError, match=rf"/bad/unet/config\.json is {told}"):
            load_single_file(path, configs=tmp_path / "bad")
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"unet .*NoSuchModel"):
        load_single_file(path, configs=small_configs("sd1") | {"unet": {"_class_name": "NoSuchModel"}})


def test_adapters_are_merged_or_removed_before_export(folders: Callable[[str], Path]):
    pipeline = opened(folders("sd1"))
    clean = to_compvis(pipeline)
    pipeline.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))
    with pytest.raises(ModelError, match=r"to_q\.lora_A"):
        to_compvis(pipeline)
    pipeline.unload_lora_weights()
    assert same(to_compvis(pipeline), clean)
