"""A merged model is its source with the changed tensors replaced: the same components, number types and files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

import mu
from mu.core.errors import EditError, ModelError, OutputError
from mu.core.files import PARTIAL
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.export import export
from mu.edits.gates import FacilitatedTransport, FixedStrength
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.own_folder import WRITTEN
from mu.edits.ungated import neutral_shift
from mu.edits.weights import WeightEdit
from mu.models import EMBEDDED, load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.models.formats.single_file import to_compvis
from mu.models.parameters import find_parameter
from mu.models.quiet import quiet_libraries

UNET, TEXT = "unet.conv_in.weight", "text_encoder.encoder.layers.0.mlp.fc1.weight"
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture(scope="module")
def source(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In half precision, with a safety checker, a licence, and settings of its own."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("source") / "model"))
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = small | {"image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
    with quiet_libraries():
        parts = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).components
        parts |= {"safety_checker": checker, "feature_extractor": CLIPImageProcessor()}
        StableDiffusionPipeline(**parts, requires_safety_checker=True).save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halved, file, {"format": "pt", "title": "mine"})
    for file in folder.rglob("*.json"):  # written from memory, it has the path of this machine in it
        settings = json.loads(file.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None):
            file.write_text(json.dumps(settings))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"author": "me"}))
    (folder / "LICENSE").write_text("free")
    (folder / "whole-model.safetensors").write_bytes(b"the base again, in one file")
    return folder


def floats(tensors):
    """The number types of the weights. A file that describes itself also holds bytes."""
    return {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}


def dense(model: Any, *names: str, size: float = 0.05) -> WeightEdit:
    shifts = {name: torch.full_like(find_parameter(model, name), size, dtype=torch.float32) for name in names}
    return WeightEdit(shifts, EditInfo("test", ("neon",)))


def merged(folder: Path, out: Path, *names: str, form: str = "diffusers", **how: Any) -> tuple[DiffusionModel, Path]:
    model = load_diffusion(folder, device="cpu", **how)
    return model, export(Bank(model, [dense(model, *names)] if names else []), out, form)


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without mu's own list of them."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != WRITTEN]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def changed_bytes(before: bytes, after: bytes) -> int:
    assert len(before) == len(after)
    return sum(a != b for a, b in zip(before, after, strict=True))


def test_all_but_the_changed_tensor_is_the_sources_byte_for_byte(source: Path, tmp_path: Path) -> None:
    _, out = merged(source, tmp_path / "merged", UNET)
    before, after = content(source), content(out)
    assert before.keys() - after.keys() == {"whole-model.safetensors"}, "it would still hold what was erased"
    assert after.keys() <= before.keys()
    assert {name for name in after if after[name] != before[name]} == {FILES["unet"]}
    numbers = load_file(source / FILES["unet"])["conv_in.weight"]
    assert 0 < changed_bytes(before[FILES["unet"]], after[FILES["unet"]]) <= numbers.nbytes
    found = load_file(out / FILES["unet"])["conv_in.weight"]
    assert found.dtype == torch.float16 and torch.equal(found, (numbers.float() + 0.05).half())
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.safety_checker is not None and pipeline.config.requires_safety_checker


def test_float8_stays_float8(source: Path, tmp_path: Path) -> None:
    narrow = Path(shutil.copytree(source, tmp_path / "narrow"))
    kinds = {"unet": torch.float8_e4m3fn, "text_encoder": torch.float8_e5m2}
    for part, kind in kinds.items():
        save_file({k: v.to(kind) for k, v in load_file(narrow / FILES[part]).items()}, narrow / FILES[part])
    _, out = merged(narrow, tmp_path / "merged", UNET, TEXT)
    for part, name in {"unet": UNET, "text_encoder": TEXT}.items():
        before, after = (load_file(folder / FILES[part]) for folder in (narrow, out))
        name = name.removeprefix(f"{part}.")
        assert floats(after) == {kinds[part]}
        assert torch.equal(after[name].float(), (before[name].float() + 0.05).to(kinds[part]).float())
    _, single = merged(narrow, tmp_path / "merged.safetensors", UNET, form="compvis")
    assert torch.float8_e4m3fn in floats(load_file(single))
    model = load_diffusion(narrow, device="cpu")
    with pytest.raises(EditError, match="not finite"):
        export(Bank(model, [dense(model, TEXT, size=1e6)]), tmp_path / "infinite", "diffusers")


def test_a_merge_of_nothing_is_a_copy(source: Path, tmp_path: Path) -> None:
    _, out = merged(source, tmp_path / "merged")
    before = content(source)
    del before["whole-model.safetensors"]
    assert content(out) == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_modes_of_new_files(mask: int, source: Path, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        _, out = merged(source, tmp_path / "merged", UNET, TEXT)
        _, single = merged(source, tmp_path / "unet.safetensors", UNET, form="unet")
    finally:
        os.umask(before)
    for path in (single, out, *out.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_no_path_of_this_machine_is_written(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"_name_or_path": str(folder / "unet")}))
    config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    inner = {"name_or_path": str(folder), "inner": [{"_name_or_path": "C:\\models\\mine"}]}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config | inner))
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"_name_or_path": "author/model"}))
    _, out = merged(folder, tmp_path / "merged", UNET)
    given = mu.load(load_diffusion(folder, device="cpu").pipeline)  # not loaded by name: the library writes it
    export(Bank(given, [dense(given, UNET)]), tmp_path / "given", "diffusers")
    for place in (out, tmp_path / "given"):
        for file in place.rglob("*.json"):
            assert str(tmp_path) not in file.read_text() and "C:" not in file.read_text(), file
    assert json.loads((out / "vae/config.json").read_text())["_name_or_path"] == "author/model", "control"


# -- forms of weights
# -----------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> None:
    with quiet_libraries():
        unet = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float16).unet
        (folder / FILES["unet"]).unlink()
        unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2


def variants(folder: Path) -> None:
    for name in FILES.values():
        shutil.copy(folder / name, (folder / name).with_suffix(".fp16.safetensors"))


def beside_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / FILES["unet"]), folder / "unet/diffusion_pytorch_model.bin")
    (folder / "unet/model.onnx").write_bytes(b"weights")


def pickles(folder: Path) -> None:
    for name in FILES.values():
        file = folder / name
        stem = "pytorch_model" if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()


def old_names(folder: Path) -> None:
    """Of a text encoder from before transformers 5, which has a level more."""
    file = folder / FILES["text_encoder"]
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    save_file({f"text_model.{name}": tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


@pytest.mark.parametrize("form", [sharded, variants, beside_a_pickle, pickles, old_names])
def test_no_form_of_the_weights_keeps_what_was_erased(
    form: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    form(folder)
    model, out = merged(folder, tmp_path / "merged", UNET, TEXT)
    again = load_diffusion(out, device="cpu")
    for name in (UNET, TEXT):
        wanted = (find_parameter(model, name) + 0.05).half().float()
        assert torch.equal(find_parameter(again, name), wanted)
    seen = 0
    for file in (*(out / "unet").iterdir(), *(out / "text_encoder").iterdir()):
        assert file.suffix in (".json", ".safetensors"), "other forms cannot be changed, and are left out"
        if file.suffix == ".safetensors":
            for name, tensor in load_file(file).items():
                assert tensor.dtype == torch.float16
                if name.endswith(("conv_in.weight", "layers.0.mlp.fc1.weight")):
                    seen += 1
                    shape = [name for name in (UNET, TEXT) if find_parameter(model, name).shape == tensor.shape]
                    assert torch.equal(tensor, (find_parameter(model, shape[0]) + 0.05).half())
    assert seen == (4 if form is variants else 2)
    assert (out / "vae").is_dir() and content(out / "vae") == content(folder / "vae")


def test_old_names_of_the_autoencoder_stay(tiny_v: DiffusionModel, tmp_path: Path) -> None:
    name = "vae.decoder.mid_block.attentions.0.to_q.weight"
    with quiet_libraries():
        tiny_v.pipeline.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / FILES["vae"]
    before = {key.replace(".to_q.", ".query."): tensor for key, tensor in load_file(file).items()}
    save_file(before, file, {"format": "pt"})
    model, out = merged(tmp_path / "model", tmp_path / "merged", name)
    after = load_file(out / FILES["vae"])
    assert after.keys() == before.keys()
    (changed,) = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == "decoder.mid_block.attentions.0.query.weight"
    assert torch.equal(find_parameter(load_diffusion(out, device="cpu"), name), find_parameter(model, name) + 0.05)


def test_a_model_in_half_precision_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    _, out = merged(source, tmp_path / "one", UNET)
    _, other = merged(source, tmp_path / "two", UNET, precision="float16")
    assert content(out) == content(other)


def test_what_else_was_changed_in_memory_is_written_too(source: Path, tmp_path: Path) -> None:
    model = load_diffusion(source, device="cpu")
    with torch.no_grad():
        model.components["vae"].decoder.conv_in.bias += 1  # type: ignore[operator, union-attr]
        model.unet.conv_in.weight *= 2
    out = export(Bank(model, [dense(model, UNET)]), tmp_path / "merged", "diffusers")
    again = load_diffusion(out, device="cpu")
    bias = find_parameter(again, "vae.decoder.conv_in.bias")
    assert torch.allclose(bias, find_parameter(model, "vae.decoder.conv_in.bias"), atol=1e-3)
    assert torch.allclose(find_parameter(again, UNET), find_parameter(model, UNET) + 0.05, atol=1e-3)


def test_a_prediction_type_that_was_given_is_written(source: Path, tmp_path: Path) -> None:
    _, out = merged(source, tmp_path / "merged", UNET, prediction_type="v_prediction")
    assert load_diffusion(out, device="cpu").prediction_type == "v_prediction"
    assert load_diffusion(source, device="cpu").prediction_type == "epsilon"
    pipeline = load_diffusion(source, device="cpu").pipeline
    given = mu.load(pipeline, prediction_type="v_prediction")
    out = export(Bank(given, [dense(given, UNET)]), tmp_path / "given", "diffusers")
    assert load_diffusion(out, device="cpu").prediction_type == "v_prediction"
    assert pipeline.scheduler.config.prediction_type == "epsilon", "the user's own object stays as it was"


def test_a_source_that_lacks_a_part_and_one_that_would_be_replaced_are_refused(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    model = load_diffusion(folder, device="cpu")
    with pytest.raises(OutputError, match="base model itself"):
        export(Bank(model, [dense(model, UNET)]), folder, "diffusers", overwrite=True)
    assert content(folder) == content(source)
    shutil.rmtree(folder / "safety_checker")
    with pytest.raises(ModelError, match="safety_checker"):
        export(Bank(model, [dense(model, UNET)]), tmp_path / "merged", "diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("name", ["canvas-clip", "canvas-vlm"])
def test_clip_and_llava_keep_their_files_too(name: str, tmp_path: Path) -> None:
    model: Any = mu.load(name, device="cpu")
    tensor = "vision_model.encoder.layers.0.mlp.fc2.weight"
    out = export(Bank(model, [dense(model, tensor)]), tmp_path / "merged", "transformers")
    before, after = content(EMBEDDED[name]), content(out)
    assert before.keys() == after.keys()
    (changed,) = {file for file in after if after[file] != before[file]}
    assert changed.endswith(".safetensors")
    assert 0 < changed_bytes(before[changed], after[changed]) <= 2 * find_parameter(model, tensor).numel()


# -- where it is written
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["../victim", "unet/../../victim", "{parent}/victim"])
def test_nothing_is_written_outside_the_target(part: str, source: Path, tmp_path: Path) -> None:
    """Also if the index is changed after the model was loaded."""
    folder, victim = Path(shutil.copytree(source, tmp_path / "model")), tmp_path / "victim"
    (tmp_path / "out").mkdir()
    for place in (victim, tmp_path / "out/victim"):
        place.mkdir()
        (place / "data.txt").write_text("mine")
    model = load_diffusion(folder, device="cpu")
    index, part = folder / "model_index.json", part.format(parent=tmp_path)
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: ["diffusers", "X"]}))
    (victim / "data.txt").write_text("the model's")
    before = content(tmp_path)
    with pytest.raises(ModelError, match="victim"):
        export(Bank(model, [dense(model, UNET)]), tmp_path / "out/merged", "diffusers")
    with pytest.raises(ModelError, match="victim"):
        load_diffusion(folder, device="cpu")
    assert content(tmp_path) == before and sorted(each.name for each in (tmp_path / "out").iterdir()) == ["victim"]


def test_what_a_merge_is_made_of_and_what_is_no_model_stay(source: Path, tmp_path: Path) -> None:
    model = load_diffusion(source, device="cpu")
    bank, out = Bank(model, [dense(model, UNET)]), tmp_path / "out"
    export(bank, out, "diffusers")
    edit = out / "bank" / "edit.safetensors"
    edit.parent.mkdir()
    bank.on[0].save(edit)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "project")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/model_index.json").write_text("[]")
    before = content(tmp_path)
    for path, form, said in (
        (out, "diffusers", "holds .*bank"),
        (tmp_path, "diffusers", "holds"),
        (edit, "unet", "is what the result is made of"),
        (tmp_path / "file", "diffusers", "is a file"),
        (tmp_path / "link", "diffusers", "is a link"),
        (tmp_path / "dangling", "diffusers", "is a link"),
        (tmp_path / "project", "diffusers", "without a diffusers model"),
        (tmp_path / "file" / "x", "diffusers", "not a folder"),
        (source / "merged", "diffusers", "inside the base model"),
        (source / FILES["unet"], "unet", "inside the base model"),
    ):
        with pytest.raises(OutputError, match=said):
            export(bank, path, form, overwrite=True, inputs=[edit.parent, edit])
    with pytest.raises(OutputError, match="exists already"):
        export(bank, tmp_path / "dangling", "unet")
    assert content(tmp_path) == before and (tmp_path / "link").is_symlink()
    shutil.rmtree(edit.parent)
    export(bank, out, "diffusers", overwrite=True)  # control


def test_a_folder_is_whole_until_it_is_replaced(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last steps: the old folder aside, the new one in its place, the old one deleted. Any of them may fail."""
    model = load_diffusion(source, device="cpu")
    bank, out = Bank(model, [dense(model, UNET)]), tmp_path / "deep" / "out"
    rename = Path.rename
    seen: list[list[str]] = []

    def failing(step: int) -> Callable[[Path, Path], Path]:
        def step_or_fail(self: Path, target: Path) -> Path:
            seen.append(sorted(path.name for path in out.parent.iterdir()))
            if len(seen) == step:
                raise KeyboardInterrupt
            return rename(self, target)

        return step_or_fail

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", failing(1))
        export(bank, out, "diffusers")
    assert not list(tmp_path.iterdir()), "nor is its folder left"
    export(Bank(model), out, "diffusers")
    before = content(out)
    for step in (1, 2):
        seen.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", failing(step))
            export(bank, out, "diffusers", overwrite=True)
        assert content(out) == before and [path.name for path in out.parent.iterdir()] == ["out"]
    assert all(name in ("out", ".out.lock") or name.startswith(f"{PARTIAL}out-") for names in seen for name in names), (
        "recognised"
    )
    export(bank, out, "diffusers", overwrite=True)
    assert content(out) != before and [path.name for path in out.parent.iterdir()] == ["out"], "control"


