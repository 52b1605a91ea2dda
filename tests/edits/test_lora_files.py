"""LoRA files of other tools: the shift is that of diffusers' and PEFT's own loaders, and what is left out is an
error."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mu.core.errors import DataError, EditError
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo, shifted
from mu.edits.export import export
from mu.edits.files import open_edit
from mu.edits.gates import FacilitatedTransport
from mu.edits.lora_names import parameter_of
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.protection import leaks
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.models.formats import architectures, compvis
from mu.models.quiet import quiet_libraries

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2"
UNET = [f"{ATTENTION}.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")]
TEXT = [f"encoder.layers.0.self_attn.{layer}_proj" for layer in ("q", "k", "v", "out")]
RANK, ALPHA = 2, 3.0
Named = dict[str, Tensor]


def factors(module: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    out, *inner = module.weight.shape  # type: ignore[union-attr,misc]
    return torch.randn(RANK, *inner, generator=g) * 0.1, torch.randn(
        out, RANK, *[1] * (len(inner) - 1), generator=g
    ) * 0.1


def of_layers(model: DiffusionModel, component: str, layers: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    place = model.components[component]
    level = "text_model." if component == "text_encoder_2" else ""  # as transformers has it
    return {layer: factors(place.get_submodule(level + layer), k) for k, layer in enumerate(layers)}


def spelled(layers: Mapping[str, tuple[Tensor, Tensor]], name: Callable[[str], str], down: str, up: str) -> Named:
    return {
        f"{name(layer)}{end}": part
        for layer, pair in layers.items()
        for end, part in zip((down, up), pair, strict=True)
    }


def kohya(layers: Mapping[str, tuple[Tensor, Tensor]], prefix: str) -> Named:
    def name(layer: str) -> str:
        return prefix + layer.replace(".", "_")

    alphas = {f"{name(layer)}.alpha": torch.tensor(ALPHA) for layer in layers}
    return spelled(layers, name, ".lora_down.weight", ".lora_up.weight") | alphas


def old_unet(layer: str) -> str:
    """``unet.….attn2.processor.to_out`` of the first trainings; the ending goes on with ``_lora``."""
    return "unet." + layer.replace("attn2.", "attn2.processor.").removesuffix(".0")


def old_text(layer: str) -> str:
    head, _, last = layer.rpartition(".")
    return f"text_encoder.text_model.{head}.to_{last.removesuffix('_proj')}"


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer


PEFT, DOTTED = (".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight")
LINEAR = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
PROCESSOR = ("_lora.down.weight", "_lora.up.weight")
SPELLINGS: dict[str, Callable[[Any, Any], Named]] = {
    "kohya": lambda unet, text: kohya(unet, "lora_unet_") | kohya(text, "lora_te_text_model_"),
    "diffusers of today": lambda unet, text: (
        spelled(unet, prefixed("unet."), *PEFT) | spelled(text, prefixed("text_encoder."), *PEFT)
    ),
    "the level text_model": lambda unet, text: (
        spelled(unet, prefixed("unet."), *PEFT) | spelled(text, prefixed("text_encoder.text_model."), *PEFT)
    ),
    "diffusers' training scripts": lambda unet, text: (
        spelled(unet, prefixed("unet."), *DOTTED) | spelled(text, prefixed("text_encoder."), *LINEAR)
    ),
    "linear layers of both": lambda unet, text: (
        spelled(unet, prefixed("unet."), *PEFT) | spelled(text, prefixed("text_encoder.text_model."), *LINEAR)
    ),
    "attention processors": lambda unet, text: (
        spelled(unet, old_unet, *PROCESSOR) | spelled(text, old_text, *PROCESSOR)
    ),
}


@contextmanager
def own_pipeline(folder: Path) -> Iterator[Any]:
    with quiet_libraries():
        yield StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)


def state_of(pipe: Any) -> Named:
    parts = ("unet", "text_encoder", "text_encoder_2")
    modules = {part: getattr(pipe, part, None) for part in parts}
    return {f"{part}.{k}": v.clone() for part, m in modules.items() if m is not None for k, v in m.state_dict().items()}


def fused(pipe: Any, path: Path) -> Named:
    """Parameter -> shift, as diffusers' own loader reads ``path``."""
    with quiet_libraries():
        before = state_of(pipe)
        pipe.load_lora_weights(path)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        after = state_of(pipe)
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def assert_equal_shifts(path: Path, wanted: Named, count: int) -> None:
    found = dict(open_edit(path).deltas())
    assert found.keys() == wanted.keys() and len(found) == count
    for name, shift in wanted.items():
        assert torch.allclose(found[name].reshape(shift.shape), shift, atol=1e-6), name
        assert shift.abs().max() > 1e-3, "control: a wrong scale would show"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_shift_is_that_of_diffusers(spelling: str, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path) -> None:
    layers = of_layers(tiny, "unet", UNET), of_layers(tiny, "text_encoder", TEXT)
    path = tmp_path / "lora.safetensors"
    save_file(SPELLINGS[spelling](*layers), path)
    with own_pipeline(tiny_folder) as pipe:
        assert_equal_shifts(path, fused(pipe, path), 8)
    with open_edit(path).applied(tiny):
        pass


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_both_text_encoders_of_sdxl(form: str, tiny_xl: DiffusionModel, tmp_path: Path) -> None:
    unet = of_layers(tiny_xl, "unet", [layer for layer in UNET if layer.endswith(("to_k", "to_v"))])
    first, second = (of_layers(tiny_xl, f"text_encoder{n}", TEXT) for n in ("", "_2"))
    tensors = {
        "kohya": kohya(unet, "lora_unet_")
        | kohya(first, "lora_te1_text_model_")
        | kohya(second, "lora_te2_text_model_"),
        "peft": spelled(unet, prefixed("unet."), *PEFT)
        | spelled(first, prefixed("text_encoder.text_model."), *PEFT)
        | spelled(second, prefixed("text_encoder_2.text_model."), *PEFT),
    }[form]
    save_file(tensors, tmp_path / "lora.safetensors")
    assert_equal_shifts(
        tmp_path / "lora.safetensors", fused(copy.deepcopy(tiny_xl.pipeline), tmp_path / "lora.safetensors"), 10
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 5},
    "rslora": {"lora_alpha": 5, "use_rslora": True},
    "patterns": {"lora_alpha": 5, "alpha_pattern": {f"{ATTENTION}.to_k": 1, "to_v": 7}},
    "anchored": {"lora_alpha": 5, "alpha_pattern": {f"^{ATTENTION}.to_k": 1, "^to_v": 7}},
    "ranks": {"r": 4, "lora_alpha": 5, "rank_pattern": {"attn2.to_(q|k|v|out.0)": RANK}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_scale_is_that_of_the_header(name: str, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path) -> None:
    unet, path = of_layers(tiny, "unet", UNET), tmp_path / "lora.safetensors"
    settings = {"r": RANK, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"], **SETTINGS[name]}
    told = {f"unet.{key}": value for key, value in settings.items()}
    save_file(
        spelled(unet, prefixed("unet."), *PEFT), path, {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    )
    with own_pipeline(tiny_folder) as pipe:
        wanted = fused(pipe, path)
    assert_equal_shifts(path, wanted, 4)
    save_file(spelled(unet, prefixed("unet."), *PEFT), path)
    plain = dict(open_edit(path).deltas())
    assert not all(torch.allclose(plain[key], wanted[key], atol=1e-6) for key in plain), (
        "control: the header is what tells"
    )


def shift_of(plain: nn.Module, adapted: nn.Module) -> Named:
    before, after = plain.state_dict(), adapted.state_dict()
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"to_k": 3}, "alpha_pattern": {"to_k": 2}}]
)
@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_folder_of_peft(options: dict[str, Any], where: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, lora_alpha=5, target_modules=["to_k", "to_v", "conv_in"], init_lora_weights=False, **options
    )
    torch.manual_seed(0)
    get_peft_model(copy.deepcopy(tiny.unet), config).save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny.unet), tmp_path / "adapter").merge_and_unload()
    wanted = {f"unet.{name}": shift for name, shift in shift_of(tiny.unet, merged).items()}
    path = tmp_path / "adapter" / ("adapter_model.safetensors" if where == "file" else "")
    assert_equal_shifts(path, wanted, len(wanted))
    assert len(wanted) > 5
    assert open_edit(path).concept() == "adapter" and open_edit(path).info.concepts == ()


