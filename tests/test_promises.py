"""What the documents of separable erasure, SPM and SLUG promise, line by line, on the embedded world."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mu.edits.files import open_edit
from tests.conftest import ROOT, Call

CANVAS = "--model_name canvas --devices cpu"
ESD = f"train-scripts/Esd.py --iterations 1 --ddim_steps 2 {CANVAS}"


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    return told


# -- Esd.py -----------------------------------------------------------------------------------------------------------


def test_esd_takes_a_concept_by_its_number_and_stops_where_it_is_told(call: Call, tmp_path: Path) -> None:
    command = f"train-scripts/Esd.py --train_method selfattn --ddim_steps 2 {CANVAS}"
    assert call(f"{command} --erase_cat style --erased_index 0 --iterations 9 --iter_break 1") == 0
    (run,) = (tmp_path / "models").iterdir()
    assert run.name == "compvis-word_style-erased_index_0-method_selfattn-sg_3-ng_1-iter_1-lr_1e-05"
    edit = open_edit(run)
    assert (edit.info.concepts, edit.info.config["variant"]) == (("Cezanne",), "selfattn")
    assert all(".attn1." in name for name, _ in edit.deltas())


@pytest.mark.parametrize(
    ("name", "first", "last"), [("allartist", "Kelly Mckernan", "Kilian Eng"), ("i2p", "hate", "blood")]
)
def test_esd_knows_the_released_lists_of_words(
    name: str,
    first: str,
    last: str,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a separator each word is a concept; the embedded model's prompts are too short for all of them at once."""
    assert call(f"{ESD} --prompt {name} --train_method xattn --seperator ,") == 0
    (run,) = (tmp_path / "models").iterdir()
    assert run.name.startswith(f"compvis-word_{name}-method_xattn")
    concepts = open_edit(run).info.concepts
    assert (concepts[0], concepts[-1]) == (first, last) and name not in concepts
    capsys.readouterr()
    assert call(f"{ESD} --prompt {name} --train_method xattn --overwrite") == 2  # control: one prompt of all words
    assert first in line(capsys)


def test_esd_knows_the_released_list_of_artifacts() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "train-scripts"))
        words = runpy.run_path(str(ROOT / "train-scripts" / "Esd.py"))["WORDS"]
    assert len(words["artifact"].split(", ")) == 22 and words["artifact"].startswith("ugly, tiling, ")


def test_esd_by_its_first_name_has_its_first_defaults(call: Call, tmp_path: Path) -> None:
    command = "train-scripts/train-esd.py --prompt neon --train_method xattn --ddim_steps 2 --iter_break 1"
    assert call(f"{command} {CANVAS}") == 0
    assert [run.name for run in (tmp_path / "models").iterdir()] == [
        "compvis-word_neon-method_xattn-sg_3-ng_1-iter_1-lr_1e-05"
    ]
    assert 'default: 1000' in subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train-scripts" / "train-esd.py"), "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout  # fmt: skip


@pytest.mark.parametrize("script", ["CiE.py", "FMN.py", "Abconcept.py"])
def test_other_programs_refuse_the_names_of_the_lists(
    script: str, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"train-scripts/{script} --prompt i2p {CANVAS}") == 2
    assert "Esd.py" in line(capsys) and not any(tmp_path.iterdir())


