"""Edits in other tools' formats: loaded by the tools themselves, they act as the edit does here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, LlavaForConditionalGeneration

from mu.core.errors import EditError, ModelError, OutputError
from mu.data.canvas import rendered_pairs
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.export import FORMATS, _description, export
from mu.edits.files import open_edit
from mu.edits.lora_files import kohya_tensors, spm_tensors
from mu.edits.lora_names import parameter_of
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.own_folder import WRITTEN, check_own
from mu.edits.tensor_file import write_tensors
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.models.diffusion.stable_diffusion import StableDiffusion
from mu.models.formats import architectures, compvis
from mu.models.formats.checkpoint import read_state_dict
from mu.models.formats.single_file import DESCRIPTION, description_of, load_single_file
from mu.models.parameters import find_parameter
from mu.models.quiet import quiet_libraries

# all four: diffusers tells the kind of a text encoder's LoRA by its out_proj
TEXT = [f"text_encoder.encoder.layers.0.self_attn.{name}_proj.weight" for name in ("q", "k", "v", "out")]


def adapters(
    model: DiffusionModel, concept: str, rank: int = 1, alpha: float = 1.0, text: bool = False, seed: int = 0
) -> LowRankEdit:
    """On every transformer layer, as SPM; large enough that a wrong scale shows."""
    g = torch.Generator().manual_seed(seed)
    names = [*model.layers("transformer"), *(TEXT if text else [])]
    factors = {}
    for name in names:
        out, *inner = find_parameter(model, name).shape
        up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=g)
        factors[name] = Factors(torch.randn(rank, *inner, generator=g) * 0.05, up * 0.05, alpha)
    return LowRankEdit(factors, EditInfo("test", (concept,)))


def images(pipe: StableDiffusionPipeline, **options: object) -> Tensor:
    """Latents in fact: decoding clamps, and would hide differences."""
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent", **options}
    return pipe("a star in neon style", generator=torch.Generator().manual_seed(1), **options).images


def own_pipeline(folder: Path) -> StableDiffusionPipeline:
    with quiet_libraries():
        return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


@pytest.mark.parametrize("name", ["canvas-clip", "canvas-vlm"])
def test_transformers_itself_loads_the_merged_clip_or_llava(name: str, tmp_path: Path, snapshot: Callable) -> None:
    model: Any = load(name, device="cpu")
    tensor = "vision_model.encoder.layers.0.mlp.fc2.weight"
    shift = torch.randn(find_parameter(model, tensor).shape, generator=torch.Generator().manual_seed(0)) * 0.1
    edit, base = WeightEdit({tensor: shift}, EditInfo("test", ("Ada Stone",))), snapshot(model)
    out = export(Bank(model, [edit]), tmp_path / "merged", "transformers", strengths=[0.5])
    assert snapshot(model) == base

    kind = CLIPModel if name == "canvas-clip" else LlavaForConditionalGeneration
    with quiet_libraries():
        own = kind.from_pretrained(out, local_files_only=True).state_dict()
    before = model.model.state_dict()
    changed = {key for key, value in own.items() if not torch.equal(value, before[key])}
    assert len(changed) == 1, "control: the edit is in it"
    (key,) = changed
    written = (before[key] + 0.5 * shift).half().float()  # the embedded models are in half precision, and stay so
    assert torch.equal(own[key].float(), written)
    rounded = WeightEdit({tensor: written - before[key]}, EditInfo("test", ("Ada Stone",)))
    assert own.keys() == before.keys()

    again: Any = load(out, device="cpu")
    images = [pair.image() for pair in rendered_pairs(2, 1)]
    with rounded.applied(model):
        if name == "canvas-clip":
            assert torch.allclose(again.zero_shot(images, ["a star"]), model.zero_shot(images, ["a star"]), atol=1e-4)
        else:
            assert again.answer(images, ["Who is this?"] * 2) == model.answer(images, ["Who is this?"] * 2)


def test_each_kind_of_model_has_its_formats(tiny: DiffusionModel, tmp_path: Path) -> None:
    clip = load("canvas-clip", device="cpu")
    for model, forms, other in (
        (tiny, {"transformers"}, "diffusers"),
        (clip, set(FORMATS) - {"transformers"}, "transformers"),
    ):
        for form in forms:
            with pytest.raises(EditError, match=rf"\b{form}\b.*\b{other}\b"):
                export(Bank(model), tmp_path / "x", form)
    assert not list(tmp_path.iterdir())
    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match=f"{tmp_path.name}/x.*transformers"):
        export(Bank(clip), tmp_path / "x", "transformers", overwrite=True)


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize(("rank", "alpha", "text"), [(1, 1.0, False), (4, 2.0, False), (2, 1.0, True)])
def test_diffusers_itself_loads_the_lora(
    form: str, rank: int, alpha: float, text: bool, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path
) -> None:
    edit = adapters(tiny, "neon", rank, alpha, text)
    path = export(Bank(tiny, [edit]), tmp_path / "lora.safetensors", form)
    pipe = own_pipeline(tiny_folder)
    plain = images(pipe)
    pipe.load_lora_weights(path)
    loaded = images(pipe)
    with edit.applied(tiny):
        ours = images(tiny.pipeline)
    assert torch.allclose(loaded, ours, atol=1e-5)
    assert (loaded - plain).abs().max() > 1e-2  # control
    if text:  # control: the text encoder's part was loaded too
        without = LowRankEdit({n: f for n, f in edit.factors.items() if n not in TEXT}, edit.info)
        with without.applied(tiny):
            assert not torch.allclose(loaded, images(tiny.pipeline), atol=1e-5)


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_several_edits_become_one_lora(form: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    bank = Bank(
        tiny, [adapters(tiny, "a", 1, 1.0), adapters(tiny, "b", 3, 2.0, seed=1), adapters(tiny, "c", 2, seed=2)]
    )
    bank.restore("c")
    with bank.applied():
        wanted = images(tiny.pipeline)
    back = open_edit(export(bank, tmp_path / "lora.safetensors", form))
    with back.applied(tiny):
        assert torch.allclose(images(tiny.pipeline), wanted, atol=1e-5)
    assert back.info.concepts == ("a", "b")
    bank.erase("c")
    with bank.applied():
        assert not torch.allclose(images(tiny.pipeline), wanted, atol=1e-3)


def test_an_spm_file_is_a_lora_too(tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path) -> None:
    edit = adapters(tiny, "van gogh")
    tensors, metadata = spm_tensors(edit)
    assert metadata.items() >= {"prompts": "van gogh", "rank": "1", "alpha": "1.0"}.items()
    assert all(key.startswith("lora_unet_") for key in tensors)
    write_tensors(tmp_path / "spm_last.safetensors", tensors, metadata)
    pipe = own_pipeline(tiny_folder)
    plain = images(pipe)
    pipe.load_lora_weights(tmp_path / "spm_last.safetensors")
    with edit.applied(tiny):
        ours = images(tiny.pipeline)
    assert torch.allclose(images(pipe), ours, atol=1e-5)
    assert not torch.allclose(plain, ours, atol=1e-2)


def test_a_foreign_spm_file_opens(tiny: DiffusionModel, tmp_path: Path) -> None:
    """Written as the released code writes it: kohya keys, three metadata strings, and a folder of that name."""
    edit = adapters(tiny, "x")
    tensors: dict[str, Tensor] = {}
    for name, factors in edit.factors.items():
        key = "lora_unet_" + name.removeprefix("unet.").removesuffix(".weight").replace(".", "_")
        tensors |= {
            f"{key}.lora_down.weight": factors.down,
            f"{key}.lora_up.weight": factors.up,
            f"{key}.alpha": torch.tensor(1.0),
        }
    folder = tmp_path / "snoopy"
    folder.mkdir()
    save_file(tensors, folder / "snoopy_last.safetensors", {"prompts": "snoopy,the dog", "rank": "1", "alpha": "1.0"})
    back = open_edit(folder)
    assert back.info.concepts == ("snoopy", "the dog")
    assert sorted(back.parameters) == sorted(edit.parameters)
    with edit.applied(tiny):
        wanted = images(tiny.pipeline)
    with back.applied(tiny):
        assert torch.equal(images(tiny.pipeline), wanted)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.weight", "DoRA"),
        ("lora_mid.weight", "LoCon"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w2", "LoKr"),
        ("diff", "full-rank"),
        ("diff_b", "full-rank"),
        ("oft_blocks", "OFT"),
    ],
)
def test_adapters_that_are_no_lora_are_refused_by_name(
    end: str, kind: str, tiny: DiffusionModel, tmp_path: Path
) -> None:
    """Also where plain factors stand beside them: without the rest they would be another edit."""
    lora, _ = spm_tensors(adapters(tiny, "x"))
    layer = next(iter(lora)).split(".")[0]
    save_file(lora, tmp_path / "lora.safetensors")
    save_file({**lora, f"{layer}.{end}": torch.ones(1)}, tmp_path / "both.safetensors")
    save_file({f"{layer}.{end}": torch.ones(1)}, tmp_path / "alone.safetensors")
    for name in ("both", "alone"):
        with pytest.raises(EditError, match=f"{kind}.*{layer}.{end}"):
            open_edit(tmp_path / f"{name}.safetensors")
    assert open_edit(tmp_path / "lora.safetensors").parameters  # control
    save_file({"model.diffusion_model.out.2.bias": torch.ones(1)}, tmp_path / "base.safetensors")
    with pytest.raises(EditError, match=r"base\.safetensors"):
        open_edit(tmp_path / "base.safetensors")


def test_a_comma_in_a_concept_survives_our_own_spm_file(tiny: DiffusionModel, tmp_path: Path) -> None:
    tensors, metadata = spm_tensors(adapters(tiny, "van gogh, the painter"))
    write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    assert open_edit(tmp_path / "x.safetensors").info.concepts == ("van gogh, the painter",)


# -- merged models
# ----------------------------------------------------------------------------------------------------------


def both_kinds(model: DiffusionModel) -> Bank:
    name = "unet.conv_in.weight"
    dense = WeightEdit({name: 0.05 * torch.ones_like(find_parameter(model, name))}, EditInfo("test", ("dense",)))
    return Bank(model, [adapters(model, "neon"), dense])


def merged_images(bank: Bank) -> Tensor:
    """With the dense sum in the weights, as an export merges it: the same numbers, where hooks add up in another
    order."""
    with WeightEdit(bank.deltas(), EditInfo("test", ("sum",))).applied(bank.model):
        merged = images(bank.model.pipeline)
    with bank.applied():
        assert torch.allclose(images(bank.model.pipeline), merged, atol=1e-3)
    return merged


LOADER = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
options = dict(num_inference_steps=3, height=64, width=64, output_type="latent")
torch.save(pipe("a star in neon style", generator=torch.Generator().manual_seed(1), **options).images, sys.argv[2])
assert not any(name.split(".")[0] == "mu" for name in sys.modules)
"""