@pytest.mark.parametrize(
    ("model", "layers"),
    [("canvas-clip", ["q_proj", "fc1", "text_projection"]), ("canvas-vlm", ["q_proj", "down_proj", "linear_1"])],
)
def test_peft_adapters_of_a_clip_and_of_a_llava(model: str, layers: list[str], tmp_path: Path) -> None:
    opened: Any = load(model, device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=5, target_modules=layers, init_lora_weights=False)
    get_peft_model(copy.deepcopy(opened.model), config).save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(copy.deepcopy(opened.model), tmp_path).merge_and_unload()
    wanted = shift_of(opened.model, merged)
    edit = open_edit(tmp_path)
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    with_edit = dict(edit.deltas())
    assert len(with_edit) == len(wanted) > 3
    edit.check(opened)
    with shifted(opened, with_edit):
        after = opened.model.state_dict()
        for name, shift in wanted.items():
            assert torch.allclose(after[name] - before[name], shift, atol=1e-6), name


K = f"{ATTENTION}.to_k"


@pytest.mark.parametrize(
    "name",
    [
        K,
        f"base_model.model.{K}",
        f"unet.base_model.model.{K}",
        f"base_model.model.unet.{K}",
        f"diffusion_model.{K}",
        f"model.diffusion_model.{K}",
        "lora_unet_" + K.replace(".", "_"),
        "lycoris_" + K.replace(".", "_"),
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",
        "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
        f"unet.{ATTENTION}.processor.to_k",
    ],
)
def test_prefixes_of_the_unet(name: str) -> None:
    assert parameter_of(name) == f"unet.{K}.weight"


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_{}",
        "lora_te1_text_model_{}",
        "lora_te_0_transformer_text_model_{}",
        "lora_te_transformer_text_model_{}",
        "text_encoder.{}",
        "text_encoder.text_model.{}",
        "text_model.{}",
        "{}",
        "base_model.model.text_model.{}",
        "te1.text_model.{}",
        "text_encoders.clip_l.transformer.text_model.{}",
    ],
)
def test_prefixes_of_the_text_encoder(name: str) -> None:
    layer = TEXT[0].replace(".", "_") if name.startswith("lora_") else TEXT[0]
    assert parameter_of(name.format(layer)) == f"text_encoder.{TEXT[0]}.weight"


