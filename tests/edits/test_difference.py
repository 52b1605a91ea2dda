"""Published weights as edits: the base with the edit on is the published model, in every form that it is published in."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mu.core.errors import ConfigError, EditError, ModelError
from mu.core.files import sha256
from mu.edits.bank import Bank
from mu.edits.difference import difference
from mu.edits.edit import Edit, EditInfo, shifted
from mu.edits.export import export
from mu.edits.factoring import factored
from mu.edits.files import open_edit
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.models.formats.checkpoint import open_weights
from mu.models.formats.single_file import to_compvis
from mu.models.parameters import find_parameter

KEYS = ("attn2.to_k.weight", "attn2.to_v.weight")
FAMILIES = ("tiny", "tiny_v", "tiny_xl", "canvas")
Named = dict[str, Tensor]


@pytest.fixture(scope="module")
def canvas() -> Any:
    return load("canvas", device="cpu")


def own(model: DiffusionModel, name: str) -> Tensor:
    return find_parameter(model, name).detach().clone()


def keys_of(model: DiffusionModel) -> list[str]:
    """Parameters that UCE changes."""
    return [f"unet.{name}" for name, _ in model.backbone.named_parameters() if name.endswith(KEYS)]


def some_of(model: DiffusionModel, *parts: str) -> list[str]:
    """Of each component: its first, its last and its middle parameters, so norms, biases, convolutions and matrices."""
    found = []
    for part in parts:
        names = [f"{part}.{name}" for name, _ in model.components[part].named_parameters()]
        found += [names[0], names[-1], *names[len(names) // 2 :][:4]]
    return list(dict.fromkeys(found))


def grown(model: DiffusionModel, names: list[str]) -> Named:
    """Deltas whose sum with the base is exact in float32, and changes every number."""
    return {name: 0.25 * own(model, name) + (own(model, name) == 0) * 0.5 for name in names}


def thin(model: DiffusionModel, names: list[str], rank: int = 2) -> Named:
    """Deltas of a low rank, as those of UCE are."""
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.1

    return {name: (draw(len(w), rank) @ draw(rank, w.shape[1])) for name in names for w in [own(model, name)]}


def put_on(model: DiffusionModel, edit: Edit) -> Named:
    """The edited weights: dense ones as they are, low-rank ones as the sum that a merge writes."""
    if isinstance(edit, LowRankEdit):
        return {name: own(model, name) + shift.reshape(own(model, name).shape) for name, shift in edit.deltas()}
    with edit.applied(model):
        return {name: own(model, name) for name in edit.parameters}


def part_of(model: DiffusionModel, part: str) -> Named:
    return {name: tensor.clone() for name, tensor in model.components[part].state_dict().items()}


# -- forms in which weights are published ------------------------------------------------------------------------------


def unet_file(model: Any, folder: Path) -> Path:
    torch.save(part_of(model, "unet"), folder / "esd.pt")
    return folder / "esd.pt"


def prefixed(model: Any, folder: Path) -> Path:
    save_file({f"unet.{name}": value for name, value in part_of(model, "unet").items()}, folder / "esd.safetensors")
    return folder / "esd.safetensors"


def parallel(model: Any, folder: Path) -> Path:
    named = {f"module.{name}": value for name, value in part_of(model, "unet").items()}
    torch.save({"state_dict": named, "epoch": 3}, folder / "esd.pth")
    return folder / "esd.pth"


def compvis(model: Any, folder: Path) -> Path:
    extra = {
        "model_ema.decay": torch.tensor(0.9),
        "betas": torch.ones(3),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
    }
    torch.save({"state_dict": to_compvis(model.pipeline) | extra, "global_step": 7}, folder / "compvis.ckpt")
    return folder / "compvis.ckpt"


def compvis_unet(model: Any, folder: Path) -> Path:
    start = "model.diffusion_model."
    named = {k.removeprefix(start): v.clone() for k, v in to_compvis(model.pipeline).items() if k.startswith(start)}
    save_file(named, folder / "unet.safetensors")
    return folder / "unet.safetensors"


def whole_folder(model: Any, folder: Path) -> Path:
    model.pipeline.save_pretrained(folder / "edited")
    return folder / "edited"


def unet_folder(model: Any, folder: Path) -> Path:
    model.backbone.save_pretrained(folder / "unet-alone")
    return folder / "unet-alone"


def delta_bin(model: Any, folder: Path) -> Path:
    torch.save({"unet": part_of(model, "unet"), "modifier_token": {}}, folder / "delta.bin")
    return folder / "delta.bin"


def adversarial_text(model: Any, folder: Path) -> Path:
    """AdvUnlearn's: a module that holds the text encoder, and its parts once more under other names."""
    plain = {name.removeprefix("text_model."): value for name, value in part_of(model, "text_encoder").items()}
    whole = {f"text_encoder.text_model.{name}": value for name, value in plain.items()}
    again = {name.replace("embeddings.", "embedding."): value for name, value in plain.items()}
    file = folder / "TextEncoder-text_encoder_full-epoch_999.pt"
    torch.save(whole | again | {"text_encoder.text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    return file


def text_folder(model: Any, folder: Path) -> Path:
    model.text[0].module.save_pretrained(folder / "text")
    return folder / "text"


def text_file(model: Any, folder: Path) -> Path:
    """As older versions of transformers save it: a level more, and a buffer."""
    named = {f"text_model.{name}": value for name, value in part_of(model, "text_encoder").items()}
    save_file(named | {"text_model.embeddings.position_ids": torch.arange(3)}, folder / "te.safetensors")
    return folder / "te.safetensors"


FORMS: dict[str, tuple[Callable[[Any, Path], Path], tuple[str, ...]]] = {
    "UNet's state dict": (unet_file, ("unet",)),
    "with the component's prefix": (prefixed, ("unet",)),
    "of a parallel training": (parallel, ("unet",)),
    "CompVis": (compvis, ("unet", "vae", "text_encoder")),
    "UNet with CompVis' names": (compvis_unet, ("unet",)),
    "diffusers folder": (whole_folder, ("unet", "vae", "text_encoder")),
    "UNet's folder": (unet_folder, ("unet",)),
    "delta.bin": (delta_bin, ("unet",)),
    "AdvUnlearn's text encoder": (adversarial_text, ("text_encoder",)),
    "text encoder's folder": (text_folder, ("text_encoder",)),
    "text encoder's state dict": (text_file, ("text_encoder",)),
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [("tiny_v", form) for form in FORMS]
    + [("tiny_xl", form) for form in ("CompVis", "diffusers folder")]
    + [("tiny", "CompVis")],
)
def test_the_base_with_the_edit_is_what_was_published(
    kind: str, form: str, tmp_path: Path, snapshot: Any, request: pytest.FixtureRequest
) -> None:
    model, (write, parts) = request.getfixturevalue(kind), FORMS[form]
    if kind == "tiny_xl" and "text_encoder" in parts and len(parts) > 1:
        parts = (*parts, "text_encoder_2")
    before, deltas = snapshot(model), grown(model, some_of(model, *parts))
    with shifted(model, deltas):
        wanted = {name: own(model, name) for name in deltas}
        path = write(model, tmp_path)

    edit = difference(model, path, concepts=["Van Gogh"], method="esd")
    assert isinstance(edit, WeightEdit) and set(edit.parameters) == set(deltas)
    found = put_on(model, edit)
    assert all(torch.equal(found[name], wanted[name]) for name in deltas)
    assert not any(torch.equal(own(model, name), wanted[name]) for name in deltas)  # control: it was taken off
    assert snapshot(model) == before and edit.info.found["error"] == 0
    files = edit.info.found["files"]
    assert path.is_file() or len(files) == len(parts), "each file has its hash, whatever it is called"
    assert all(sha256((path if path.is_dir() else path.parent) / name) == told for name, told in files.items())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_thin_difference_becomes_a_low_rank_edit(
    kind: str, tmp_path: Path, snapshot: Any, request: pytest.FixtureRequest
) -> None:
    family = request.getfixturevalue(kind)
    before, deltas = snapshot(family), thin(family, keys_of(family))
    named = {name.removeprefix("unet."): own(family, name) + delta for name, delta in deltas.items()}
    save_file(named, tmp_path / "uce.safetensors")
    edit = difference(family, tmp_path / "uce.safetensors")
    assert isinstance(edit, LowRankEdit) and set(edit.parameters) == set(deltas)
    assert {factors.rank for factors in edit.factors.values()} == {2} and edit.info.found["rank"] == 2
    assert edit.info.found["error"] < 1e-5
    for name, value in put_on(family, edit).items():
        assert torch.allclose(value, named[name.removeprefix("unet.")], atol=1e-6), name
    assert edit.info.found["files"] == {"uce.safetensors": sha256(tmp_path / "uce.safetensors")}
    assert (edit.info.base, edit.info.method, edit.concept()) == (family.name, "imported", "uce")

    edit.save(tmp_path / "edit.safetensors")
    bank = Bank(family, [open_edit(tmp_path / "edit.safetensors")])
    with bank.applied():
        assert edit.concept() in bank.edits
    assert snapshot(family) == before


def test_a_difference_that_is_not_thin_is_dense_and_exact(tiny: DiffusionModel, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(2)
    deltas = {name: torch.randn(own(tiny, name).shape, generator=g) * 1e-3 for name in keys_of(tiny)}
    save_file({name: own(tiny, name) + delta for name, delta in deltas.items()}, tmp_path / "esd.safetensors")
    edit = difference(tiny, tmp_path / "esd.safetensors")
    assert isinstance(edit, WeightEdit) and edit.info.found["error"] < 1e-4
    loose = difference(tiny, tmp_path / "esd.safetensors", error=0.9)
    assert isinstance(loose, LowRankEdit) and 0.5 < loose.info.found["error"] <= 0.9
    given = difference(tiny, tmp_path / "esd.safetensors", rank=3)
    assert isinstance(given, LowRankEdit) and given.info.found["rank"] == 3
    for name, delta in given.deltas():
        sizes = torch.linalg.svdvals(deltas[name])
        left = float((deltas[name] - delta).norm())
        assert left == pytest.approx(float(sizes[3:].norm()), rel=1e-3)  # no rank 3 leaves less
    assert isinstance(difference(tiny, tmp_path / "esd.safetensors", error=0), WeightEdit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_a_half_precision_is_no_difference(
    dtype: torch.dtype, tiny_v: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deltas = thin(tiny_v, keys_of(tiny_v))
    with shifted(tiny_v, deltas):
        halves = {name: value.to(dtype) for name, value in part_of(tiny_v, "unet").items()}
    save_file(halves, tmp_path / "half.safetensors")
    rounded = [name for name, value in part_of(tiny_v, "unet").items() if not torch.equal(value, halves[name].float())]
    assert len(rounded) > 2 * len(deltas)  # control: as float32, most of them differ
    with caplog.at_level(logging.INFO, "mu"):
        edit = difference(tiny_v, tmp_path / "half.safetensors")
    assert set(edit.parameters) == set(deltas) and isinstance(edit, LowRankEdit)
    assert edit.info.found["rank"] == 2
    assert f"rounding to {str(dtype).removeprefix('torch.')}" in caplog.text
    eps = torch.finfo(dtype).eps
    for name, value in put_on(tiny_v, edit).items():
        other = halves[name.removeprefix("unet.")].float()
        assert (value - other).norm() < eps * other.norm()


def test_nor_is_the_rounding_of_a_base_that_was_stored_in_one(tiny_v: DiffusionModel, tmp_path: Path) -> None:
    deltas = thin(tiny_v, keys_of(tiny_v)[:2])
    with shifted(tiny_v, deltas):
        save_file(part_of(tiny_v, "unet"), tmp_path / "whole.safetensors")
    rounding = {f"unet.{name}": value.half().float() - value for name, value in part_of(tiny_v, "unet").items()}
    with shifted(tiny_v, rounding):
        half = {name: own(tiny_v, name) for name in rounding}
        assert set(difference(tiny_v, tmp_path / "whole.safetensors").parameters) == set(deltas)  # edits that are on
    kept = {name: find_parameter(tiny_v, name) for name in rounding}
    originals = {name: parameter.detach().clone() for name, parameter in kept.items()}
    assert sum(not torch.equal(half[name], originals[name]) for name in half) > 2 * len(deltas)  # control
    with torch.no_grad():
        try:
            for name, parameter in kept.items():
                parameter.copy_(half[name])
            assert set(difference(tiny_v, tmp_path / "whole.safetensors").parameters) == set(deltas)
        finally:
            for name, parameter in kept.items():
                parameter.copy_(originals[name])


def test_only_some_components(tiny_v: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deltas = grown(tiny_v, some_of(tiny_v, "unet", "vae"))
    with shifted(tiny_v, deltas):
        path = whole_folder(tiny_v, tmp_path)
    edit = difference(tiny_v, path, components=["unet"])
    assert set(edit.parameters) == {name for name in deltas if name.startswith("unet.")} and "vae" in caplog.text
    with pytest.raises(EditError, match="unet, vae alone"):
        difference(tiny_v, path, components=["text_encoder"])
    with pytest.raises(ConfigError, match="'unet'"):
        difference(tiny_v, path, components=["unnet"])
    with pytest.raises(ConfigError, match="holds the unet, and not the vae"):
        difference(tiny_v, unet_file(tiny_v, tmp_path), components=["vae"])


def test_which_text_encoder_is_told_by_shapes(tiny_xl: DiffusionModel, tmp_path: Path) -> None:
    for part in ("text_encoder", "text_encoder_2"):
        with shifted(tiny_xl, grown(tiny_xl, some_of(tiny_xl, part))):
            layers = {k: v for k, v in part_of(tiny_xl, part).items() if "text_projection" not in k}
            save_file(layers, tmp_path / f"{part}.safetensors")
            tiny_xl.components[part].save_pretrained(tmp_path / part)
        for path in (tmp_path / f"{part}.safetensors", tmp_path / part):
            assert {name.split(".")[0] for name in difference(tiny_xl, path).parameters} == {part}
    save_file({"encoder.layers.0.self_attn.q_proj.bias": torch.ones(7)}, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=r"q_proj\.bias"):
        difference(tiny_xl, tmp_path / "odd.safetensors")


def test_other_settings_of_a_folder_are_named(
    tiny_v: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with shifted(tiny_v, grown(tiny_v, some_of(tiny_v, "unet"))):
        path = whole_folder(tiny_v, tmp_path)
    difference(tiny_v, path)
    assert "also in" not in caplog.text  # control
    file = path / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("v_prediction", "epsilon"), encoding="utf-8")
    difference(tiny_v, path)
    assert "scheduler (prediction_type)" in caplog.text


def test_embeddings_of_new_tokens_are_named(
    tiny: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = keys_of(tiny)[0]
    unet = {name.removeprefix("unet."): own(tiny, name) + 1}
    torch.save({"unet": unet, "modifier_token": {"<new1>": torch.ones(4)}}, tmp_path / "delta.bin")
    assert difference(tiny, tmp_path / "delta.bin").parameters == [name] and "<new1>" in caplog.text


# -- names and layouts of published checkpoints -------------------------------------------------------------------------


def mace_folder(model: Any, named: Named, folder: Path) -> Path:
    """A pipeline without a safety checker, its UNet in a pickle."""
    with shifted(model, {name: value - own(model, name) for name, value in named.items()}):
        model.pipeline.save_pretrained(folder / "CFR_with_multi_LoRAs", safe_serialization=False)
    return folder / "CFR_with_multi_LoRAs"


def as_compvis(model: Any, named: Named) -> Named:
    """The ``named`` parameters of the UNet by CompVis' names."""
    with shifted(model, {name: value - own(model, name) for name, value in named.items()}):
        after = {key: value.clone() for key, value in to_compvis(model.pipeline).items()}
    before = to_compvis(model.pipeline)
    return {key: value for key, value in after.items() if not torch.equal(value, before[key])}


def saved(content: Any, file: Path) -> Path:
    (save_file if file.suffix == ".safetensors" else torch.save)(content, file)
    return file


def bare(named: Named) -> Named:
    return {name.removeprefix("unet."): value for name, value in named.items()}


PUBLISHED: dict[str, Callable[[Any, Named, Path], Path]] = {
    "ESD of 2023, diffusers": lambda model, named, folder: saved(
        part_of(model, "unet") | bare(named), folder / "diffusers-VanGogh-ESDx1-UNET.pt"
    ),
    "ESD of 2023, CompVis": lambda model, named, folder: saved(
        to_compvis(model.pipeline) | as_compvis(model, named), folder / "compvis-word_VanGogh-method_xattn-sg_3-ng_1.pt"
    ),
    "ESD of 2025": lambda model, named, folder: saved(
        bare(named), folder / "esd-Van_Gogh-from-Van_Gogh-esdx.safetensors"
    ),
    "UCE of 2023": lambda model, named, folder: saved(
        part_of(model, "unet") | bare(named),
        folder / "erased-van gogh-towards_art-preserve_true-sd_1_4-method_replace.pt",
    ),
    "UCE of 2025": lambda model, named, folder: saved(bare(named), folder / "erased-van gogh.safetensors"),
    "MACE": mace_folder,
    "SPEED": lambda model, named, folder: saved(bare(named), folder / "weight.pt"),
    "Concept Ablation": lambda model, named, folder: saved({"unet": bare(named)}, folder / "delta.bin"),
    "Concept Ablation, CompVis": lambda model, named, folder: saved(
        {"state_dict": as_compvis(model, named) | {"embed": torch.ones(1, 8)}}, folder / "delta_epoch=000004.ckpt"
    ),
}
"""Each writes the ``named`` edited parameters of the UNet as the program of the paper does."""


@pytest.mark.parametrize("form", PUBLISHED)
def test_what_erasers_publish_is_read_by_any_of_their_names(
    form: str, tiny_v: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deltas = grown(tiny_v, keys_of(tiny_v))
    path = PUBLISHED[form](tiny_v, {name: own(tiny_v, name) + delta for name, delta in deltas.items()}, tmp_path)
    edit = difference(tiny_v, path, concepts=["Van Gogh"], error=0)
    assert set(edit.parameters) == set(deltas) and edit.info.config == {
        "file": path.stem if path.is_file() else path.name
    }
    found = put_on(tiny_v, edit)
    assert all(torch.equal(found[name], own(tiny_v, name) + delta) for name, delta in deltas.items())
    assert ("new tokens" in caplog.text) == ("CompVis" in form and "Ablation" in form)


OTHER_FILES: dict[str, tuple[Any, str]] = {
    "cache_final.pt": ({"0_for_mat1": torch.ones(4, 4), "0_for_mat2": torch.ones(4, 4)}, "'0_for_mat1'"),
    "receler.pt": ({"down_blocks.0": {"adapter_down.weight": torch.ones(2, 4)}}, "'down_blocks.0.adapter_down.weight'"),
    "sae.pt": ({"state_dict": {"encoder.weight": torch.ones(2, 4), "b_dec": torch.ones(4)}}, "'encoder.weight'"),
    "with-optimizer.pt": ({"unet": {}, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "exp_avg"),
    "losses.pt": ([torch.ones(3)], "holds no named tensors"),
}
"""Caches, adapters and features of erasers, which are no weights of the model: content, and what the refusal names."""


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_is_no_weights_is_one_line_that_names_it(name: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    content, told = OTHER_FILES[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(ModelError, match=told) as caught:
        difference(tiny, tmp_path / name)
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_the_same_numbers_twice_are_no_trouble(tiny: DiffusionModel, tmp_path: Path) -> None:
    name = keys_of(tiny)[0]
    value = own(tiny, name) + 1
    torch.save({name: value, name.removeprefix("unet."): value.clone()}, tmp_path / "both.pt")
    assert difference(tiny, tmp_path / "both.pt").parameters == [name]


def test_an_edit_passes_through(tiny: DiffusionModel, tmp_path: Path) -> None:
    layer = keys_of(tiny)[0].removesuffix(".weight")
    out, width = own(tiny, f"{layer}.weight").shape
    lora = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(out, 1)}
    save_file(lora, tmp_path / "snoopy.safetensors")
    edit = difference(tiny, tmp_path / "snoopy.safetensors")
    assert isinstance(edit, LowRankEdit) and edit.parameters == [f"{layer}.weight"]
    assert edit.info.base == tiny.name and edit.info.fingerprint and edit.concept() == "snoopy"
    named = difference(tiny, tmp_path / "snoopy.safetensors", concepts=["Snoopy"], method="spm")
    assert (named.concept(), named.info.method) == ("Snoopy", "spm")
    with pytest.raises(ConfigError, match="already"):
        difference(tiny, tmp_path / "snoopy.safetensors", rank=1)

    mine = LowRankEdit(
        {f"{layer}.weight": Factors(torch.ones(1, width), torch.ones(out, 1), 1.0)}, EditInfo("spm", ("a",), base="b")
    )
    mine.save(tmp_path / "mine.safetensors")
    assert difference(tiny, tmp_path / "mine.safetensors").info == mine.info


def test_what_mu_merges_reads_back(tiny: DiffusionModel, tmp_path: Path) -> None:
    edit = WeightEdit(grown(tiny, some_of(tiny, "unet")), EditInfo("esd", ("neon",)))
    back = difference(tiny, export(Bank(tiny, [edit]), tmp_path / "own.safetensors", "unet"))
    assert set(back.parameters) == set(edit.parameters)
    found, wanted = put_on(tiny, back), put_on(tiny, edit)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# -- refused -----------------------------------------------------------------------------------------------------------


def test_equal_weights_are_nothing_to_import(tiny_v: DiffusionModel, tmp_path: Path) -> None:
    save_file(part_of(tiny_v, "unet"), tmp_path / "same.safetensors")
    save_file({k: v.half() for k, v in part_of(tiny_v, "unet").items()}, tmp_path / "half.safetensors")
    for name, told in {"same": "nothing to import", "half": "up to the rounding"}.items():
        with pytest.raises(EditError, match=f"equals 'tiny-v'.*{told}"):
            difference(tiny_v, tmp_path / f"{name}.safetensors")


def strange(named: Named) -> Named:
    return named | {"unet.conv_in.scale": torch.ones(1), "zzz": torch.ones(1)}


def wrong_shape(named: Named) -> Named:
    return named | {"conv_in.weight": torch.ones(3, 3)}


def twice(named: Named) -> Named:
    return named | {"unet.conv_in.weight": named["conv_in.weight"] + 1}


def not_finite(named: Named) -> Named:
    return named | {"conv_in.bias": torch.full_like(named["conv_in.bias"], float("nan"))}


def whole_numbers(named: Named) -> Named:
    return named | {"conv_in.bias": torch.ones_like(named["conv_in.bias"], dtype=torch.int8)}


def empty(named: Named) -> Named:
    name = next(name for name, tensor in named.items() if tuple(tensor.shape[2:]) == (1, 1))
    return named | {name: named[name][:, :, :0]}


def one_number(named: Named) -> Named:
    return named | {"conv_in.bias": torch.tensor(1.0)}


def without_parameters(named: Named) -> Named:
    return {"v_pred": torch.zeros(0), "model_ema.diffusion_modelconv_inbias": named["conv_in.bias"]}


REFUSED: dict[str, tuple[Callable[[Named], Mapping[str, Tensor]], str]] = {
    "an unknown key": (strange, "unet.conv_in.scale"),
    "another shape": (wrong_shape, "architecture.*3 x 3"),
    "a parameter twice": (twice, "conv_in.weight twice.*other numbers"),
    "no finite number": (not_finite, "not finite in unet.conv_in.bias"),
    "whole numbers": (whole_numbers, "conv_in.bias is int8"),
    "a side of zero": (empty, "another architecture.* x 0 x 1"),
    "one number": (one_number, "'conv_in.bias' is one number"),
    "markers and an EMA copy": (without_parameters, "holds no weights of '.*tiny'"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused_by_name(row: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    change, told = REFUSED[row]
    save_file(dict(change(part_of(tiny, "unet"))), tmp_path / "it.safetensors")
    with pytest.raises((EditError, ModelError), match=told):
        difference(tiny, tmp_path / "it.safetensors")


@pytest.mark.parametrize("form", ["CompVis", "diffusers folder", "UNet's state dict", "text encoder's folder"])
def test_another_architecture_is_one_line(
    form: str, tiny: DiffusionModel, tiny_xl: DiffusionModel, tmp_path: Path
) -> None:
    path = FORMS[form][0](tiny_xl, tmp_path)
    with pytest.raises(ModelError, match="name the model that it was made from"):
        difference(tiny, path)


def test_a_folder_must_be_whole(tiny_v: DiffusionModel, tmp_path: Path) -> None:
    path = unet_folder(tiny_v, tmp_path)
    file = path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("conv_in.bias")
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"lacks the tensor conv_in\.bias"):
        difference(tiny_v, path)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(ModelError, match="holds 0 files"):
        difference(tiny_v, path)


@pytest.mark.parametrize("options", [{"rank": 0}, {"error": 1.5}, {"error": float("nan")}, {"rank": 2, "error": 0.1}])
def test_settings_that_do_not_fit(options: dict[str, Any], tiny: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        difference(tiny, tmp_path / "nothing.pt", **options)


def test_no_rank_of_what_is_no_matrix(tiny_v: DiffusionModel, tmp_path: Path) -> None:
    with shifted(tiny_v, grown(tiny_v, ["unet.conv_in.weight"])):
        path = unet_file(tiny_v, tmp_path)
    with pytest.raises(EditError, match=r"conv_in\.weight"):
        difference(tiny_v, path, rank=4)


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 40), (400, 300), (400, 300, 1, 1)])
def test_factors_have_the_smallest_rank(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(3)
    sizes = 0.5 ** torch.arange(12)
    ends = [torch.linalg.qr(torch.randn(n, 12, generator=g)).Q for n in shape[:2]]
    matrix = (ends[0] * sizes @ ends[1].T).reshape(shape)
    tolerated = 1e-2 * float(matrix.norm())
    found = factored(matrix, tolerated)
    assert found is not None
    left = [float(sizes[r:].norm()) for r in range(13)]
    assert found.rank == next(r for r in range(13) if left[r] <= tolerated)
    assert float((found.dense(shape) - matrix).norm()) == pytest.approx(left[found.rank], rel=1e-3)
    given, more = (factored(matrix, tolerated, rank) for rank in (2, 30))
    assert given is not None and more is not None and (given.rank, more.rank) == (2, found.rank)
    again = factored(matrix, tolerated)
    assert again is not None and torch.equal(found.down, again.down) and torch.equal(found.up, again.up)


def test_a_full_matrix_has_no_thin_factors() -> None:
    g = torch.Generator().manual_seed(4)
    for shape in ((96, 40), (400, 300)):
        matrix = torch.randn(shape, generator=g)
        assert factored(matrix, 1e-3 * float(matrix.norm())) is None


def test_tensors_of_a_pickle_are_read_one_at_a_time(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    torch.save(
        {"unet": {"a": shared[:3], "b": shared[3:]}, "c": {"d": {"e": torch.ones(2)}}, "step": 4}, tmp_path / "x.bin"
    )
    with open_weights(tmp_path / "x.bin") as file:
        assert file.shapes == {"unet.a": (3,), "unet.b": (3,), "c.d.e": (2,)}
        assert file.read("unet.b").tolist() == [3, 4, 5] and file.read("c.d.e").tolist() == [1, 1]
        assert file.read("unet.a").tolist() == [0, 1, 2]