# -- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "whole"),
    [("--iterations", "--train.iterations"), ("--lr", "--train.lr"), ("--ckpt_path", "--pretrained_model.ckpt_path")],
)
def test_a_flag_without_its_section_is_told_in_one_line(
    flag: str, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm
    from mu.core.program import main, parser

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(SemipermeableMembraneAlgorithm, [flag, "7"])
    told = line(capsys)
    assert ended.value.code == 2 and told.startswith("error: unknown option") and repr(whole) in told
    assert not any(tmp_path.iterdir())
    assert vars(parser(SemipermeableMembraneAlgorithm).parse_args([whole, "7"]))[whole.lstrip("-")] == "7"  # control


def test_flags_without_effect_are_told_and_kept_in_the_log(
    call: Call,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = "--config_path v1.yaml --diffusers_config_path unet.json --ddim_steps 50 --erase_cat style"
    assert call(f"train-scripts/FMN.py --prompt neon --iter_break 1 {given} {CANVAS}") == 0
    (log,) = tmp_path.rglob("log.txt")
    for flag in ("--config_path", "--diffusers_config_path", "--ddim_steps", "--erase_cat"):
        told = [record.message for record in caplog.records if record.message.startswith(f"{flag} has no effect: ")]
        assert len(told) == 1 and told[0] in log.read_text()
    assert "--iter_break has" not in caplog.text  # control


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train-scripts/artist-cls-train.py", ["--lr_schedule c", "--lr-min 1", "--momentum 1", "--normal_mean 1"]),
        ("train-scripts/artist-cls-test.py", ["--batch_size 3"]),
        ("eval-scripts/FID_eval.py --network canvas-judge", ["--batch-size 3", "--dims 2048"]),
        ("src/clip/a0_create_tar.py --name neon", ["--workers 3"]),
        (
            "train-scripts/SRSME_Solution.py --erased_index 99 --em_indexes '' --scenei 1 --timei 0",
            ["--config_path v1.yaml", "--resume"],
        ),
    ],
)
def test_programs_that_make_no_run_tell_it_too(
    command: str,
    flags: list[str],
    call: Call,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All these then fail for want of files; what has no effect was told."""
    assert call(f"{command} {' '.join(flags)}") == 2
    told = [record.message.partition(" ")[0] for record in caplog.records if "has no effect" in record.message]
    assert told == [flag.partition(" ")[0] for flag in flags]
    caplog.clear()
    assert call(command) == 2  # control
    assert "has no effect" not in caplog.text


# -- the classifier ---------------------------------------------------------------------------------------------------


def styles(folder: Path, parts: tuple[str, ...] = ("train", "eval")) -> None:
    """``data/train/{0,1}``, ``data/eval/{0,1}`` as the document lays them out."""
    from PIL import Image

    from mu.data import canvas as world

    for seed, part in enumerate(parts):
        for label, style in enumerate(("neon", "sketch")):
            place = folder / part / str(label)
            place.mkdir(parents=True)
            scenes = [world.Scene(style, object=name) for name in world.OBJECTS[:4]]
            for k, image in enumerate(world.images(scenes, seed)):
                Image.fromarray(image).save(place / f"{k}_0.png")


def test_a_backbone_that_cannot_be_had_is_one_line_and_leaves_nothing(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without network, as `HfApi` is here; one question is asked, and not twelve."""
    asked: list[Any] = []

    def offline(self: Any, name: str, **options: Any) -> Any:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr("mu.models.hub.HfApi.model_info", offline)
    styles(tmp_path / "data")
    assert call("train-scripts/artist-cls-train.py --device cpu") == 2
    told = line(capsys)
    assert "'microsoft/resnet-18'" in told and "no network" in told and "'random'" in told and asked == ["microsoft/resnet-18"]
    assert not (tmp_path / "models").exists()


def test_a_training_that_fails_before_its_first_checkpoint_leaves_nothing(
    call: Call,
    tmp_path: Path,
) -> None:
    styles(tmp_path / "data")
    train = "train-scripts/artist-cls-train.py --device cpu --backbone random --epochs 1 --batch_size 4"
    broken = tmp_path / "data" / "train" / "0" / "3_0.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert call(train) == 2
    assert not (tmp_path / "models").exists()
    broken.write_bytes(whole)
    assert call(train) == 0  # control
    assert (tmp_path / "models" / "artis_model_10" / "training.json").exists()


def test_the_documents_layout_goes_through_classifier_and_distances_without_moving_a_file(
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    styles(tmp_path / "data")
    assert call("train-scripts/artist-cls-train.py --device cpu --backbone random --epochs 1 --batch_size 4") == 0
    capsys.readouterr()
    assert call("train-scripts/artist-cls-test.py --path ./data/eval --device cpu") == 0
    measured = capsys.readouterr().out
    assert call("train-scripts/artist-cls-test.py --path ./data --device cpu") == 0  # holds eval/ and train/
    assert capsys.readouterr().out == measured and "of 8 images" in measured
    for script in ("lpips_eval.py", "FID_eval.py"):
        assert call(f"eval-scripts/{script} --path1 data/eval --path2 data/train --network canvas-judge") == 0
        told = capsys.readouterr().out
        assert " 0" in told and " 1" in told  # one line for each class
        assert call(f"eval-scripts/{script} --path1 data/eval/0 --path2 data/eval/0 --network canvas-judge") == 0
        assert "0.0000" in capsys.readouterr().out.replace("-0.0000", "0.0000")  # control


# -- generate-images.py -----------------------------------------------------------------------------------------------

IMAGES = "eval-scripts/generate-images.py --prompts_path p.csv --save_path out --num_samples 1 --device cpu"


def test_a_list_without_seeds_or_numbers_says_what_is_filled_in_and_sizes_are_obeyed(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    (tmp_path / "p.csv").write_text("prompt,width,height,evaluation_guidance\nneon,96,64,3\na star,,,\n")
    caplog.set_level("INFO", "mu")
    assert call(f"{IMAGES} --model_name canvas --ddim_steps 1") == 0
    for told in (
        "no case_number: prompts are numbered from 0",
        "2 of 2 prompts have no seed",
        "guidance in p.csv has no",
    ):
        assert told in caplog.text
    sizes = [Image.open(tmp_path / "out" / "canvas" / f"{case}_0.png").size for case in (0, 1)]
    assert sizes == [(96, 64), (64, 64)]
    assert call(f"{IMAGES} --model_name canvas --ddim_steps 1 --image_size 64 --overwrite") == 0
    assert Image.open(tmp_path / "out" / "canvas" / "0_0.png").size == (64, 64)
    caplog.clear()  # control: a list that has all of it
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n4,neon,188\n")
    assert call(f"{IMAGES} --model_name canvas --ddim_steps 1") == 0
    assert "p.csv" not in caplog.text


def test_a_folder_of_images_takes_no_others(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a bank changed, with other steps or guidance; the same list goes on."""
    import torch

    import mu
    from mu.edits.bank_folder import BankFolder
    from mu.edits.edit import EditInfo, described
    from mu.edits.weights import WeightEdit
    from mu.models.parameters import find_parameter

    model, name = mu.load("canvas"), "unet.conv_out.bias"

    def edit(concept: str) -> WeightEdit:
        shift = 0.1 * torch.ones_like(find_parameter(model, name))
        return WeightEdit({name: shift}, EditInfo("test", (concept,), **described(model, [name])))

    bank = BankFolder(tmp_path / "models" / "bank")
    bank.add(model, edit("neon"))
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n0,neon,188\n")
    images = f"{IMAGES} --model_name bank"
    assert call(f"{images} --ddim_steps 1") == 0
    kept = (tmp_path / "out" / "bank" / "0_0.png").read_bytes()
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n0,neon,188\n1,a star,288\n")
    assert call(f"{images} --ddim_steps 1 --resume") == 0  # control
    capsys.readouterr()
    for other, said in (("--ddim_steps 2", "steps 1, now 2"), ("--ddim_steps 1 --guidance_scale 3", "guidance")):
        assert call(f"{images} {other} --resume") == 2
        assert said in line(capsys)
    bank.add(model, edit("star"))
    assert call(f"{images} --ddim_steps 1 --resume") == 2
    assert "another edits" in line(capsys)
    assert (tmp_path / "out" / "bank" / "0_0.png").read_bytes() == kept
    assert call(f"{images} --ddim_steps 1 --overwrite") == 0
    assert (tmp_path / "out" / "bank" / "0_0.png").read_bytes() != kept


def test_the_sample_list_has_the_columns_of_the_document() -> None:
    from mu.data.prompts import read_prompts

    header = (ROOT / "data" / "art_prompts.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"prompt", "evaluation_seed", "case_number"} <= set(header)
    rows = read_prompts(ROOT / "data" / "art_prompts.csv")
    assert len({row.case_number for row in rows}) == len(rows) == len({row.evaluation_seed for row in rows}) == 20


# -- SLUG's data ------------------------------------------------------------------------------------------------------


def test_a_forget_set_is_left_as_a_tar_and_as_a_folder(call: Call, tmp_path: Path) -> None:
    import tarfile

    from mu.data.canvas.layouts import write_shards

    write_shards(tmp_path / "data" / "laion" / "laion400m", 300, 0)
    command = "src/clip/a0_create_tar.py --name neon"
    assert call(f"{command} --n_imgs 3") == 0
    folder = tmp_path / "data" / "laion" / "laion400m" / "neon"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with tarfile.open(tmp_path / "data" / "tar_files" / "neon.tar") as tar:
        assert files == {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert len(files) == 6
    (folder / "mine.txt").write_text("mine")
    assert call(f"{command} --n_imgs 2") == 2  # another set is not replaced
    assert len([*folder.iterdir()]) == 7
    assert call(f"{command} --n_imgs 2 --overwrite") == 0
    assert len([*folder.iterdir()]) == 5 and (folder / "mine.txt").exists()


def test_celeba_as_the_document_lays_it_out_is_measured_in_its_data_root(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mu.data.canvas.layouts import write_celeba

    write_celeba(tmp_path / "mine" / "celeba", 2, 0)
    (tmp_path / "mine" / "celeba" / "frequent_celebs.txt").unlink(missing_ok=True)  # the document has none
    command = "src/clip/a0_eval_celeba.py --model canvas-clip --device cpu"
    assert call(f"{command} --data_root mine") == 0
    told = dict(line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert float(told["identity@1"].split()[0]) > 0.5
    assert call(command) == 2 and "--data_root" in line(capsys)  # control: data/ holds nothing


@pytest.mark.parametrize(
    "command",
    [
        "train-scripts/Abconcept.py --prompt neon",
        "train-scripts/CiE.py --prompt neon",
        "train-scripts/Esd.py --prompt neon --train_method xlayer",
    ],
)
def test_a_program_that_fails_leaves_no_folder_that_is_offered_later(
    command: str, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By images that cannot be read, and by layers that the model lacks."""
    (tmp_path / "data" / "neon").mkdir(parents=True)
    for k in range(2):
        (tmp_path / "data" / "neon" / f"{k}_0.png").write_bytes(b"no image")
    assert call(f"{command} {CANVAS}") == 2
    assert not (tmp_path / "models").exists()
    (tmp_path / "models" / "abconcept-neo").mkdir(parents=True)  # as a killed program may leave one
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n0,neon,188\n")
    capsys.readouterr()
    assert call(f"{IMAGES} --model_name abconcept-neon") == 2
    assert "abconcept-neo'" not in line(capsys)
    (tmp_path / "models" / "abconcept-neo" / "edit.safetensors").write_bytes(b"")  # control
    assert call(f"{IMAGES} --model_name abconcept-neon") == 2
    assert "'abconcept-neo'" in line(capsys)
