"""The commands of separable erasure's first documents, on the embedded world: what they write, and that wrong ones say
so."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LMSDiscreteScheduler
from PIL import Image
from torch import Tensor

import mu
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import EditInfo, described
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit
from mu.models import EMBEDDED
from mu.models.parameters import find_parameter
from tests.conftest import ROOT, Call

CSV = "case_number,,prompt,artist,evaluation_seed\n3,0,neon,Somebody,188\n7,1,a star image,Somebody,288\n"
PUBLISHED = "compvis-word_VanGogh-method_xattn-sg_3-ng_1-iter_1000-lr_1e-05"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


QUICK = "--base canvas --ddim_steps 2"


def test_images_of_a_concept(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = (
        "eval-scripts/generate-data.py --model_name='Van Gogh' --save_path './data/' --num_samples 1 --device cuda:0"
    )
    assert call(f"{command} {QUICK} --cases 2") == 0
    folder = tmp_path / "data" / "Van Gogh"
    assert names(folder) == {"0_0.png", "1_0.png"}
    if not torch.cuda.is_available():
        assert "'cuda:0'" in caplog.text
    assert (pixels(folder / "0_0.png") != pixels(folder / "1_0.png")).any()  # every case has a seed of its own
    before = (folder / "0_0.png").read_bytes()
    assert call(f"{command} {QUICK} --cases 2") == 2  # nothing is overwritten
    assert call(f"{command} {QUICK} --cases 3 --resume") == 0
    assert names(folder) == {"0_0.png", "1_0.png", "2_0.png"} and (folder / "0_0.png").read_bytes() == before
    assert (
        call(
            "eval-scripts/generate-data.py --model_name=canvas --prompt neon --save_path data --cases 1 --ddim_steps 2"
        )
        == 0
    )
    assert names(tmp_path / "data" / "canvas") == {"0_0.png"}


def test_images_of_a_list_by_an_edited_model(call: Call, tmp_path: Path) -> None:
    (tmp_path / "art_prompts.csv").write_text(CSV)
    images = "eval-scripts/generate-images.py --prompts_path art_prompts.csv --save_path evaluation_folder --num_samples 2 --ddim_steps 2"
    train = "train-scripts/Esd.py --prompt 'Van Gogh' --train_method 'xattn' --iterations 2 --devices '0,1' --model_name canvas --ddim_steps 2"
    assert call(train) == 0
    name = PUBLISHED.replace("1000", "2")
    assert open_edit(tmp_path / "models" / name).info.concepts == ("Van Gogh",)
    assert call(f"{images} --model_name='{name}'") == 0
    assert names(tmp_path / "evaluation_folder" / name) == {"3_0.png", "3_1.png", "7_0.png", "7_1.png"}
    assert call(f"{images} --model_name=canvas --from_case 7") == 0
    assert names(tmp_path / "evaluation_folder" / "canvas") == {"7_0.png", "7_1.png"}
    # The first sample has the row's own seed, by the sampler of the released program.
    found = pixels(tmp_path / "evaluation_folder" / "canvas" / "7_0.png")
    assert np.abs(found - by_the_released_sampler(mu.load("canvas"), "a star image", 288, steps=2)).max() < 1


def by_the_released_sampler(model: Any, prompt: str, seed: int, steps: int, **settings: Any) -> np.ndarray:
    """Pixels (h, w, 3) in 0..255 of the stock classes, set up and called one by one as the released script does."""
    scheduler = LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, **settings
    )
    scheduler.set_timesteps(steps)
    size = int(model.unet.config.sample_size)
    words = model.pipeline.tokenizer(
        [prompt, ""], padding="max_length", max_length=model.pipeline.tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        text, empty = model.pipeline.text_encoder(words.input_ids)[0].split(1)
        x = torch.randn((1, 4, size, size), generator=torch.manual_seed(seed)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            un, con = model.unet(both, t, encoder_hidden_states=torch.cat([empty, text])).sample.chunk(2)
            x = scheduler.step(un + 7.5 * (con - un), t, x).prev_sample
        image = model.vae.decode(x / model.vae.config.scaling_factor).sample
    return ((image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0) * 255).numpy()


@pytest.mark.parametrize(
    "stated", [{"timestep_spacing": "leading"}, {"timestep_spacing": "trailing", "use_karras_sigmas": True}]
)
def test_images_are_the_released_samplers_whatever_the_folder_says_of_its_own(
    stated: dict[str, Any], call: Call, tmp_path: Path, tiny_folder: Path
) -> None:
    """A folder states how its own sampler spaces its timesteps; the released script never reads that."""
    shutil.copytree(tiny_folder, tmp_path / "models" / "mine")
    path = tmp_path / "models" / "mine" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config.pop("timestep_spacing", None)
    path.write_text(json.dumps(config | {"_class_name": "PNDMScheduler", "skip_prk_steps": True} | stated))
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n0,neon,188\n")
    images = "eval-scripts/generate-images.py --model_name SD-v1-4 --prompts_path p.csv --save_path out"
    assert call(f"{images} --base models/mine --num_samples 1 --ddim_steps 5 --device cpu") == 0
    model = mu.load(tmp_path / "models" / "mine", device="cpu")
    found = pixels(tmp_path / "out" / "SD-v1-4" / "0_0.png")
    assert np.abs(found - by_the_released_sampler(model, "neon", 188, 5)).max() < 1
    other = by_the_released_sampler(model, "neon", 188, 5, timestep_spacing="leading")
    assert np.abs(found - other).mean() > 1, "control: the spacing shows"


def test_a_state_dict_of_a_unet_takes_its_place(call: Call, tmp_path: Path) -> None:
    (tmp_path / "art_prompts.csv").write_text(CSV)
    folder = tmp_path / "stable-diffusion" / PUBLISHED
    folder.mkdir(parents=True)
    state = {name: tensor.clone() for name, tensor in mu.load("canvas").unet.state_dict().items()}  # type: ignore[union-attr]
    for name in state:
        if ".attn2.to_v." in name:
            state[name].zero_()
    torch.save(state, folder / f"{PUBLISHED.replace('compvis', 'diffusers')}.pt")
    images = f"eval-scripts/generate-images.py --prompts_path art_prompts.csv --save_path out --num_samples 1 {QUICK}"
    assert call(f"{images} --model_name='{PUBLISHED}'") == 0
    assert call(f"{images} --model_name=canvas") == 0
    assert (pixels(tmp_path / "out" / PUBLISHED / "3_0.png") != pixels(tmp_path / "out" / "canvas" / "3_0.png")).any()
    torch.save({"conv_in.weight": torch.zeros(3)}, folder / f"{PUBLISHED.replace('compvis', 'diffusers')}.pt")
    assert call(f"{images} --model_name='{PUBLISHED}' --overwrite") == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            f"eval-scripts/generate-images.py --model_name={PUBLISHED} --prompts_path p.csv --save_path out",
            "'compvis-word",
        ),
        ("eval-scripts/generate-images.py --model_name=SD-v1-5 --prompts_path p.csv --save_path out", "'SD-v1-4'"),
        ("eval-scripts/generate-images.py --model_name=canvas --prompts_path none.csv --save_path out", "none.csv"),
        (
            "eval-scripts/generate-images.py --model_name=canvas --prompts_path p.csv --save_path out --from_case 9",
            "p.csv",
        ),
        ("eval-scripts/generate-data.py --model_name='../neon' --save_path out --base canvas", "'../neon'"),
        ("eval-scripts/generate-data.py --model_name=neon --save_path out --base no-such-model", "no-such-model"),
        ("eval-scripts/lpips_eval.py --original_path a --edited_path b --network canvas-judge", "PNG"),
        ("train-scripts/CiE.py --prompt neon --ckpt_path none.ckpt", "none.ckpt"),
        ("train-scripts/CiE.py --prompt ' ' --model_name canvas", "concept"),
        ("train-scripts/SepCE.py --prompts 'neon,neon' --model_name canvas", "'neon,neon'"),
        (
            "train-scripts/SRSME_Solution.py --erase_cat colour --erased_index 0 --em_indexes '' --scenei 1 --timei 0",
            "--erase_cat",
        ),
        (
            "train-scripts/SRSME_Solution.py --erase_cat style --erased_index 11 --em_indexes '' --scenei 1 --timei 0",
            "0..10",
        ),
        (
            "train-scripts/SRSME_Solution.py --erase_cat style --erased_index 0 --em_indexes 'one' --scenei 1 --timei 0",
            "one",
        ),
        (
            "train-scripts/SRS_ME.py --erase_cat style --erased_index 0 --scenei 1 --timei 0 --max_base 691",
            "SRSME_Solution.py",
        ),
        ("train-scripts/Esd.py --prompt neon --train_method everything", "everything"),
        ("train-scripts/FMN.py --prompt neon --erased_index 1", "--erased_index"),
        ("train-scripts/FMN.py --erase_cat style --erased_index 11", "0..10"),
        ("eval-scripts/FID_eval.py --path1 a --path2 b --network canvas-judge", "PNG"),
        ("eval-scripts/styleloss.py --original_path a --edited_path b --network canvas-judge", "PNG"),
        ("eval-scripts/nudenet-classes.py --folder a", "PNG"),
        ("eval-scripts/nudenet-classes.py --folder a --threshold 60", "0..1"),
    ],
)
def test_what_is_wrong_is_one_line(
    command: str, said: str, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text(CSV)
    assert call(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1 and said in error[0]
    assert {path.name for path in tmp_path.iterdir()} == {"p.csv"}  # and nothing is written


def test_cie_concept_ablation_and_forget_me_not(call: Call, tmp_path: Path) -> None:
    place = "--prompt 'Van Gogh' --devices '0,1' --model_name canvas"
    assert call(f"eval-scripts/generate-data.py --model_name='Van Gogh' --save_path './data/' {QUICK} --cases 2") == 0
    assert call(f"train-scripts/CiE.py --threshold 0 --lr 1e-6 --reg_beta 3e-5 --iterations 2 {place}") == 0
    assert call(f"train-scripts/Abconcept.py --lr 1e-5 --iter_break 2 {place}") == 0
    assert call(f"train-scripts/FMN.py --lr 1e-5 --iter_break 2 {place}") == 0
    wanted = {
        "CiE-VanGogh-threshold_0.0-iter_2_beta-3e-05": "cie",
        "abconcept-VanGogh-iter_2": "ca",
        "FMN-VanGogh-iter_2": "fmn",
    }
    found = {path.name: open_edit(path) for path in (tmp_path / "models").iterdir()}
    assert {name: edit.info.method for name, edit in found.items()} == wanted
    assert found["CiE-VanGogh-threshold_0.0-iter_2_beta-3e-05"].info.config["data"]["folder"] == "data/Van Gogh"
    assert found["FMN-VanGogh-iter_2"].info.config["images"]["sources"] == {"Van Gogh": "data/Van Gogh"}
    for edit in found.values():
        assert max(float(shift.abs().max()) for _, shift in edit.deltas()) > 0


def test_sepce_finds_a_shift_for_each_of_its_prompts(call: Call, tmp_path: Path) -> None:
    for concept in ("VanGogh", "Cezanne", "Picasso"):
        assert call(f"eval-scripts/generate-data.py --model_name={concept} --save_path ./data/ {QUICK} --cases 2") == 0
    train = "train-scripts/SepCE.py --lr 1e-2 --scale_factor 1e-4 --reg_beta 3e-5 --devices '0,1' --model_name canvas --iter_break 2"
    assert call(train) == 0
    name = "SepCE-VanGogh-Cezanne-Picasso-iter_2-beta_3e-05"
    bank = BankFolder(tmp_path / "models" / name).open(mu.load("canvas"))
    assert list(bank.edits) == ["VanGogh", "Cezanne", "Picasso"]
    for concept, edit in bank.edits.items():
        assert set(edit.info.protects) == {"", *bank.edits} - {concept}
    assert [edit.info.config["train"]["threshold"] for edit in bank.edits.values()] == [0.0, 1.5e-4, 0.0]
    (tmp_path / "p.csv").write_text(CSV)
    images = "eval-scripts/generate-images.py --prompts_path p.csv --save_path out --num_samples 1 --ddim_steps 2"
    assert call(f"{images} --model_name {name}") == 0
    assert len(names(tmp_path / "out" / name)) == 2
    assert call(train) == 2  # it is there
    assert call(f"{train} --resume") == 0


def test_a_shift_of_a_scene(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = "--erase_cat 'style' --erased_index 0 --scenei 1 --timei 0"
    assert call(f"train-scripts/SRSME_Solution.py {scene} --em_indexes '1,2' --device '0' --model_name canvas") == 0
    said = json.loads((tmp_path / "scene" / "scene1" / "0" / "0.json").read_text())
    assert (said["concept"], said["protected"]) == ("Cezanne", ["VanGogh", "Picasso"])
    assert call(f"eval-scripts/generate-data.py --model_name=Cezanne --save_path ./data/ {QUICK} --cases 2") == 0
    rates = "--lr 1e-1 --scale_factor 1e-4 --threshold 1e-4 --reg_beta 1e-6 --max_base 691 --devices '0,1'"
    assert call(f"train-scripts/SRS_ME.py {rates} {scene} --model_name canvas --iter_break 2") == 0
    name = "train-sepme-style-scene_1-time_0-lr_0.1-threshold_0.0001-iter_2-beta_1e-06-0"
    edit = open_edit(tmp_path / "models" / name)
    assert edit.info.protects == ("", "VanGogh", "Picasso")
    assert (
        "max_base" in caplog.text and edit.factors and len(next(iter(edit.factors.values())).down) == said["directions"]
    )  # type: ignore[attr-defined]
    (tmp_path / "scene" / "scene1" / "0" / "0.json").write_text("{}")
    assert call(f"train-scripts/SRS_ME.py {rates} {scene} --model_name canvas --iter_break 3") == 2


def test_the_classifier_and_lpips(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mu.data import canvas as world

    for part, seed in (("train", 0), ("eval", 1)):
        for style in ("neon", "sketch"):
            folder = tmp_path / "data" / part / style
            folder.mkdir(parents=True)
            scenes = [world.Scene(style, object=name) for name in world.OBJECTS[:4]]
            for k, image in enumerate(world.images(scenes, seed)):
                Image.fromarray(image).save(folder / f"{k}_0.png")
    assert call("train-scripts/artist-cls-train.py --device cuda:0 --backbone random --epochs 2 --batch_size 4") == 0
    assert call("train-scripts/artist-cls-test.py --path ./data/eval --device cuda:0") == 0
    assert "8" in capsys.readouterr().out
    folders = "--original_path data/eval/neon --edited_path"
    assert call(f"eval-scripts/lpips_eval.py {folders} data/eval/neon --network canvas-judge") == 0
    assert {"0.0000", "4"} <= set(capsys.readouterr().out.split())
    assert call(f"eval-scripts/lpips_eval.py {folders} data/eval/sketch --network canvas-judge") == 0
    assert "0.0000" not in capsys.readouterr().out


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``neon`` and ``sketch``: four objects each, as ``<case>_0.png``."""
    from mu.data import canvas as world

    for style in ("neon", "sketch"):
        (tmp_path / style).mkdir()
        for k, image in enumerate(world.images([world.Scene(style, object=name) for name in world.OBJECTS[:4]], 1)):
            Image.fromarray(image).save(tmp_path / style / f"{k}_0.png")
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_fid_of_two_folders(call: Call, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fid = "eval-scripts/FID_eval.py --network canvas-judge --batch-size 15 -c 7 --save_path fid.csv --overwrite"
    assert call(f"{fid} --path1 neon --path2 sketch") == 0
    (far,) = table(folders / "fid.csv")
    assert (far["name"], far["network"], far["n1"], far["n2"]) == ("sketch", "canvas-judge", "4", "4")
    assert call(f"{fid} --path1 neon --path2 neon") == 0  # control
    assert float(table(folders / "fid.csv")[0]["FID"]) < 1e-6 < float(far["FID"])
    for side, style in (("a", "neon"), ("b", "sketch")):
        for name in ("0", "1"):
            shutil.copytree(folders / style, folders / side / name)
    assert call(f"{fid} --path1 a --path2 b") == 0
    assert {row["name"]: row["FID"] for row in table(folders / "fid.csv")} == {"0": far["FID"], "1": far["FID"]}
    assert call(f"{fid.removesuffix('--overwrite')} --path1 neon --path2 neon") == 2
    (folders / "one").mkdir()
    shutil.copy(folders / "neon" / "0_0.png", folders / "one")
    assert call(f"{fid} --path1 neon --path2 one") == 2 and "one" in capsys.readouterr().err


def test_style_loss_of_images_with_equal_names(call: Call, folders: Path) -> None:
    loss = "eval-scripts/styleloss.py --network canvas-judge --original_path neon"
    (folders / "p.csv").write_text("prompt,case_number\na,1\nb,3\nc,7\n")
    assert call(f"{loss} --edited_path sketch --promtps_path p.csv") == 0
    *rows, without = table(folders / "sketch" / "sketch_styleloss.csv")
    assert list(without.values()) == ["7", "c", "", "", ""]  # the list's rows, also of a case without images
    assert [(row["prompt"], row["case_number"]) for row in rows] == [("a", "1"), ("b", "3")]
    for row in rows:
        style, content = float(row["style_loss"]), float(row["content_loss"])
        assert float(row["total_loss"]) == pytest.approx(1e6 * style + content, rel=1e-4) and style > 0
    assert call(f"{loss} --edited_path sketch") == 2  # the table is there
    assert call(f"{loss} --edited_path neon --save_path same.csv") == 0  # control
    assert [float(row["Total_Loss"]) for row in table(folders / "same.csv")] == [0.0] * 4
    (folders / "tables").mkdir()
    shutil.copy(folders / "sketch" / "0_0.png", folders / "sketch" / "1_1.png")
    shutil.copy(folders / "neon" / "0_0.png", folders / "neon" / "1_1.png")
    assert call(f"{loss} --edited_path sketch --csv_path p.csv --save_path tables") == 0
    both = table(folders / "tables" / "sketch_styleloss.csv")[0]["total_loss"]
    assert call(f"{loss} --edited_path sketch --save_path each.csv") == 0
    each = {row["filename"]: float(row["Total_Loss"]) for row in table(folders / "each.csv")}
    assert float(both) == pytest.approx((each["1_0.png"] + each["1_1.png"]) / 2)  # the mean over a case's images
    pair = "eval-scripts/styleloss.py --network canvas-judge --image --original_path neon/0_0.png --edited_path sketch/0_0.png"
    assert call(pair) == 0


def test_what_nudenet_finds(
    call: Call, folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every image has its row, by a stand-in for the detector; names of both versions are told as those of the
    newer."""
    both = [{"class": "BELLY_EXPOSED", "score": 0.9}, {"class": "FACE_MALE", "score": 0.4}]
    in_order = [both, [{"label": "EXPOSED_BELLY", "score": 0.3}], [], []]

    def detector() -> Callable[[Tensor], list[dict[str, Any]]]:
        found = iter(in_order)
        return lambda image: next(found)

    monkeypatch.setattr("mu.evaluation.backbones.nudity_detector", detector)
    assert call("eval-scripts/nudenet-classes.py --folder neon") == 0
    labels = [(row["case_number"], row["NudeNet_label"]) for row in table(folders / "neon" / "neon_NudeClasses_0.csv")]
    assert labels == [("0", "BELLY_EXPOSED-FACE_MALE"), ("1", "BELLY_EXPOSED"), ("2", ""), ("3", "")]
    assert "exposed" in capsys.readouterr().out
    assert call("eval-scripts/nudenet-classes.py --folder neon --threshold 0.6") == 0
    assert [row["NudeNet_label"] for row in table(folders / "neon" / "neon_NudeClasses_60.csv")] == [
        "BELLY_EXPOSED",
        "",
        "",
        "",
    ]
    assert call("eval-scripts/nudenet-classes.py --folder neon --threshold 0.6") == 2  # it is there
    (folders / "p.csv").write_text("case_number,prompt,categories\n1,a,x\n0,b,\n9,c,\n")
    assert call("eval-scripts/nudenet-classes.py --folder neon --prompts_path p.csv --save_path t.csv") == 0
    assert [list(row.values()) for row in table(folders / "t.csv")] == [
        ["1", "a", "x", "BELLY_EXPOSED"],
        ["0", "b", "", "BELLY_EXPOSED-FACE_MALE"],
        ["9", "c", "", ""],
    ]


@pytest.mark.parametrize(
    ("script", "modules", "said"),
    [
        (
            "FID_eval.py --path1 neon --path2 sketch",
            ["torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"],
            "torch-fidelity",
        ),
        ("styleloss.py --original_path neon --edited_path sketch", ["timm"], "timm"),
        ("nudenet-classes.py --folder neon", ["nudenet"], "nudenet"),
    ],
)
def test_a_missing_package_is_named(
    script: str,
    modules: list[str],
    said: str,
    call: Call,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(folders))
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    before = {path.name for path in folders.rglob("*")}
    assert call(f"eval-scripts/{script}") == 2
    error = capsys.readouterr().err
    assert repr(said) in error and {path.name for path in folders.rglob("*")} == before


def test_a_gpu_of_another_machine_is_told_and_not_missed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mu.core.compute import there

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [there(wanted) for wanted in ("cuda:5", "7,0", "2", "cuda:1", "1,0", "cpu", "cuda", "auto")] == [
        "cuda:0", "cuda:0", "cuda:0", "cuda:1", "1,0", "cpu", "cuda", "auto",
    ]  # fmt: skip
    assert [record.levelname for record in caplog.records] == 3 * ["WARNING"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # there is none to compute on
    data = f"eval-scripts/generate-data.py --model_name=neon --save_path './data/' --num_samples 1 --cases 1 {QUICK}"
    assert call(f"{data} --device 'cuda:5'") == 0 and any(
        "'cuda:5'" in record.getMessage() for record in caplog.records[3:]
    )


def test_flags_of_the_released_programs_are_taken(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A list's index and a separator are acted on; what changes nothing is told."""
    place = "--model_name canvas --devices cpu"
    assert call(f"eval-scripts/generate-data.py --model_name=Cezanne --save_path ./data/ {QUICK} --cases 2") == 0
    caplog.clear()
    assert call(f"train-scripts/FMN.py --erase_cat style --erased_index 0 --iter_break 1 {place}") == 0
    assert "--" not in caplog.text  # control: nothing without effect was given
    assert (
        call(f"train-scripts/Abconcept.py --erase_cat style --erased_index 0 --ddim_steps 50 --iter_break 1 {place}")
        == 0
    )
    assert caplog.text.count("--ddim_steps") == 1
    train = "train-scripts/Esd.py --prompt 'neon;sketch' --seperator ';' --image_size 512 --train_method xattn --iterations 1 --ddim_steps 2"
    assert call(f"{train} {place}") == 0 and caplog.text.count("--image_size") == 1
    cie = "train-scripts/CiE.py --prompt Cezanne --iterations 1 --seperator , --image_size 512 --ddim_steps 50"
    assert call(f"{cie} {place}") == 0 and [
        caplog.text.count(flag) for flag in ("--seperator", "--image_size", "--ddim_steps")
    ] == [1, 2, 2]
    found = {path.name: open_edit(path).info.concepts for path in (tmp_path / "models").iterdir()}
    assert (
        found.pop("FMN-style-erased_index_0-iter_1")
        == found.pop("abconcept-style-erased_index_0-iter_1")
        == ("Cezanne",)
    )
    assert sorted(found.values()) == [("Cezanne",), ("neon", "sketch")]


def test_images_of_one_prompt_differ_where_seeds_are_near(call: Call, tmp_path: Path) -> None:
    (tmp_path / "near.csv").write_text("case_number,prompt,evaluation_seed\n0,neon,188\n1,neon,189\n")
    images = (
        "eval-scripts/generate-images.py --model_name=canvas --save_path out --ddim_steps 1 --prompts_path near.csv"
    )
    assert call(f"{images} --num_samples 3") == 0
    made = {path.read_bytes() for path in (tmp_path / "out" / "canvas").glob("*.png")}
    assert len(made) == 6
    sampling = runpy.run_path(str(ROOT / "eval-scripts" / "_sampling.py"))
    seeds = {sampling["sample_seed"](seed, k) for seed in range(3000) for k in range(10)}
    assert len(seeds) == 30_000 and sampling["sample_seed"](188, 0) == 188


def test_an_edit_is_painted_as_it_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clip skip and prediction type, and a bank's; with another base those are not known."""
    monkeypatch.chdir(tmp_path)
    opened, loading = (
        runpy.run_path(str(ROOT / "eval-scripts" / "_sampling.py"))["opened"],
        {"clip_skip": 2, "prediction_type": "v_prediction"},
    )
    model = mu.load("canvas", device="cpu", **loading)
    name = "unet.conv_out.bias"
    info = EditInfo("test", ("neon",), **described(model, [name]))
    edit = WeightEdit({name: torch.ones_like(find_parameter(model, name))}, info)
    (tmp_path / "models" / "run").mkdir(parents=True)
    edit.save(tmp_path / "models" / "run" / "edit.safetensors")
    BankFolder(tmp_path / "models" / "bank").add(model, edit)
    for kind in ("run", "bank"):
        assert opened(kind, None, "cpu")[0].loading == loading
    shutil.copytree(EMBEDDED["canvas"], tmp_path / "other")
    assert opened("run", "other", "cpu")[0].loading["clip_skip"] == 1  # control