# -- single files
# ---------------------------------------------------------------------------------------------------------


def test_a_single_file_keeps_types_markers_and_metadata_but_no_second_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mu.models.formats import single_file

    pipeline = load_diffusion(source, device="cpu").pipeline
    checkpoint = {
        name: tensor if name.startswith("first_stage") else tensor.half()
        for name, tensor in to_compvis(pipeline).items()
    }
    extra = {"model_ema.x": torch.ones(3), "v_pred": torch.empty(0), "betas": torch.ones(1000, dtype=torch.float64)}
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    save_file(checkpoint | extra, tmp_path / "model.safetensors", {"modelspec.title": "mine"})
    configs = single_file._folder_configs(source)
    monkeypatch.setattr(single_file, "_published", lambda *_: dict(configs))
    model = load_diffusion(tmp_path / "model.safetensors", device="cpu")
    assert model.prediction_type == "v_prediction"
    out = export(Bank(model, [dense(model, UNET)]), tmp_path / "merged.safetensors", "compvis")
    found = load_file(out)
    assert found.keys() == (checkpoint | extra).keys() - {"model_ema.x"}
    differs = {name for name, tensor in found.items() if not torch.equal(tensor, (checkpoint | extra)[name])}
    (name,) = differs
    assert torch.equal(found[name], (checkpoint[name].float() + 0.05).half())
    assert all(tensor.dtype == (checkpoint | extra)[name].dtype for name, tensor in found.items())
    with safe_open(out, "pt") as file:
        assert file.metadata()["modelspec.title"] == "mine"
    folder = export(Bank(model, [dense(model, UNET)]), tmp_path / "folder", "diffusers")
    assert {tensor.dtype for tensor in load_file(folder / FILES["unet"]).values()} == {torch.float16}


