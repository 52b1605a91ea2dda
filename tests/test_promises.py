"""What the five documents promise that this project began with, line by line and in their order.

`PROMISES` lists every promise with the test that keeps it; the tests of programs and layouts are in this module, those of
settings, edits and methods are named where they are. A promise without a test says what it would need.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mu.core.errors import DataError
from mu.edits.files import open_edit
from tests.conftest import ROOT, Call

HERE = "test_promises.py"
SEED = "algorithms/test_seed_documents.py"
SETTINGS = "algorithms/test_spm_settings.py"
SEPARABLE = "test_separable_wrappers.py"
SLUG = "test_wrappers.py"


class Promise(NamedTuple):
    document: str
    """``spm`` (the first two documents), ``separable`` or ``slug`` (the last two)."""
    words: str
    kept_by: str
    """``file::test`` under tests/; empty: see ``needs``."""
    needs: str = ""


def spm(words: str, kept_by: str = "", needs: str = "") -> Promise:
    return Promise("spm", words, kept_by, needs)


def separable(words: str, kept_by: str = "", needs: str = "") -> Promise:
    return Promise("separable", words, kept_by, needs)


def slug(words: str, kept_by: str = "", needs: str = "") -> Promise:
    return Promise("slug", words, kept_by, needs)


KEYS = """pretrained_model.ckpt_path pretrained_model.v2 pretrained_model.v_pred pretrained_model.clip_skip
    network.rank network.alpha
    train.precision train.noise_scheduler train.iterations train.batch_size train.lr train.unet_lr train.text_encoder_lr
    train.optimizer_type train.lr_scheduler train.lr_warmup_steps train.lr_scheduler_num_cycles train.max_denoising_steps
    save.per_steps save.precision
    other.use_xformers wandb_project wandb_run use_sample dataset_type template template_name
    prompt.target prompt.positive prompt.unconditional prompt.neutral prompt.action prompt.guidance_scale
    prompt.resolution prompt.batch_size prompt.dynamic_resolution prompt.la_strength prompt.sampling_batch_size
    devices output_dir verbose""".split()
"""The arguments that the second document describes: each changes what comes out, is refused, or says that it does not."""

PROMISES = (
    spm("my_trainer.py on the quick canvas data set", f"{SEED}::test_the_snippets"),
    spm("my_trainer.py on I2P, self-harm", f"{SEED}::test_the_snippets"),
    spm("both with the published weights", needs="a network: Stable Diffusion 1.4 itself"),
    spm(
        "use_sample=True in Python",
        "algorithms/test_without_effect.py::test_a_script_without_any_set_up_shows_it_and_the_log_keeps_it",
    ),
    spm(
        "verbose in Python",
        "algorithms/test_without_effect.py::test_verbose_decides_about_infos_and_never_about_warnings",
    ),
    spm("parameters that are given override the defaults", f"{SETTINGS}::test_overrides_never_change_the_preset"),
    spm("a misspelt one is not taken", f"{SETTINGS}::test_an_unknown_key_names_the_nearest"),
    spm(
        "WANDB_MODE=offline python my_trainer.py",
        "algorithms/test_contract.py::test_what_the_seed_documents_ask_of_wandb",
    ),
    spm("the same without W&B", "core/test_tracking.py::test_one_that_is_not_installed_is_told"),
    spm("the tree of files", f"{HERE}::test_the_files_of_the_method_are_where_they_were"),
    spm("utils.py", f"{HERE}::test_files_without_a_counterpart_are_answered"),
    spm(
        "a concept goes without retraining the model", "algorithms/test_spm.py::test_gradients_reach_the_adapters_alone"
    ),
    spm(
        "membranes of several concepts are used together",
        "edits/test_edits.py::test_nested_and_banked_edits_are_the_sum",
    ),
    spm("a membrane is used on another model", "edits/test_edits.py::test_another_base_of_the_same_shapes_warns"),
    spm("conda env create of the method's file", "test_project.py::test_conda_environment_finds_the_repository"),
    spm("conda itself solves it", needs="conda, and a network"),
    spm("chmod +x, download_models.sh compvis", "test_downloads.py::test_download"),
    spm("download_models.sh diffuser", "test_downloads.py::test_download"),
    spm("ls ../models/compvis ../models/diffuser", "test_downloads.py::test_download"),
    spm("download_quick_canvas_dataset.sh sample", "test_downloads.py::test_download"),
    spm("download_quick_canvas_dataset.sh full", "test_downloads.py::test_a_data_set_kept_as_single_files"),
    spm("download_i2p_dataset.sh sample", "test_downloads.py::test_download"),
    spm("download_i2p_dataset.sh full", "test_downloads.py::test_download"),
    spm("the archives of the hosts themselves", needs="a network"),
    spm("scripts.train --config_path config/train_config.yaml", f"{SEED}::test_the_command_line"),
    spm("the same offline", f"{SEED}::test_the_command_line"),
    spm("the example with all flags", f"{SEED}::test_the_command_line"),
    spm("flags override the file", f"{SEED}::test_flags_are_read_as_printed"),
    spm("a nested flag without its section", f"{HERE}::test_a_flag_without_its_section_is_told_in_one_line"),
    spm(
        "a checkpoint of one CompVis file",
        "edits/test_export.py::test_a_merged_file_of_a_small_model_opens_again_by_itself",
    ),
    *(spm(f"{key} of train_config.yaml", f"{SETTINGS}::test_each_key_is_kept_refused_or_answered") for key in KEYS),
    spm("devices: two of them", "core/test_parallel.py::test_two_processes_find_the_edits_of_one"),
    separable("the figure of erased and restored concepts", f"{HERE}::test_the_figures_of_the_documents_are_there"),
    separable(
        "concepts go and the others' images stay",
        "algorithms/test_separable.py::test_protected_prompts_stay_and_the_concept_moves",
    ),
    separable(
        "any subset of the concepts is restored",
        "algorithms/test_separable.py::test_restoring_one_leaves_the_others_erased",
    ),
    separable(
        "concepts come one after another",
        "cli/test_separable_bank.py::test_concepts_that_join_one_by_one_protect_each_other",
    ),
    separable(
        "CiE keeps what the model can do", "algorithms/test_contract.py::test_the_target_moves_more_than_what_is_kept"
    ),
    separable("ldm-replace.txt", f"{HERE}::test_files_without_a_counterpart_are_answered"),
    separable("ckpt_path and diffusers_config_path", f"{SEPARABLE}::test_what_is_wrong_is_one_line"),
    separable(
        "generate-data.py for the nine artists", f"{HERE}::test_an_artist_has_images_of_its_own_in_a_folder_of_its_name"
    ),
    separable("--device 'cuda:5'", f"{SEPARABLE}::test_a_gpu_of_another_machine_is_told_and_not_missed"),
    separable(
        "data/train/{0..9}, data/eval/{0..9}",
        f"{HERE}::test_the_documents_layout_goes_through_classifier_and_distances_without_moving_a_file",
    ),
    separable(
        "the classifier without a network", f"{HERE}::test_a_backbone_that_cannot_be_had_is_one_line_and_leaves_nothing"
    ),
    separable(
        "the classifier after a failure",
        f"{HERE}::test_a_training_that_fails_before_its_first_checkpoint_leaves_nothing",
    ),
    separable("the classifier on ImageNet's ResNet", needs="a network: microsoft/resnet-18"),
    separable(
        "ESD trains by a short text", f"{HERE}::test_esd_takes_a_concept_by_its_number_and_stops_where_it_is_told"
    ),
    separable("train-esd.py", f"{HERE}::test_esd_by_its_first_name_has_its_first_defaults"),
    separable("ESD's lists of words", f"{HERE}::test_esd_knows_the_released_lists_of_words"),
    separable("images/ESD.png", f"{HERE}::test_the_figures_of_the_documents_are_there"),
    separable(
        "a CSV of prompt, evaluation_seed, case_number", f"{SEPARABLE}::test_images_of_a_list_by_an_edited_model"
    ),
    separable(
        "a CSV without the last two",
        f"{HERE}::test_a_list_without_seeds_or_numbers_says_what_is_filled_in_and_sizes_are_obeyed",
    ),
    separable("sample data in data/", f"{HERE}::test_the_sample_list_has_the_columns_of_the_document"),
    separable(
        "num_samples is 1 by default, as in the script (its text says 10)",
        f"{HERE}::test_a_case_has_one_image_by_default",
    ),
    separable("the folder of images goes on, and takes no others", f"{HERE}::test_a_folder_of_images_takes_no_others"),
    separable("stable-diffusion/compvis-x/diffusers-x.pt", f"{SEPARABLE}::test_a_state_dict_of_a_unet_takes_its_place"),
    separable("generate-images.py of the printed model", f"{SEPARABLE}::test_images_of_a_list_by_an_edited_model"),
    separable(
        "a model that failed is not offered",
        f"{HERE}::test_a_program_that_fails_leaves_no_folder_that_is_offered_later",
    ),
    separable("~/.NudeNet", "evaluation/test_backbones.py::test_the_checkpoint_of_version_2_is_run_where_it_lies"),
    separable("NudeNet's own network", needs="a network: pip install nudenet"),
    separable("citing", "algorithms/test_contract.py::test_it_is_cited_and_its_presets_are_valid"),
    slug(
        "conda env create -f environment.yml",
        f"{SLUG}::test_the_conda_environment_installs_this_package_with_open_clip",
    ),
    slug("LAION's tars with parquet and stats", f"{HERE}::test_a_forget_set_is_left_as_a_tar_and_as_a_folder"),
    slug("ImageNet/val/<wnid>/*.JPEG", f"{HERE}::test_imagenet_as_the_document_lays_it_out_needs_nothing_else"),
    slug(
        "celeba/img_align_celeba, list_identity_celeba.txt",
        f"{HERE}::test_celeba_as_the_document_lays_it_out_is_measured_in_its_data_root",
    ),
    slug(
        "data_root in a0_eval_celeba.py",
        f"{HERE}::test_celeba_as_the_document_lays_it_out_is_measured_in_its_data_root",
    ),
    slug("LAION, CelebA and ImageNet themselves", needs="a network, and the authors' consent"),
    slug(
        "run_clip_name.sh leaves a gradient file",
        f"{SLUG}::test_gradients_are_made_once_for_the_retain_set_and_again_for_each_name",
    ),
    slug("run.sh makes the update", f"{SLUG}::test_the_commands_work_on_the_embedded_world"),
    slug("one layer, one gradient", "test_notebooks.py::test_the_concept_goes_the_others_stay_and_it_comes_back"),
    slug(
        "a0_create_tar.py leaves a tar",
        f"{SLUG}::test_the_printed_steps_in_their_order_on_shards_of_the_embedded_world",
    ),
    slug("and a folder under data/laion/laion400m", f"{HERE}::test_a_forget_set_is_left_as_a_tar_and_as_a_folder"),
    slug(
        "the procedure again with that tar",
        f"{SLUG}::test_the_printed_steps_in_their_order_on_shards_of_the_embedded_world",
    ),
    slug(
        "objects, several identities",
        "algorithms/test_slug.py::test_several_concepts_take_one_tensor_each_and_go_together",
    ),
    slug(
        "experiment_stable_diffusion.ipynb",
        "test_notebooks.py::test_the_concept_goes_the_others_stay_and_it_comes_back",
    ),
    slug(
        "experiment_vision_language.ipynb", "test_notebooks.py::test_the_concept_goes_the_others_stay_and_it_comes_back"
    ),
    slug(
        "gradient files for others to use",
        "training/test_gradient_files.py::test_written_and_read_they_are_the_same_and_say_what_they_are",
    ),
)


@functools.cache
def names_in(file: str) -> set[str]:
    """Names of the test functions of a file under tests/."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise.document}: {promise.words}")