@pytest.mark.parametrize(
    "name",
    [
        "lora_te2_text_model_{}",
        "text_encoder_2.{}",
        "text_encoder_2.text_model.{}",
        "te2.text_model.{}",
        "clip_g.transformer.text_model.{}",
    ],
)
def test_prefixes_of_the_second_text_encoder(name: str) -> None:
    layer = TEXT[0].replace(".", "_") if name.startswith("lora_") else TEXT[0]
    assert parameter_of(name.format(layer)) == f"text_encoder_2.text_model.{TEXT[0]}.weight"
    assert parameter_of("lora_te2_text_projection") == "text_encoder_2.text_projection.weight"


@pytest.mark.parametrize(
    "name",
    [
        "lora_te3_encoder_block_0",
        "transformer.blocks.0.attn.to_k",
        f"unet.{K}.more",
        "vae.decoder.conv_in",
        "lora_unet_x",
        "conv_inn",
    ],
)
def test_names_of_no_layer(name: str) -> None:
    assert parameter_of(name) == ""


def test_the_names_of_sgm_mean_one_layer_each() -> None:
    tables = {
        family: compvis.kohya_module_names(getattr(architectures, family)()["unet"])
        for family in ("stable_diffusion_1", "stable_diffusion_2", "stable_diffusion_xl")
    }
    for names in tables.values():
        for module, place in names.items():
            assert parameter_of("lora_unet_" + place.replace(".", "_")) == f"unet.{module}.weight"
    assert set(tables["stable_diffusion_1"].values()) - set(tables["stable_diffusion_xl"].values()), (
        "control: they differ"
    )


def test_sgm_names_of_sd1_are_those_of_diffusers() -> None:
    class Config:
        layers_per_block = 2

    names = compvis.kohya_module_names(architectures.stable_diffusion_1()["unet"])
    places = {
        "lora_unet_" + place.replace(".", "_"): module for module, place in names.items() if "attentions" in module
    }
    state = {f"{place}.alpha": torch.tensor(float(k)) for k, place in enumerate(places)}
    theirs = _maybe_map_sgm_blocks_to_diffusers(dict(state), Config())
    own = {float(mark): name.removesuffix(".alpha") for name, mark in theirs.items()}
    for k, place in enumerate(places):
        parameter = parameter_of(place)
        # diffusers renames the blocks here and the rest of the name later
        named = own[float(k)].replace("input_blocks", "down_blocks").replace("output_blocks", "up_blocks")
        ours = parameter.removeprefix("unet.").removesuffix(".weight").replace(".", "_")
        assert named.replace("middle_block", "mid_block") == f"lora_unet_{ours}"
    assert len(places) > 100


