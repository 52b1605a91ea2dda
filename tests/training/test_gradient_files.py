"""Gradient files: what is written is read, with its sign; another loss, person or model is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import mu
from mu.algorithms import algorithm
from mu.algorithms.single_layer_unlearning_gradient.configs import SlugConfig
from mu.algorithms.single_layer_unlearning_gradient.data_handler import SingleLayerUnlearningGradientDataHandler
from mu.core.errors import ConfigError, DataError, EditError, ModelError, OutputError
from mu.edits.edit import EditInfo, shifted
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit
from mu.models.clip import ClipModel
from mu.models.contrastive import encode_pairs
from mu.models.formats.open_clip_names import open_clip_map
from mu.models.formats.packing import pack
from mu.models.parameters import find_parameter, select
from mu.training.gradient_files import GradientInfo, described_model, open_gradients, read_gradients, write_gradients

NAMES = ["text_projection.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"]
WANTED: dict[str, Any] = {"kind": "forget", "loss": "cosine", "concept": "Ada Stone"}
TINY = {"data.n_forget": 4, "data.n_retain": 8, "gradients.batch_size": 4}


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    found = mu.load("canvas-clip", device="cpu")
    assert isinstance(found, ClipModel)
    return found


@pytest.fixture
def written(clip: ClipModel, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    gradients = {name: torch.randn_like(find_parameter(clip, name)) for name in NAMES}
    info = GradientInfo(kind="forget", loss="cosine", pairs=9, concept="Ada Stone", **described_model(clip, NAMES))
    write_gradients(tmp_path / "g.safetensors", gradients, info)
    return tmp_path / "g.safetensors", gradients


def test_written_and_read_they_are_the_same_and_say_what_they_are(written, clip: ClipModel) -> None:
    path, gradients = written
    found = read_gradients(path, clip, NAMES, **WANTED)
    assert all(torch.equal(found[name], gradients[name]) for name in NAMES)
    info, _ = open_gradients(path)
    assert info and (info.sign, info.pairs, info.model, info.batch_size) == ("+grad", 9, "canvas-clip", None)
    assert info.versions["torch"]
    assert list(read_gradients(path, clip, NAMES[:1], "+", **WANTED)) == NAMES[:1], "a part of them is enough"
    assert read_gradients(path, clip, NAMES, concept="ada_stone"), "underscores and case are no other person"


@pytest.mark.parametrize(
    ("wanted", "sign", "said"),
    [
        ({"kind": "retain"}, None, "(?=.*'forget').*'retain'"),
        ({"loss": "contrastive"}, None, "(?=.*'cosine').*'contrastive'"),
        ({"concept": "Boris Vale"}, None, "(?=.*'Ada Stone').*'Boris Vale'"),
        ({"batch_size": 16}, None, r"(?=.*\bNone\b).*\b16\b"),
        ({}, "-", r"gradients\.grad_sign"),
    ],
)
def test_another_gradient_than_wanted_is_refused(written, clip: ClipModel, wanted: dict, sign: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_gradients(written[0], clip, NAMES, sign, **wanted)


def test_another_models_file_is_refused_by_its_weights_names_and_shapes(
    written, clip: ClipModel, tiny: Any, tmp_path
) -> None:
    path, _ = written
    other: Any = mu.load("canvas-clip", device="cpu")
    assert read_gradients(path, other, NAMES), "control: the same weights loaded again"
    with torch.no_grad():
        find_parameter(other, NAMES[0]).mul_(1.5)
    with pytest.raises(DataError, match=r"g\.safetensors.*'canvas-clip'") as refused:
        read_gradients(path, other, NAMES)
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=r"g\.safetensors.*text_projection\.weight"):
        read_gradients(path, tiny, NAMES)
    save_file({NAMES[0]: torch.zeros(2, 2)}, tmp_path / "small.safetensors")
    with pytest.raises(DataError, match=r"small\.safetensors"):
        read_gradients(tmp_path / "small.safetensors", clip, NAMES[:1], "+")
    with pytest.raises(DataError, match=r"visual_projection\.weight"):
        read_gradients(path, clip, ["visual_projection.weight"])


def test_without_metadata_the_sign_must_be_told_and_names_may_be_open_clips(
    written, clip: ClipModel, tmp_path: Path
) -> None:
    _, gradients = written
    save_file(gradients, tmp_path / "bare.safetensors")
    with pytest.raises(DataError, match=r"gradients\.grad_sign"):
        read_gradients(tmp_path / "bare.safetensors", clip, NAMES)
    plus, minus = (read_gradients(tmp_path / "bare.safetensors", clip, NAMES, sign) for sign in ("+", "-"))
    assert all(
        torch.equal(plus[name], gradients[name]) and torch.equal(minus[name], -gradients[name]) for name in NAMES
    )
    save_file(pack(gradients, open_clip_map(gradients)), tmp_path / "open.safetensors")
    assert NAMES[0] not in pack(gradients, open_clip_map(gradients)), "control: the names are others"
    renamed = read_gradients(tmp_path / "open.safetensors", clip, NAMES, "+")
    assert all(torch.equal(renamed[name], gradients[name]) for name in NAMES)


class Hostile:
    """A pickle is a program: this one leaves a file behind where it is run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_the_released_programs_pickles_are_read_where_their_sign_is_told(
    clip: ClipModel, tmp_path: Path, layout: str
) -> None:
    """They hold every parameter, and 0 for one that the loss does not see."""
    gradients = {name: torch.randn_like(p) for name, p in select(clip, "*").items()}
    if layout == "open_clip":
        named, sign = {name: -g for name, g in pack(gradients, open_clip_map(gradients)).items()}, "-"
    else:
        named, sign = {name.replace("text_encoder.", "text_model."): g for name, g in gradients.items()}, "+"
    assert not set(named) >= set(gradients), "control: the names are others"
    path = tmp_path / "forget_grads.pt"
    torch.save({**named, "logit_scale": 0, "history": Hostile(tmp_path / "was run")}, path)
    with pytest.raises(DataError, match=r"gradients\.grad_sign.*mu gradients") as refused:
        read_gradients(path, clip, NAMES)
    assert "\n" not in str(refused.value)
    found = read_gradients(path, clip, list(gradients), sign)  # type: ignore[arg-type]
    assert all(torch.equal(found[name], g) for name, g in gradients.items())
    assert not (tmp_path / "was run").exists()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=path.name):
        read_gradients(path, clip, NAMES, "+")
    source = str(tmp_path / "{concept}_grads.pt")
    data = SingleLayerUnlearningGradientDataHandler(
        SlugConfig().merged({"data": {"forget": source, "retain": "a.tar"}})
    )
    assert data.gradient_file("forget", "Elon Musk") == str(tmp_path / "Elon_Musk_grads.pt")
    assert data.gradient_file("retain", "") is None