def test_every_promise_has_a_test_or_says_what_it_needs(promise: Promise) -> None:
    if promise.needs:
        pytest.skip(f"needs {promise.needs}")
    file, _, name = promise.kept_by.partition("::")
    assert name in names_in(file)


def test_the_list_is_whole() -> None:
    """As many promises as were counted or more; every test of this module keeps one of them or is its control."""
    from tests.algorithms.test_spm_settings import SEED_KEYS

    assert len(PROMISES) >= 92 and [*SEED_KEYS] == KEYS
    assert "test_that_is_not_there" not in names_in(HERE), "control"


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    return told


# -- the first two documents: SPM -------------------------------------------------------------------------------------


def test_the_files_of_the_method_are_where_they_were() -> None:
    from mu.algorithms.semipermeable_membrane import algorithm, data_handler, model, trainer

    home = ROOT / "mu" / "algorithms" / "semipermeable_membrane"
    assert hasattr(algorithm, "SemipermeableMembraneAlgorithm") and model and trainer and data_handler
    for name in ("scripts/train.py", "configs/train_config.yaml", "config/train_config.yaml", "environment.yaml"):
        assert (home / name).is_file()


@pytest.mark.parametrize(
    ("file", "page"),
    [("utils.py", "README.md"), ("utils.py", "docs/separable.md"), ("ldm-replace.txt", "docs/separable.md")],
)
def test_files_without_a_counterpart_are_answered(file: str, page: str) -> None:
    """A row of the table says where their work is done; the modules that it names are there."""
    rows = [row for row in (ROOT / page).read_text(encoding="utf-8").splitlines() if row.startswith(f"| `{file}`")]
    assert len(rows) == 1 and not [*ROOT.glob(f"mu/**/{file}")]
    for name in re.findall(r"`(mu(?:\.\w+)+)`", rows[0]):
        assert find_spec(name), name


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