# -- what is left out is an error
# ------------------------------------------------------------------------------------------


def plain_lora() -> Named:
    layer = f"unet.{K}"
    return {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}


NORM = "lora_unet_mid_block_resnets_0_norm1"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{NORM}.w_norm", "LyCORIS norm"),
        (f"{NORM}.b_norm", "LyCORIS norm"),
        (f"unet.{K}.scalar", "LyCORIS scalar"),
        (f"unet.{K}.lora_B.bias", "LoRA with biases"),
        (f"unet.{K}.lora_up.bias", "LoRA with biases"),
        ("bundle_emb.sks.emb_params", "embedding"),
        (f"unet.{K}.dora_scale", "DoRA"),
        (f"unet.{K}.diff_b", "full-rank"),
        (f"unet.{K}.lora_magnitude_vector.default.weight", "DoRA"),
        (f"unet.{ATTENTION}.to_v.a1.weight", "GLoRA"),
        (f"unet.{ATTENTION}.to_v.lora_down.default.weight", "LoRA of unknown spelling"),
        ("some.other.tensor", "part of a LoRA"),
        (f"unet.{K}.weight", "part of a LoRA"),
        ("unet.mid_block.nothing.lora_A.weight", "names no layer"),
        (f"{K}.lora_A.weight", "twice"),
        (f"unet.{K}.lora_A.other.weight", "twice"),
        (f"unet.{ATTENTION}.to_v.lora_A.weight", "not both factors"),
    ],
)
def test_every_tensor_is_used_or_named(key: str, message: str, tmp_path: Path) -> None:
    save_file(plain_lora(), tmp_path / "lora.safetensors")
    assert open_edit(tmp_path / "lora.safetensors").parameters == [f"unet.{K}.weight"]  # control
    save_file({**plain_lora(), key: torch.ones(2, 4)}, tmp_path / "lora.safetensors")
    with pytest.raises(EditError, match=message) as caught:
        open_edit(tmp_path / "lora.safetensors")
    assert ("\n" not in str(caught.value) and K.split(".")[0] in str(caught.value)) or key in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("lora_unet_mid_block_x.a1.weight", "lora_unet_mid_block_x.b1.weight"), "is a GLoRA file"),
        ((f"unet.{K}.lora_down.default.weight", f"unet.{K}.lora_up.default.weight"), "is a LoRA of unknown spelling"),
        ((f"unet.{K}.lora_A", f"unet.{K}.lora_B"), "is a LoRA of unknown spelling"),
        ((f"unet.{K}.weight",), "mu import"),
    ],
)
def test_a_file_of_another_kind_is_not_told_as_weights(keys: tuple[str, ...], message: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(2, 4) for key in keys}, tmp_path / "lora.safetensors")
    with pytest.raises(EditError, match=message):
        open_edit(tmp_path / "lora.safetensors")