def test_damaged_and_foreign_files_are_one_clear_line(written, clip: ClipModel, tmp_path: Path) -> None:
    path, gradients = written
    with pytest.raises(OutputError, match="--overwrite"):
        write_gradients(path, gradients, GradientInfo("forget", "cosine", 1))
    with pytest.raises(OutputError, match=r"\.safetensors"):
        write_gradients(tmp_path / "g.pt", gradients, GradientInfo("forget", "cosine", 1))
    with pytest.raises(DataError, match=r"none\.safetensors"):
        open_gradients(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.safetensors"):
        open_gradients(tmp_path / "cut.safetensors")
    WeightEdit(gradients, EditInfo(method="slug", concepts=("Ada Stone",))).save(tmp_path / "edit.safetensors")
    with pytest.raises(DataError, match=r"edit\.safetensors"):
        open_gradients(tmp_path / "edit.safetensors")
    with pytest.raises(EditError, match=path.name):
        open_edit(path)


def test_a_step_along_a_file_written_by_slug_lowers_the_cosine_of_its_pairs(clip: ClipModel, tmp_path: Path) -> None:
    slug = algorithm("slug")
    work: Any = slug(slug.for_concepts(["Ada Stone"], "canvas-clip").merged(TINY), model=clip)
    made = work.save_gradients("forget", tmp_path / "f.safetensors", "Ada Stone")
    assert (made.kind, made.loss, made.pairs, made.batch_size, made.captions) == ("forget", "cosine", 4, None, "own")
    kept = work.save_gradients("retain", tmp_path / "r.safetensors")
    assert (kept.kind, kept.loss, kept.pairs, kept.batch_size, kept.concept) == ("retain", "contrastive", 8, 4, "")
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        names = list(file.keys())
        assert json.loads(file.metadata()["mu.sign"]) == "+grad"
    assert names and not any(mark in name for name in names for mark in ("bias", "embedding", "logit_scale"))

    data = SingleLayerUnlearningGradientDataHandler(work.config)
    computed, _ = work._gradients("forget", data, "Ada Stone", work._candidates())
    read = work.config.merged({"data.forget": str(tmp_path / "{concept}.safetensors")})
    (tmp_path / "f.safetensors").rename(tmp_path / "Ada_Stone.safetensors")
    again: Any = slug(read, model=clip)
    again.load_model()
    found, _ = again._gradients(
        "forget", SingleLayerUnlearningGradientDataHandler(read), "Ada Stone", again._candidates()
    )
    assert found.keys() == computed.keys() and all(torch.allclose(found[n], computed[n], atol=1e-7) for n in found)

    pairs, name = data.pairs("forget", "Ada Stone"), "text_projection.weight"

    def cosine() -> float:
        v, t = encode_pairs(clip, pairs)
        return float((v * t).sum(dim=1).mean())

    step = 0.1 * find_parameter(clip, name).norm() / found[name].norm()
    before = cosine()
    with shifted(clip, {name: step * found[name]}):
        lower = cosine()
    with shifted(clip, {name: -step * found[name]}):
        higher = cosine()
    assert lower < before - 0.01 and higher > lower

    again.config = read.merged({"gradients.compat": ["cumulative"]})
    with pytest.raises(ConfigError, match=r"gradients\.compat"):
        again._gradients("forget", SingleLayerUnlearningGradientDataHandler(read), "Ada Stone", {})