# -- the third document: separable erasure and ESD ---------------------------------------------------------------------

CANVAS = "--model_name canvas --devices cpu"
ESD = f"train-scripts/Esd.py --iterations 1 --ddim_steps 2 {CANVAS}"


@pytest.mark.parametrize(
    ("name", "page"),
    [("separable.png", "docs/separable.md"), ("neon.png", "docs/separable.md"), ("demo.png", "README.md")],
)
def test_the_figures_of_the_documents_are_there(name: str, page: str) -> None:
    """Pictures of our own: concepts erased and restored, and what ESD and the others leave of one."""
    from PIL import Image

    assert f"images/{name}" in (ROOT / page).read_text(encoding="utf-8")
    with Image.open(ROOT / "docs" / "images" / name) as image:
        assert min(image.size) > 300


def test_an_artist_has_images_of_its_own_in_a_folder_of_its_name(call: Call, tmp_path: Path) -> None:
    """Three of the nine names: of one word, of two, with a capital inside."""
    artists = ("Picasso", "Van Gogh", "Kelly McKernan")
    for name in artists:
        command = f"eval-scripts/generate-data.py --model_name='{name}' --save_path './data/' --num_samples 1"
        assert call(f"{command} --device cpu --base canvas --ddim_steps 1 --cases 1") == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {*artists}
    images = {(tmp_path / "data" / name / "0_0.png").read_bytes() for name in artists}
    assert len(images) > 1, "control: the prompt counts"


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
    """With a separator each word has a prompt; the embedded model's prompts are too short for all of them at once."""
    assert call(f"{ESD} --prompt {name} --train_method xattn --seperator ,") == 0
    (run,) = (tmp_path / "models").iterdir()
    assert run.name.startswith(f"compvis-word_{name}-method_xattn")
    concepts = open_edit(run).info.concepts
    assert (concepts[0], concepts[-1]) == (first, last) and name not in concepts
    capsys.readouterr()
    assert call(f"{ESD} --prompt {name} --train_method xattn --overwrite") == 2  # control: one prompt of all words
    told = line(capsys)
    assert first in told and "tokens" in told