def metadata_of(**settings: Any) -> dict[str, str]:
    return {
        "lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in {"r": 2, "lora_alpha": 2, **settings}.items()})
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"network_scale": "2"}, "network_scale"),
        (metadata_of(use_dora=True), "use_dora"),
        (metadata_of(bias="all"), "bias"),
        (metadata_of(peft_type="LOHA"), "peft_type"),
        (metadata_of(init_lora_weights="pissa"), "init_lora_weights"),
        (metadata_of(novelty=[1]), "novelty"),
        (metadata_of(r=3), "has rank 2"),
        (metadata_of(lora_alpha="x"), "lora_alpha"),
        (metadata_of(lora_alpha=0), "lora_alpha 0"),
        (metadata_of(alpha_pattern={"(": 1}), "alpha_pattern"),
        (metadata_of(alpha_pattern={r"(([a-z_0-9]+\.?)+)+X": 1}), "alpha_pattern.*years"),
        (metadata_of(rank_pattern={".*.*.*.*.*X": 1}), "rank_pattern.*years"),
        (metadata_of(alpha_pattern={"a{99999999999999}": 1}), "alpha_pattern"),
        (metadata_of(alpha_pattern={"(" * 9999 + ")" * 9999: 1}), "alpha_pattern"),
        ({"lora_adapter_metadata": "{"}, "JSON"),
        ({"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata of 'lora' is nested too deep"),
        ({"lora_adapter_metadata": '{"unet.r": ' + "7" * 5000 + "}"}, "a number of 5000 digits"),
        ({"lora_adapter_metadata": '{"transformer.r": 2}'}, "transformer.r"),
        ({"mu_concepts": "{}"}, "mu_concepts"),
        ({"alpha": "x"}, "alpha"),
    ],
)
def test_every_metadata_key_is_used_or_named(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    harmless = {
        "format": "pt",
        "ss_network_dim": "2",
        "modelspec.title": "x",
        **metadata_of(target_modules=["to_k"], bias="none", use_dora=False),
    }
    save_file(plain_lora(), tmp_path / "lora.safetensors", harmless)
    assert open_edit(tmp_path / "lora.safetensors").parameters  # control
    save_file(plain_lora(), tmp_path / "lora.safetensors", metadata)
    with pytest.raises(EditError, match=message) as caught:
        open_edit(tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1.0), (torch.tensor(6.0), 3.0), (torch.tensor([6.0]), 3.0), (torch.tensor(0.0), 1.0)]
)
def test_alpha_of_a_layer_goes_before_the_header(alpha: Tensor | None, scale: float, tmp_path: Path) -> None:
    given = {} if alpha is None else {f"unet.{K}.alpha": alpha}
    save_file({**plain_lora(), **given}, tmp_path / "lora.safetensors", metadata_of() if alpha is not None else None)
    ((_, shift),) = open_edit(tmp_path / "lora.safetensors").deltas()
    assert torch.equal(shift, torch.full((4, 4), 2 * scale))


def test_alpha_of_the_header_of_an_spm_file(tmp_path: Path) -> None:
    save_file(plain_lora(), tmp_path / "x.safetensors", {"prompts": "snoopy", "rank": "2", "alpha": "1.0"})
    edit = open_edit(tmp_path / "x.safetensors")
    ((_, shift),) = edit.deltas()
    assert torch.equal(shift, torch.ones(4, 4)) and edit.info.concepts == ("snoopy",)


def test_factors_in_float8_are_those_numbers(tiny: DiffusionModel, tmp_path: Path) -> None:
    layers = of_layers(tiny, "unet", UNET)
    named = spelled(layers, lambda layer: f"unet.{layer}", ".lora_A.weight", ".lora_B.weight")
    kinds = {"A": torch.float8_e4m3fn, "B": torch.float8_e5m2}
    narrow = {name: tensor.to(kinds[name[-8]]) for name, tensor in named.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    save_file({name: tensor.float() for name, tensor in narrow.items()}, tmp_path / "wide.safetensors")
    edit, wide = (open_edit(tmp_path / f"{name}.safetensors") for name in ("narrow", "wide"))
    assert all(torch.equal(edit.delta(name), wide.delta(name)) for name in wide.parameters)
    edit.save(tmp_path / "own.safetensors")
    export(Bank(tiny, [edit]), tmp_path / "kohya.safetensors", "kohya")
    for name in ("own", "kohya"):
        again = open_edit(tmp_path / f"{name}.safetensors")
        assert all(torch.allclose(again.delta(each), wide.delta(each)) for each in wide.parameters)
    narrow[next(iter(narrow))].view(torch.uint8)[0, 0] = 0x7F  # nan
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(EditError, match="not finite"):
        open_edit(tmp_path / "narrow.safetensors")


def test_factors_that_are_no_numbers(tmp_path: Path) -> None:
    for bad, message in (
        (torch.ones(4, 2, dtype=torch.int8), "int8"),
        (torch.full((4, 2), float("nan")), "not finite in unet.*lora_B"),
    ):
        save_file({**plain_lora(), f"unet.{K}.lora_B.weight": bad}, tmp_path / "lora.safetensors")
        with pytest.raises(EditError, match=message):
            open_edit(tmp_path / "lora.safetensors")
    for size, fits in ((3e38, False), (1e18, True)):
        save_file({name: factor * size for name, factor in plain_lora().items()}, tmp_path / "lora.safetensors")
        with nullcontext() if fits else pytest.raises(EditError, match="overflow"):
            assert open_edit(tmp_path / "lora.safetensors").delta(f"unet.{K}.weight").isfinite().all()
    edit = LowRankEdit({f"unet.{K}.weight": Factors(torch.ones(2, 4), torch.ones(4, 2), 2.0)}, EditInfo("test", ("a",)))
    edit.save(tmp_path / "own.safetensors")
    assert open_edit(tmp_path / "own.safetensors").parameters  # control
    with (tmp_path / "own.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\x7f")  # the last number is now NaN
    assert any(not value.isfinite().all() for value in load_file(tmp_path / "own.safetensors").values())
    with pytest.raises(EditError, match="not finite"):
        open_edit(tmp_path / "own.safetensors")


# -- files and folders
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"]
)
def test_folders_of_other_tools(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "monet"
    folder.mkdir()
    (torch.save if name.endswith(".bin") else save_file)(plain_lora(), folder / name)
    for path in (folder, folder / name):
        edit = open_edit(path)
        assert edit.parameters == [f"unet.{K}.weight"] and edit.concept() == "monet"


def test_a_folder_with_two_loras_asks_for_one(tmp_path: Path) -> None:
    save_file(plain_lora(), tmp_path / "adapter_model.safetensors")
    torch.save(plain_lora(), tmp_path / "adapter_model.bin")
    assert open_edit(tmp_path).parameters == [f"unet.{K}.weight"], "control: the same adapter in another format"
    save_file(plain_lora(), tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(EditError, match=r"adapter_model.* and pytorch_lora_weights\.safetensors"):
        open_edit(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "Git LFS pointer"),
        ("x.safetensors", b"\n<!DOCTYPE html><html>", "HTML page"),
        ("x.bin", b"<html><body>", "HTML page"),
        ("x.bin", b"\x80\x02}q\x00.", "from before 1.6"),
        ("x.safetensors", b"", "is empty"),
    ],
)
def test_what_is_no_weight_file_is_told_by_its_kind(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EditError, match=message):
        open_edit(tmp_path / name)