@pytest.mark.parametrize("form", ["unet", "compvis", "diffusers"])
@pytest.mark.parametrize("beside", [True, False])
def test_the_number_type_is_that_of_the_files_that_are_loaded(
    form: str, beside: bool, source: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """A copy in half precision stands beside the weights, and comes first by name; alone, it is what is loaded."""
    folder, out = Path(shutil.copytree(source, tmp_path / "model")), tmp_path / "out"
    out = out if form == "diffusers" else out.with_suffix(".safetensors")
    for name in FILES.values():
        file = folder / name
        half = load_file(file)
        save_file(half, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
        if beside and "unet" in name:  # as a pickle, which cannot be changed in place
            torch.save({key: tensor.float() for key, tensor in half.items()}, file.with_suffix(".bin"))
        elif beside:
            save_file({key: tensor.float() for key, tensor in half.items()}, file, {"format": "pt"})
    model = load_diffusion(folder, device="cpu")
    export(Bank(model, [dense(model, UNET, size=1e-6)]), out, form)
    found = load_file(out if out.is_file() else next((out / "unet").glob("*.safetensors")))
    assert floats(found) == {torch.float32 if beside else torch.float16}
    assert ("rounds away" in told.text) == (not beside)
    if form == "diffusers" and beside:
        again = load_diffusion(out, device="cpu")
        moved = find_parameter(again, UNET) - find_parameter(model, UNET)
        assert float(moved.mean()) == pytest.approx(1e-6, rel=0.1), "control: it is what is loaded"


@pytest.mark.parametrize("form", ["compvis", "diffusers"])
def test_rounding_is_counted_for_a_single_file_too(
    form: str, source: Path, tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mu.models.formats import single_file

    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    configs = single_file._folder_configs(source)
    monkeypatch.setattr(single_file, "_published", lambda *_: dict(configs))
    checkpoint = to_compvis(load_diffusion(source, device="cpu").pipeline)
    ending = ".safetensors" if form == "compvis" else ""
    for dtype in (torch.float32, torch.float16):
        save_file({name: tensor.to(dtype) for name, tensor in checkpoint.items()}, tmp_path / "model.safetensors")
        model = load_diffusion(tmp_path / "model.safetensors", device="cpu")
        for size in (0.05, 1e-6):
            told.clear()
            export(Bank(model, [dense(model, UNET, size=size)]), tmp_path / f"{dtype}-{size}{ending}", form)
            assert ("rounds away" in told.text) == (dtype == torch.float16 and size < 0.01)


def test_a_folder_as_one_file_keeps_types_and_says_what_it_predicts(source: Path, tmp_path: Path) -> None:
    _, out = merged(source, tmp_path / "merged.safetensors", UNET, form="compvis", prediction_type="v_prediction")
    found = load_file(out)
    assert found.pop("v_pred").numel() == 0
    assert floats(found) == {torch.float16}
    _, plain = merged(source, tmp_path / "plain.safetensors", UNET, form="compvis")
    assert "v_pred" not in load_file(plain)
    _, unet = merged(source, tmp_path / "unet.safetensors", UNET, form="unet")
    assert {tensor.dtype for tensor in load_file(unet).values()} == {torch.float16}


# -- what a merge loses
# ---------------------------------------------------------------------------------------------------


def low_rank(model: DiffusionModel, **info: Any) -> LowRankEdit:
    g = torch.Generator().manual_seed(0)
    factors = {}
    for name in model.layers("cross-attention"):
        out, inner = find_parameter(model, name).shape
        factors[name] = Factors(torch.randn(1, inner, generator=g) * 0.2, torch.randn(out, 1, generator=g) * 0.2, 1.0)
    return LowRankEdit(factors, EditInfo("test", ("neon style",), **info))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "mu"):
        yield caplog


@pytest.mark.parametrize("form", ["kohya", "unet", "diffusers"])
def test_a_lost_gate_is_said_with_what_it_means(
    form: str, tiny: DiffusionModel, tmp_path: Path, told: pytest.LogCaptureFixture, snapshot: Callable[[Any], str]
) -> None:
    before, ending = snapshot(tiny), "" if form == "diffusers" else ".safetensors"
    export(Bank(tiny, [low_rank(tiny)]), tmp_path / f"open{ending}", form)
    assert not told.records, "control: an edit without a gate loses nothing"
    bank = Bank(tiny, [low_rank(tiny, gate=FacilitatedTransport())])
    export(bank, tmp_path / f"gated{ending}", form)
    (record,) = told.records
    gated, whole = neutral_shift(bank, [1.0])
    assert "'neon style'" in record.getMessage() and f"{whole:.1%}" in record.getMessage()
    assert f"{gated:.1%}" in record.getMessage()
    assert 0 < gated < whole
    assert snapshot(tiny) == before


def test_a_gate_that_cannot_be_computed_does_not_stop_a_merge(
    tiny: DiffusionModel, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    edit = low_rank(tiny, gate=FacilitatedTransport())
    shape = find_parameter(tiny, TEXT).shape
    edit.factors[TEXT] = Factors(torch.ones(1, shape[1]) * 0.01, torch.ones(shape[0], 1) * 0.01, 1.0)
    bank = Bank(tiny, [edit])
    with pytest.raises(EditError), bank.applied():  # the control
        pass
    export(bank, tmp_path / "x.safetensors", "peft")
    assert "the gate of the edit of 'neon style' is lost" in told.text and "%" not in told.text


def test_the_measured_shift_is_that_of_the_noise(tiny: DiffusionModel) -> None:
    """By another way: the sum of the deltas in the weights, and no edit at all."""
    bank = Bank(tiny, [low_rank(tiny, gate=FacilitatedTransport(factor=0.0))])
    gated, whole = neutral_shift(bank, [1.0])
    assert gated == 0
    assert neutral_shift(bank, [0.0])[1] == 0
    assert neutral_shift(bank, [0.5])[1] < whole
    open_bank = Bank(tiny, [low_rank(tiny)])
    assert neutral_shift(open_bank, [1.0]) == pytest.approx((whole, whole), rel=1e-3)


def test_a_dense_edit_has_no_gate_whatever_its_file_states(tiny: DiffusionModel) -> None:
    """Its part is the same gated and merged, also beside an edit with a gate."""
    both = {}
    for name, gate in (("plain", FixedStrength()), ("stated", FixedStrength(0.1))):
        edit = dense(tiny, UNET)
        edit = WeightEdit(edit.shifts, EditInfo("test", ("star",), gate=gate))
        bank = Bank(tiny, [edit, low_rank(tiny, gate=FacilitatedTransport(factor=0.0))])
        assert bank.merged_strengths([0.5, 0.5]) == [0.5, 0.5]
        both[name] = neutral_shift(bank, [0.5, 0.5])
    assert both["stated"] == both["plain"] and both["plain"][0] > 0
    fixed = Bank(tiny, [low_rank(tiny, gate=FixedStrength(0.1))])
    assert fixed.merged_strengths([0.5]) == pytest.approx([0.05]), "control: that of a low-rank edit counts"
    gated, whole = neutral_shift(fixed, [0.5])
    assert gated == pytest.approx(whole, rel=1e-3) and whole < neutral_shift(Bank(tiny, [low_rank(tiny)]), [0.5])[1]


def test_a_fixed_strength_of_the_file_is_merged_in(
    tiny: DiffusionModel, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    half, full = low_rank(tiny, gate=FixedStrength(0.5)), low_rank(tiny)
    export(Bank(tiny, [half]), tmp_path / "half.safetensors", "unet")
    export(Bank(tiny, [full]), tmp_path / "wanted.safetensors", "unet", strengths=[0.5])
    export(Bank(tiny, [full]), tmp_path / "full.safetensors", "unet")
    found, wanted, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("half", "wanted", "full"))
    assert same(found, wanted) and not same(found, other)
    assert not told.records


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def test_an_edit_that_the_number_type_rounds_away_is_said(
    source: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    model = load_diffusion(source, device="cpu")
    export(Bank(model, [dense(model, UNET)]), tmp_path / "large", "diffusers")
    assert not told.records, "control"
    export(Bank(model, [dense(model, UNET, size=1e-6)]), tmp_path / "small", "diffusers")
    assert "rounds away" in told.text
