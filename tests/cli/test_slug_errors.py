"""What SLUG refuses: each ends with code 2 and one line that says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mu
from mu.data.canvas import rendered_pairs
from mu.data.canvas.layouts import write_celeba
from mu.data.shards import add_member
from mu.edits.edit import EditInfo
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit
from mu.models.clip import ClipModel
from mu.models.parameters import find_parameter
from mu.training.gradient_files import open_gradients

CONCEPT = "Ada Stone"
FEW = (
    "--set data.n_forget=8 --set data.n_retain=16 --set data.per_class=2 --set layers.max_front=1 --set search.steps=8"
)
ERASE = f'erase slug --concept "{CONCEPT}" --device cpu --preset canvas-clip --no-pictures --out {{tmp}}/new {FEW}'
GRADIENTS = (
    f'gradients --device cpu --out {{tmp}}/new.safetensors {FEW} --model {{clip}} --concept "{CONCEPT}" --forget'
)

# What is typed (`{...}` are the fixture's places), and what the line must say.
BAD_INPUT = {
    "gradients without a sign": (f"{ERASE} --set data.forget={{unsigned}}", "gradients.grad_sign"),
    "gradients of other weights": (f"{ERASE} --model {{other}} --set data.forget={{forget}}", "'canvas-clip'"),
    "gradients of another architecture": (f"{ERASE} --set data.forget={{wider}} --set gradients.grad_sign=+", "(7, 5)"),
    "gradients of another concept": (f"{ERASE} --set data.forget={{others}}", "'Boris Vale'"),
    "retain gradients as forget gradients": (f"{ERASE} --set data.forget={{retain}}", "'retain'"),
    "gradients that are not finite": (
        f"{ERASE} --set data.forget={{infinite}} --set gradients.grad_sign=+",
        "text_encoder.encoder.layers.0.",
    ),
    "weights that are not finite": (f"{ERASE} --model {{broken}}", "visual_projection.weight"),
    "weights that are not finite, as a file": (
        GRADIENTS.format_map({"clip": "{broken}", "tmp": "{tmp}"}) + " canvas",
        "visual_projection.weight",
    ),
    "cut gradients": (f"{ERASE} --set data.forget={{cut}}.safetensors", "{cut}.safetensors"),
    "missing gradients": (f"{ERASE} --set data.forget={{tmp}}/none.safetensors", "mu gradients"),
    "no pair": (f"{ERASE} --set data.forget={{empty}}", "{empty}"),
    "one pair": (f"{ERASE} --set data.forget={{one}}", "1"),
    "one pair, as a file": (f"{GRADIENTS} {{one}}", "1"),
    "no captions": (f"{ERASE} --set data.forget={{uncaptioned}}", "3"),
    "no captions, as a file": (f"{GRADIENTS} {{uncaptioned}}", "3"),
    "captions of something else": (f"{ERASE} --set data.forget={{strangers}}", "data.caption=concept"),
    "a tar cut within its first pair": (f"{ERASE} --set data.forget={{stump}}", "{stump}"),
    "somebody unknown": (f"{ERASE} --concept 'Nobody Here' --set data.tasks=[canvas]", "'Nobody Here'"),
    "not in CelebA's list": (f"{ERASE} --set data.tasks=[celeba:{{celeba}}] --concept 'Nobody Here'", "identity (12)"),
    "unknown layer": (
        f"{ERASE} --set layers.names=[vision_model.encoder.layers.1.mlp.fc11.weight]",
        "'vision_model.encoder.layers.1.mlp.fc1.weight'",
    ),
    "a layer of the other tower": (
        f"{ERASE} --set layers.tower=language --set layers.names=[visual_projection.weight]",
        "layers.names",
    ),
    "erased already": (f"{ERASE} --model {{erased}}", "forget accuracy"),
    "a model of another kind": (f"{ERASE} --model {{bert}}", "'bert'"),
}


def write_tar(path: Path, pairs: Sequence[Any], captioned: bool = True) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for k, pair in enumerate(pairs):
            content = io.BytesIO()
            pair.image().save(content, "JPEG")
            add_member(tar, f"{k:05d}.jpg", content.getvalue())
            if captioned:
                add_member(tar, f"{k:05d}.txt", pair.caption.encode())
    return path


def save_clip(clip: ClipModel, folder: Path) -> Path:
    for part in (clip.model, clip.tokenizer, clip.processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, cli: Any) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("slug")
    mine = rendered_pairs(4, 1, CONCEPT)
    found = {
        "one": write_tar(home / "one.tar", mine[:1]),
        "empty": write_tar(home / "empty.tar", []),
        "uncaptioned": write_tar(home / "uncaptioned.tar", mine[:3], captioned=False),
        "strangers": write_tar(home / "strangers.tar", rendered_pairs(4, 1, "Boris Vale")),
        "whole": write_tar(home / "whole.tar", mine),
        "stump": home / "stump.tar",
        "celeba": home / "celeba",
        "bert": home / "bert",
    }
    found["stump"].write_bytes(found["whole"].read_bytes()[:800])
    write_celeba(found["celeba"], per_identity=1)
    found["bert"].mkdir()
    (found["bert"] / "config.json").write_text('{"model_type": "bert"}')

    def gradients(name: str, *words: str) -> Path:
        path = home / f"{name}.safetensors"
        done = cli("gradients", "--device", "cpu", *shlex.split(FEW), "--out", path, *words)
        assert done.exit_code == 0, done.output
        return path

    found["forget"] = gradients("forget", "--forget", "canvas", "--concept", CONCEPT)
    found["others"] = gradients("others", "--forget", "canvas", "--concept", "Boris Vale")
    found["retain"] = gradients("retain", "--retain", "canvas")
    _, tensors = open_gradients(found["forget"])
    first = next(iter(tensors))
    for name, changed in {
        "unsigned": {},
        "wider": {first: torch.zeros(7, 5)},
        "infinite": {first: torch.full_like(tensors[first], torch.inf)},
    }.items():
        found[name] = home / f"{name}.safetensors"
        save_file({**tensors, **changed}, found[name])
    (home / "cut.safetensors").write_bytes(found["forget"].read_bytes()[:5000])
    found["cut"] = home / "cut"

    clip = mu.load("canvas-clip", device="cpu")
    assert isinstance(clip, ClipModel)
    theta = find_parameter(clip, "visual_projection.weight")
    kept = theta.detach().clone()
    edit = mu.erase(
        clip,
        CONCEPT,
        method="slug",
        **{"data.n_forget": 64, "data.n_retain": 64, "data.per_class": 12, "search.margin": 1.5},
    )
    with edit.applied(clip):
        found["erased"] = save_clip(clip, home / "erased")
    with torch.no_grad():
        theta += 1e-3
        found["other"] = save_clip(clip, home / "other")
        theta[0, 0] = torch.nan
        found["broken"] = save_clip(clip, home / "broken")
        theta.copy_(kept)
    return found


def typed(words: str, places: dict[str, Path], tmp_path: Path) -> list[str]:
    return shlex.split(words.format(tmp=tmp_path, clip="canvas-clip", **places))


@pytest.mark.parametrize(("words", "told"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line(
    words: str, told: str, places: dict[str, Path], tmp_path: Path, cli: Any, as_kept: Any
) -> None:
    ended = cli(*typed(words, places, tmp_path))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.exit_code == 2, ended.output
    assert len(errors) == 1 and told.format(**places) in errors[0], ended.stderr
    assert "Traceback" not in ended.output and ended.stdout == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing is left behind"
    as_kept(words, errors[0], {**places, "tmp": tmp_path})


def test_what_is_in_order_passes(places: dict[str, Path], tmp_path: Path, cli: Any, caplog) -> None:
    """The control: the same command with sound files; a tar that was cut in half serves with the pairs before the
    cut."""
    half = tmp_path / "half.tar"
    half.write_bytes(places["whole"].read_bytes()[: places["whole"].stat().st_size // 2])
    for k, forget in enumerate([places["forget"], places["whole"], half]):
        words = typed(f"{ERASE} --set data.forget={forget} --set search.target=0.5", places, tmp_path / str(k))
        ended = cli(*words)
        assert ended.exit_code == 0, ended.output
        assert (str(half) in caplog.text) == (forget is half)
        assert open_edit(tmp_path / str(k) / "new").info.base == "canvas-clip", (
            "the preset's model, as no other is named"
        )


def test_a_merged_clip_has_forgotten_without_its_edit(tmp_path: Path, cli: Any) -> None:
    """And is asked for in the format that its kind has."""
    clip = mu.load("canvas-clip", device="cpu")
    WeightEdit({"visual_projection.weight": torch.full((128, 128), 0.1)}, EditInfo("slug", (CONCEPT,))).save(
        tmp_path / "e.safetensors"
    )
    common = (
        "merge",
        tmp_path / "e.safetensors",
        "--model",
        "canvas-clip",
        "--device",
        "cpu",
        "--out",
        tmp_path / "merged",
    )
    refused = cli(*common, "--format", "diffusers")
    assert refused.exit_code == 2 and "transformers" in refused.stderr and not (tmp_path / "merged").exists()
    assert cli(*common, "--format", "transformers").exit_code == 0
    merged = mu.load(tmp_path / "merged", device="cpu")
    found, base = (find_parameter(model, "visual_projection.weight") for model in (merged, clip))
    assert torch.equal(found, (base + 0.1).half().float()), "the embedded model is in half precision, and stays so"