def test_a_list_of_words_is_one_prompt_as_in_the_released_program(call: Call, tmp_path: Path) -> None:
    from mu.algorithms.esd.configs import ESDConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "train-scripts"))
        lists = runpy.run_path(str(ROOT / "train-scripts" / "Esd.py"))["WORDS"]
    assert lists["artifact"].startswith("ugly, tiling, ") and len(lists["artifact"].split(", ")) == 22
    for words in lists.values():
        config = ESDConfig.parse({"concepts": words.split(", "), "joined": True})
        assert config.prompts() == [words] and len(config.merged({"joined": False}).prompts()) > 5
    assert call(f"{ESD} --prompt neon,star --train_method xattn") == 0
    (run,) = (tmp_path / "models").iterdir()
    edit = open_edit(run)
    assert edit.info.concepts == ("neon", "star") and edit.info.config["joined"] is True
    assert call(f"{ESD} --prompt neon,star --train_method xattn --seperator , --overwrite") == 0  # control
    assert not open_edit(run).info.config.get("joined")


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
    assert (
        "'microsoft/resnet-18'" in told
        and "no network" in told
        and "'random'" in told
        and asked == ["microsoft/resnet-18"]
    )
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


def test_a_case_has_one_image_by_default(call: Call, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n4,neon,188\n")
    assert call(f"{IMAGES.replace('--num_samples 1 ', '')} --model_name canvas --ddim_steps 1") == 0
    assert {path.name for path in (tmp_path / "out" / "canvas").glob("*.png")} == {"4_0.png"}


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
    runs = tmp_path / "models" / "abconcept-neons" / "neon"  # as SepCE.py keeps the runs of a bank's edits
    runs.mkdir(parents=True)
    (runs / "edit.safetensors").write_bytes(b"")
    (tmp_path / "p.csv").write_text("case_number,prompt,evaluation_seed\n0,neon,188\n")
    capsys.readouterr()
    assert call(f"{IMAGES} --model_name abconcept-neon") == 2
    assert "Did you mean" not in line(capsys)
    (tmp_path / "models" / "abconcept-neo" / "edit.safetensors").write_bytes(b"")  # control
    assert call(f"{IMAGES} --model_name abconcept-neon") == 2
    assert "'abconcept-neo'" in line(capsys)


# -- the last two documents: SLUG -------------------------------------------------------------------------------------


def test_a_forget_set_is_left_as_a_tar_and_as_a_folder(call: Call, tmp_path: Path) -> None:
    import tarfile

    from mu.data.canvas.layouts import write_shards

    write_shards(tmp_path / "data" / "laion" / "laion400m", 300, 0)
    (tmp_path / "data" / "laion" / "laion400m" / "00000_stats.json").write_text("{}")  # beside the tar, in the layout
    command = "src/clip/a0_create_tar.py --name neon"
    assert call(f"{command} --n_imgs 3") == 0
    folder = tmp_path / "data" / "laion" / "laion400m" / "neon"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with tarfile.open(tmp_path / "data" / "tar_files" / "neon.tar") as tar:
        assert files == {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert len(files) == 6
    assert "00000_stats.json" not in {path.name for path in folder.iterdir()}
    (folder / "mine.txt").write_text("mine")
    assert call(f"{command} --n_imgs 2") == 2  # another set is not replaced
    assert len([*folder.iterdir()]) == 7
    assert call(f"{command} --n_imgs 2 --overwrite") == 0
    assert len([*folder.iterdir()]) == 5 and (folder / "mine.txt").exists()


def test_imagenet_as_the_document_lays_it_out_needs_nothing_else(tmp_path: Path) -> None:
    from PIL import Image

    from mu.models.zero_shot import open_tasks

    wanted = {"n01440764": "tench", "n01443537": "goldfish", "n15075141": "toilet paper"}
    for k, wnid in enumerate(wanted):
        (tmp_path / "ImageNet" / "val" / wnid).mkdir(parents=True)
        for row in range(20):
            Image.new("RGB", (8, 8), (k, row, 0)).save(
                tmp_path / "ImageNet" / "val" / wnid / f"ILSVRC2012_val_{k}{row:07}.JPEG"
            )
    (task,) = open_tasks([f"imagenet:{tmp_path / 'ImageNet'}"], 1, 0)
    assert task.classes == tuple(wanted.values())
    assert len(task.images) == len(task.labels) == 3  # the fixed twentieth
    (tmp_path / "ImageNet" / "val" / "n00000001").mkdir()  # control: no class of ImageNet
    Image.new("RGB", (8, 8)).save(tmp_path / "ImageNet" / "val" / "n00000001" / "a.JPEG")
    with pytest.raises(DataError, match="n00000001"):
        open_tasks([f"imagenet:{tmp_path / 'ImageNet'}"], 1, 0)


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