def test_a_merged_folder_needs_diffusers_alone(tiny: DiffusionModel, tmp_path: Path, snapshot) -> None:  # type: ignore[no-untyped-def]
    bank, plain, weights = both_kinds(tiny), images(tiny.pipeline), snapshot(tiny)
    export(bank, tmp_path / "merged", "diffusers")
    assert snapshot(tiny) == weights
    wanted = merged_images(bank)
    subprocess.run(
        [sys.executable, "-c", LOADER, tmp_path / "merged", tmp_path / "found.pt"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
    )
    found = torch.load(tmp_path / "found.pt")
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2
    again = load(tmp_path / "merged", device="cpu")
    assert torch.equal(images(again.pipeline), found)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_merged_unet_loads_as_a_state_dict(ending: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    bank = both_kinds(tiny)
    path = export(bank, tmp_path / f"unet{ending}", "unet")
    unet = UNet2DConditionModel.from_config(tiny.unet.config)
    unet.load_state_dict(load_file(path) if ending == ".safetensors" else torch.load(path, weights_only=True))
    deltas, base = bank.deltas(), tiny.unet.state_dict()
    for name, value in unet.state_dict().items():
        shift = deltas.get(f"unet.{name}")
        wanted = base[name] if shift is None else base[name] + shift.reshape(base[name].shape)
        assert torch.equal(value, wanted), name
    assert len(deltas) > 20


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_merged_compvis_file_comes_back(ending: str, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path) -> None:
    bank, plain = both_kinds(tiny), images(tiny.pipeline)
    try:
        path = export(bank, tmp_path / f"merged{ending}", "compvis")
    except Exception as error:
        if type(error).__name__ in ("ModelError", "ConfigError"):
            pytest.skip(f"this architecture has no CompVis names: {error}")
        raise
    wanted = merged_images(bank)
    with quiet_libraries():
        found = images(load_single_file(path, configs=tiny_folder))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_a_merge_that_fails_leaves_the_old_file_with_its_own_description(tmp_path: Path) -> None:
    """Else the old file would be read by the new one's."""
    path, beside = tmp_path / "merged.ckpt", tmp_path / "merged.yaml"
    for before in ("of: the old file\n", None):
        if before:
            beside.write_text(before)
        with pytest.raises(OSError, match="no space"), _description(path, {"of": "the new file"}):
            assert "new" in beside.read_text()
            raise OSError("no space")
        assert (beside.read_text() if beside.exists() else None) == before
        beside.unlink(missing_ok=True)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_merged_file_of_a_small_model_opens_again_by_itself(
    ending: str, tiny: DiffusionModel, tmp_path: Path
) -> None:
    """Also after a second merge; a description that is damaged is refused in one line."""
    bank = both_kinds(tiny)
    path, wanted = export(bank, tmp_path / f"merged{ending}", "compvis"), merged_images(bank)
    again = load(path, device="cpu")
    assert torch.allclose(images(again.pipeline), wanted, atol=1e-5)
    twice = export(Bank(again, []), tmp_path / f"twice{ending}", "compvis")
    assert torch.allclose(images(load(twice, device="cpu").pipeline), wanted, atol=1e-5)
    content = read_state_dict(path)
    content[DESCRIPTION] = content[DESCRIPTION][:-9].clone()
    save_file(content, tmp_path / "damaged.safetensors")
    with pytest.raises(ModelError, match="describes itself wrongly"):
        load(tmp_path / "damaged.safetensors", device="cpu")
    del content[DESCRIPTION]
    save_file(content, tmp_path / "without.safetensors")
    with pytest.raises(ModelError):  # control: it is the description that opens the file
        load(tmp_path / "without.safetensors", device="cpu")


def test_a_file_of_a_published_architecture_needs_no_description() -> None:
    parts = {
        name: architectures.blueprint(config)
        for name, config in architectures.stable_diffusion_1().items()
        if name != "scheduler"
    }
    assert description_of(SimpleNamespace(**parts, text_encoder_2=None)) == {}


def test_existing_results_are_kept(tiny: DiffusionModel, tmp_path: Path) -> None:
    bank = both_kinds(tiny)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").write_text("years of work")
    for form in FORMATS:
        with pytest.raises(OutputError):
            export(bank, kept, form)
        with pytest.raises(OutputError):  # a folder that is no model is not replaced even then
            export(bank, kept, form, overwrite=True)
    assert (kept / "thesis.tex").read_text() == "years of work"
    export(bank, tmp_path / "model", "diffusers")
    export(Bank(tiny), tmp_path / "model", "diffusers", overwrite=True)
    assert torch.equal(load(tmp_path / "model", device="cpu").unet.conv_in.weight, tiny.unet.conv_in.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "model"]


@pytest.mark.parametrize("mine", ["thesis.tex", "unet/best.safetensors", "deep/er/notes.md", ".git/HEAD", "README.md"])
def test_a_merge_deletes_nothing_that_it_did_not_write(mine: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    """Whatever its name; also a file of the model that was changed since, and an empty folder."""
    out = tmp_path / "out"
    export(Bank(tiny), out, "diffusers")
    (out / mine).parent.mkdir(parents=True, exist_ok=True)
    (out / mine).write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(OutputError, match=mine.partition("/")[0]):
        export(Bank(tiny), out, "diffusers", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / mine).unlink()
    for folder in (Path(mine).parent, Path(mine).parent.parent):
        if folder.parts and not any((out / folder).iterdir()):
            with pytest.raises(OutputError, match=folder.parts[0]):
                check_own(out)
            (out / folder).rmdir()
    export(Bank(tiny), out, "diffusers", overwrite=True)  # control


def test_a_model_of_the_user_s_own_is_not_replaced(tiny: DiffusionModel, tmp_path: Path) -> None:
    out = export(Bank(tiny), tmp_path / "out", "diffusers")
    index = (out / "model_index.json").read_bytes()
    (out / "model_index.json").write_bytes(index + b" ")
    with pytest.raises(OutputError, match=r"model_index\.json was changed since"):
        export(Bank(tiny), out, "diffusers", overwrite=True)
    (out / "model_index.json").write_bytes(index)
    check_own(out)  # control
    for content, said in (("{", "not JSON"), ('{"files": 3}', "names and values"), (None, "was not written by mu")):
        (out / WRITTEN).unlink() if content is None else (out / WRITTEN).write_text(content)
        with pytest.raises(OutputError, match=said):
            export(Bank(tiny), out, "diffusers", overwrite=True)


def test_what_a_killed_merge_left_goes_with_the_next_one(tiny: DiffusionModel, tmp_path: Path) -> None:
    """Names of other merges, and those that mu does not make, stay; the old model comes back if it was set aside."""
    out = export(Bank(tiny), tmp_path / "out", "diffusers")
    left = [tmp_path / f".partial-out-{what}-abcd_123" for what in ("new", "old")]
    others = [tmp_path / name for name in (".partial-out-old-mine", ".partial-out2-old-abcd_123", ".partial-notes")]
    for folder in (*left, *others):
        folder.mkdir()
        (folder / "file").touch()
    lora, half = tmp_path / "lora.safetensors", tmp_path / ".partial-lora-abcd_123.safetensors"
    half.touch()
    bank = Bank(tiny, [adapters(tiny, "neon")])
    export(bank, lora, "kohya")
    assert not half.exists() and all(folder.exists() for folder in left), "control: they are the other merge's"
    export(Bank(tiny), out, "diffusers", overwrite=True)
    assert not any(folder.exists() for folder in left) and all(folder.exists() for folder in others)
    out.rename(left[1])
    with pytest.raises(OutputError, match="exists already"):
        export(bank, out, "diffusers")
    check_own(out)


def test_what_a_format_cannot_hold_is_refused(tiny: DiffusionModel, tmp_path: Path) -> None:
    bank = both_kinds(tiny)
    for form in ("kohya", "peft"):
        with pytest.raises(EditError, match="compvis"):
            export(bank, tmp_path / "x.safetensors", form)
    with pytest.raises(OutputError, match="'onnx'"):
        export(bank, tmp_path / "x", "onnx")
    with pytest.raises(OutputError, match=r"x\.txt.*\.ckpt"):
        export(bank, tmp_path / "x.txt", "unet")
    assert not list(tmp_path.iterdir())


# -- names
# ------------------------------------------------------------------------------------------------------------------


def transformer_layers(unet: Any) -> dict[str, Any]:
    """By the full name of the weight, of a UNet alone."""
    model = object.__new__(StableDiffusion)
    model.backbone = unet
    return model.layers("transformer")


@pytest.mark.parametrize(
    ("published", "adapted", "numbers"),
    [
        ("stable_diffusion_1", 192, 423_936),
        ("stable_diffusion_2", 192, 432_128),
        ("stable_diffusion_xl", 722, 2_659_840),
    ],
)
def test_kohya_names_have_an_inverse_for_every_layer(published: str, adapted: int, numbers: int) -> None:
    """Of the whole UNet, not only of what SPM adapts; with the table of adapted layers, by count."""
    with torch.device("meta"):
        unet = architectures.new_component(getattr(architectures, published)()["unet"])
    layers = {name: m for name, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    for name in layers:
        assert parameter_of("lora_unet_" + name.replace(".", "_")) == f"unet.{name}.weight"
        assert parameter_of(f"unet.{name}") == parameter_of(name) == f"unet.{name}.weight"
    found = transformer_layers(unet)
    assert len(found) == adapted
    assert sum(layer.weight[0].numel() + layer.weight.shape[0] for layer in found.values()) == numbers


def sdxl_edit() -> LowRankEdit:
    """On every layer that SPM adapts in SDXL, its own number in each; shapes as published, at rank 1."""
    with torch.device("meta"):
        unet = architectures.new_component(architectures.stable_diffusion_xl()["unet"])
    layers = transformer_layers(unet)
    factors = {
        name: Factors(torch.full((1, layer.weight.shape[1]), float(k)), torch.ones(layer.weight.shape[0], 1), 1.0)
        for k, (name, layer) in enumerate(layers.items())
    }
    return LowRankEdit(factors, EditInfo("test", ("neon",)))


def test_sdxl_files_open_by_both_families_of_names(tmp_path: Path) -> None:
    """SGM's names (kohya's files for SDXL, and our export) and those of diffusers (SPM's files): the same edit."""
    edit, modules = sdxl_edit(), compvis.sdxl_module_names()
    write_tensors(tmp_path / "sgm.safetensors", kohya_tensors(edit, modules), {})
    write_tensors(tmp_path / "diffusers.safetensors", *spm_tensors(edit))
    with safe_open(tmp_path / "sgm.safetensors", "pt") as file:
        keys = set(file.keys())
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    assert not [key for key in keys if "down_blocks" in key]
    for name in ("sgm", "diffusers"):
        back = open_edit(tmp_path / f"{name}.safetensors")
        assert isinstance(back, LowRankEdit) and len(back.factors) == 722
        assert all(torch.equal(back.factors[layer].down, factors.down) for layer, factors in edit.factors.items())


def test_a_layer_that_no_model_has_is_refused(tmp_path: Path) -> None:
    layer = "lora_unet_input_blocks_3_1_proj_in"  # the third block only halves the image
    save_file(
        {f"{layer}.lora_down.weight": torch.ones(1, 4), f"{layer}.lora_up.weight": torch.ones(4, 1)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(EditError, match=layer):
        open_edit(tmp_path / "x.safetensors")


def test_a_small_relative_of_sdxl_comes_back_from_our_own_file(tiny_xl: DiffusionModel, tmp_path: Path) -> None:
    """Its blocks are numbered otherwise: under SGM's names they would be taken for other layers of SDXL."""
    edit = adapters(tiny_xl, "neon")
    back = open_edit(export(Bank(tiny_xl, [edit]), tmp_path / "x.safetensors", "kohya"))
    assert isinstance(back, LowRankEdit) and back.factors.keys() == edit.factors.keys()
    assert all(torch.equal(back.factors[layer].down, factors.down) for layer, factors in edit.factors.items())
    small = compvis.kohya_module_names(tiny_xl.unet.config)
    large = {place: module for module, place in compvis.sdxl_module_names().items()}
    assert any(large.get(place, module) != module for module, place in small.items())  # control


def test_names_of_text_encoders_have_an_inverse(tiny: DiffusionModel) -> None:
    for name, module in tiny.components["text_encoder"].named_modules():
        if isinstance(module, torch.nn.Linear):
            assert parameter_of("lora_te_text_model_" + name.replace(".", "_")) == f"text_encoder.{name}.weight"
            assert parameter_of(f"text_encoder.text_model.{name}") == f"text_encoder.{name}.weight"


def test_metadata_of_a_kohya_file(tiny: DiffusionModel, tmp_path: Path) -> None:
    export(Bank(tiny, [adapters(tiny, "a, b", 2)]), tmp_path / "x.safetensors", "kohya")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["ss_network_module"] == "networks.lora"
        assert file.metadata()["ss_network_dim"] == "2"


@pytest.mark.parametrize("form", ["unet", "kohya"])
def test_a_strength_beyond_all_numbers_is_refused(tiny: DiffusionModel, tmp_path: Path, form: str) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    out, into = find_parameter(tiny, name).shape
    factors = {name: Factors(torch.ones(1, into), torch.ones(out, 1), 1.0)}
    bank = Bank(tiny, [LowRankEdit(factors, EditInfo("test", ("neon",)))])
    with pytest.raises(EditError, match="finite"):
        export(bank, tmp_path / "x.safetensors", form, strengths=[1e300])
    assert not [*tmp_path.iterdir()]
    export(bank, tmp_path / "x.safetensors", form, strengths=[2.0])  # control