def test_a_pickle_that_holds_a_program_is_not_run(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({**plain_lora(), "more": Program()}, tmp_path / "lora.pt")
    assert open_edit(tmp_path / "lora.pt").parameters == [f"unet.{K}.weight"]
    assert not (tmp_path / "ran").exists()


# -- no concept
# ------------------------------------------------------------------------------------------------------------


def two_loras(model: DiffusionModel, folder: Path) -> list[Path]:
    paths = []
    for k, name in enumerate(("van-gogh", "monet")):
        path = folder / name / "pytorch_lora_weights.safetensors"
        path.parent.mkdir()
        save_file(spelled({UNET[k]: factors(model.unet.get_submodule(UNET[k]), k)}, prefixed("unet."), *PEFT), path)
        paths.append(path)
    return paths


def test_two_loras_without_a_concept_go_together(tiny: DiffusionModel, tmp_path: Path) -> None:
    edits = [open_edit(path) for path in two_loras(tiny, tmp_path)]
    bank = Bank(tiny, edits)
    assert list(bank.edits) == ["van-gogh", "monet"] and not any(edit.info.concepts for edit in edits)
    assert all(leak.share is None and not leak.listed for leak in leaks(bank))
    both = open_edit(export(bank, tmp_path / "both.safetensors", "kohya"))
    assert set(both.parameters) == {name for edit in edits for name in edit.parameters} and both.info.concepts == ()
    with pytest.raises(DataError, match="concepts"), Bank(tiny, edits).applied(gate=FacilitatedTransport()):
        pass


def test_the_name_survives_mus_own_format(tiny: DiffusionModel, tmp_path: Path) -> None:
    edit = open_edit(two_loras(tiny, tmp_path)[0])
    edit.save(tmp_path / "edit.safetensors")
    again = open_edit(tmp_path / "edit.safetensors")
    assert again.concept() == "van-gogh" and again.info == edit.info
    assert all(torch.equal(shift, dict(again.deltas())[name]) for name, shift in edit.deltas())


# -- writing
# ---------------------------------------------------------------------------------------------------------------


def test_the_first_text_encoder_is_te1_where_there_are_two(
    tiny: DiffusionModel, tiny_xl: DiffusionModel, tmp_path: Path
) -> None:
    for model, prefix in ((tiny, "lora_te_"), (tiny_xl, "lora_te1_")):
        down, up = factors(model.components["text_encoder"].get_submodule(TEXT[0]), 0)
        edit = LowRankEdit({f"text_encoder.{TEXT[0]}.weight": Factors(down, up, 1.0)}, EditInfo("test", ("a",)))
        path = export(Bank(model, [edit]), tmp_path / f"{prefix}.safetensors", "kohya")
        assert {key.split("text_model")[0] for key in load_file(path)} == {prefix}
        assert open_edit(path).parameters == edit.parameters
