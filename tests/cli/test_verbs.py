"""Each verb on a real run, on random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mu.core.lock import LOCK
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.edits.files import open_edit
from mu.models import EMBEDDED


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def test_erase_leaves_a_whole_run(finished: Path) -> None:
    run = RunDirectory(finished)
    assert open_edit(run.edit).info.concepts == ("neon style",)
    assert len(run.read_metrics()) == 2
    assert yaml.safe_load(run.config.read_text(encoding="utf-8"))["train"]["max_denoising_steps"] == 2
    assert names(run.before) == names(run.after) != []
    prompts = json.loads((finished / "prompts.json").read_text(encoding="utf-8"))
    assert [p["prompt"] for p in prompts if p["role"] == "target"] == ["A star, neon"]
    assert "neon style" in run.report.read_text(encoding="utf-8")


def test_the_printed_settings_run(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    printed = cli("config", "spm", "--preset", "canvas").stdout
    assert printed.startswith("# Save as FILE, then: mu erase spm --config FILE\n")
    (tmp_path / "settings.yaml").write_text(printed, encoding="utf-8")
    out = tmp_path / "run"
    changes = [
        f"pretrained_model.ckpt_path={tiny_folder}",
        "train.iterations=1",
        "train.max_denoising_steps=2",
        "template_name=star",
    ]
    done = cli(
        "erase", "spm", "--config", tmp_path / "settings.yaml", "--no-pictures", "--out", out,
        *(word for change in changes for word in ("--set", change)),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == ["edit", str(out / "edit.safetensors"), "report", str(out / "report.html")]
    assert open_edit(out).info.concepts == ("star",)
    assert not (out / "before").exists()


def test_a_concept_goes_on_top_of_a_settings_file(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    """Target, positive and the run's name follow it; all else is the file's, also where its target is in a prompts
    file."""
    (tmp_path / "prompts.yaml").write_text("- {target: snoopy, positive: snoopy, la_strength: 7}\n", encoding="utf-8")
    base = f"""
pretrained_model: {{ckpt_path: {tiny_folder}}}
devices: cpu
train: {{iterations: 1, max_denoising_steps: 2, lr: 2e-3}}
output_dir: {tmp_path / "out"}
"""
    prompt = "template_name: &n Snoopy\nprompt: {target: *n, positive: *n, la_strength: 7}\n"
    for name, rest in (("one", prompt), ("file", f"prompts_file: {tmp_path / 'prompts.yaml'}\n")):
        (tmp_path / "c.yaml").write_text(base + rest, encoding="utf-8")
        done = cli(
            "erase",
            "spm",
            "--config",
            tmp_path / "c.yaml",
            "--concept",
            "pop art",
            "--no-pictures",
            "--out",
            tmp_path / name,
        )
        assert done.exit_code == 0, done.output
        info = open_edit(tmp_path / name).info
        assert info.concepts == ("pop art",)
        told = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        assert (told["template_name"], told["prompt"]["target"], told["prompt"]["positive"]) == (
            "pop_art",
            "pop art",
            None,
        )
        assert (told["train"]["lr"], told["prompt"]["la_strength"], told["prompts_file"]) == (2e-3, 7, None)


def test_generate_names_seeds_and_resumes(tmp_path: Path, tiny_folder: Path, finished: Path, cli: Any) -> None:
    (tmp_path / "list.csv").write_text(
        "case_number,prompt,evaluation_seed,evaluation_guidance\n7,A star,188,3\n9,A house,,\n", encoding="utf-8"
    )
    out = tmp_path / "pictures"
    common = ("generate", "--model", tiny_folder, "--edit", finished, "--steps", 1, "--size", "32x64", "--out", out)
    done = cli(*common, "--prompts", tmp_path / "list.csv", "--seed", 5)
    assert done.exit_code == 0, done.output
    assert names(out) == ["7_0.png", "9_0.png"]
    assert Image.open(out / "7_0.png").size == (64, 32)
    assert json.loads((out / "prompts.json").read_text(encoding="utf-8")) == [
        {"case_number": 7, "prompt": "A star", "seed": 188},
        {"case_number": 9, "prompt": "A house", "seed": 5},
    ]

    (out / "9_0.png").unlink()
    (out / "7_0.png").write_bytes(b"kept")
    assert cli(*common, "--prompts", tmp_path / "list.csv", "--n", 2, "--resume").exit_code == 0
    assert names(out) == ["7_0.png", "7_1.png", "9_0.png", "9_1.png"]
    assert (out / "7_0.png").read_bytes() == b"kept"

    for other in (
        ("--steps", 2),
        ("--strength", 0.5),
        ("--gate", "none"),
        ("--negative", "bad"),
        ("--precision", "bfloat16"),
    ):
        refused = cli(*common, "--prompts", tmp_path / "list.csv", "--n", 2, "--resume", *other)
        what = other[0].removeprefix("--")
        assert refused.exit_code == 2 and "7_0.png" in refused.stderr and f"{what} " in refused.stderr
    assert (out / "7_0.png").read_bytes() == b"kept"

    assert cli(*common, "--prompts", tmp_path / "list.csv", "--n", 2, "--overwrite").exit_code == 0
    assert (out / "7_0.png").read_bytes() != b"kept"


def test_generate_takes_seeds_and_guidance_as_the_file_says(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        "mu.diffusion.image_folder.write_images", lambda model, rows, folder, **how: made.append((rows, how))
    )
    (tmp_path / "list.csv").write_text(
        "prompt,evaluation_seed,evaluation_guidance\nA star,188,3\nA house,,\n", encoding="utf-8"
    )
    common = (
        "generate",
        "--model",
        tiny_folder,
        "--prompts",
        tmp_path / "list.csv",
        "--n",
        2,
        "--seed",
        5,
    )
    outs = [("--out", tmp_path / name) for name in ("one", "two", "three")]
    assert cli(*common, *outs[0]).exit_code == cli(*common, *outs[1], "--guidance", 2).exit_code == 0
    (rows, how), (fixed, other) = made
    assert [(row.name, row.seed) for row in rows] == [
        ("0_0.png", 188),
        ("0_1.png", 189),
        ("1_0.png", 5),
        ("1_1.png", 6),
    ]
    assert [row.guidance for row in rows] == [3, 3, None, None] and how["guidance"] == 7.5
    assert "1 of 2 prompts have no seed" in cli(*common, *outs[2]).stderr
    assert {row.guidance for row in fixed} == {None} and other["guidance"] == 2


def test_the_list_of_the_images_is_written_before_another_process_may_begin(
    tiny_folder: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = RunDirectory.write_prompts, list[bool]()

    def write(run: RunDirectory, prompts: Any) -> None:
        seen.append((run.folder / LOCK).exists())
        real(run, prompts)

    monkeypatch.setattr(RunDirectory, "write_prompts", write)
    out = tmp_path / "images"
    done = cli("generate", "--prompt", "a star", "--model", tiny_folder, "--steps", 1, "--size", "32x32", "--out", out)
    assert done.exit_code == 0 and seen == [True], done.output
    assert sorted(path.name for path in out.iterdir()) == ["0_0.png", "prompts.json", "recipe.json"], "control"


@pytest.mark.parametrize(("gate", "differs"), [("none", True), ("facilitated_transport", True), ("off", False)])
def test_generate_puts_the_edit_on(
    gate: str, differs: bool, tmp_path: Path, tiny_folder: Path, finished: Path, cli: Any
) -> None:
    """With an edit scaled until it is large enough to be seen after two steps of training."""
    strong = tmp_path / "strong.safetensors"
    edit = open_edit(finished)
    for factors in edit.factors.values():  # type: ignore[attr-defined]
        factors.alpha *= 3e4
    edit.save(strong)
    how = ("--strength", 0) if gate == "off" else ("--gate", gate)
    common = ("generate", "--prompt", "neon style", "--model", tiny_folder, "--steps", 2)
    assert cli(*common, "--out", tmp_path / "base").exit_code == 0
    assert cli(*common, "--edit", strong, *how, "--out", tmp_path / "edited").exit_code == 0
    base, edited = ((tmp_path / part / "0_0.png").read_bytes() for part in ("base", "edited"))
    assert (base != edited) is differs


def test_evaluate_prints_scores_and_writes_the_report(
    finished: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    asked = {}

    def measured(run: RunDirectory, suite: str, model: Any, edit: Any, **how: Any) -> dict[str, list[Score]]:
        asked.update(how, suite=suite, model=model.name)
        score = Score("UA", 0.75, 8, "higher", "canvas/1")
        table = {
            "base": [Score("UA", 0.0, 8, "higher", "canvas/1")],
            "edited": [score, Score("odd [b]", 1.5, 3, "lower", "x")],
        }
        run.write_scores(suite, table)
        return table

    monkeypatch.setattr("mu.evaluation.suites.evaluate", measured)
    (finished / "report.html").unlink()
    shown = cli("evaluate", finished, "--seeds", "1,2")
    assert shown.exit_code == 0, shown.output
    given = {name: value for name, value in asked.items() if value not in (None, [])}
    assert given == {"seeds": [1, 2], "suite": "concept", "model": str(tiny_folder)}
    assert {"base", "edited", "75.0%", "higher", "odd", "[b]"} <= set(
        shown.stdout.replace("│", " ").replace("┃", " ").split()
    )
    assert (finished / "report.html").exists() and (finished / "manifest.json").exists()
    told = "25.0% show it; the base shows it in 100.0%."
    assert shown.stdout.strip().endswith(told) and told in (finished / "report.html").read_text(encoding="utf-8")

    table = json.loads(cli("evaluate", finished, "--json").stdout)
    assert table["edited"][0] == {
        "name": "UA",
        "value": 0.75,
        "n": 8,
        "direction": "higher",
        "protocol": "canvas/1",
        "per_item": {},
    }
    (finished / "scores.json").unlink()  # other tests share the run


def test_evaluate_refuses_a_model_that_no_suite_measures(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """A pipeline with random weights; a copy of the embedded model under another name is measured."""
    refused = cli("evaluate", finished, "--suite", "canvas", "--seeds", 1, "--device", "cpu")
    assert refused.exit_code == 2 and refused.stdout == ""
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert "suite canvas" in line and "--suite concept" in line
    assert not (finished / "answers").exists() and not (finished / "scores.json").exists()

    copied = shutil.copytree(EMBEDDED["canvas"], tmp_path / "copied")
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr("mu.evaluation.suites.canvas.STEPS", 1)
    done = cli("evaluate", run, "--seeds", 1, "--device", "cpu", "--model", copied)
    assert done.exit_code == 0, done.output
    assert RunDirectory(run).read_scores().keys() == {"canvas"}


def test_report_of_one_and_of_several(finished: Path, tmp_path: Path, cli: Any) -> None:
    assert cli("report", finished).stdout == f"{finished / 'report.html'}\n"
    page = tmp_path / "both.html"
    assert cli("report", finished, finished, "--out", page).exit_code == 0
    assert page.exists()


def test_merge_writes_what_opens_again(finished: Path, tiny_folder: Path, tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "lora.safetensors"
    assert cli("merge", finished, "--model", tiny_folder, "--format", "kohya", "--out", path).exit_code == 0
    assert open_edit(path).parameters == open_edit(finished).parameters


def test_merge_prints_the_place_alone(finished: Path, tiny_folder: Path, tmp_path: Path, cli: Any) -> None:
    done = cli("merge", finished, "--model", tiny_folder, "--format", "diffusers", "--out", tmp_path / "merged")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'merged'}\n")
    assert done.stderr.count("WARNING") == 1 and "the gate of the edit of 'neon style' is lost" in done.stderr


def test_info(finished: Path, cli: Any) -> None:
    told = json.loads(cli("info", finished, "--json").stdout)
    assert told["concepts"] == ["neon style"] and told["method"] == "spm" and told["kind"] == "LowRankEdit"
    assert told["parameters"] == len(told["names"]) > 0 and told["bytes"] > told["numbers"] > 0
    shown = cli("info", finished / "edit.safetensors").stdout
    assert "neon style" in shown and all(half in shown for half in told["fingerprint"].split())


def test_methods(cli: Any) -> None:
    from mu.algorithms import ALGORITHMS

    told = json.loads(cli("methods", "--json").stdout)
    assert [row["name"] for row in told] == list(ALGORITHMS)
    for row in told:
        assert row["summary"] and row["title"] and row["year"].isdecimal(), row
        assert "{" not in row["title"] and "\n" not in row["title"]
    assert "spm" in cli("methods").stdout


def test_cite_agrees_for_method_run_and_edit(finished: Path, cli: Any) -> None:
    told = [cli("cite", what).stdout for what in ("spm", finished, finished / "edit.safetensors")]
    assert told[0].startswith("@inproceedings{lyu2024one,") and set(told) == {told[0]}


def test_erase_records_device_and_precision_as_settings(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    done = cli(
        "erase",
        "spm",
        "--concept",
        "neon",
        "--model",
        tiny_folder,
        "--preset",
        "canvas",
        "--device",
        "cpu",
        "--precision",
        "bfloat16",
        "--set",
        "train.iterations=1",
        "--set",
        "train.max_denoising_steps=2",
        "--set",
        "pretrained_model.clip_skip=2",
        "--no-pictures",
        "--out",
        tmp_path / "run",
    )
    assert done.exit_code == 0, done.output
    told = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert (told["devices"], told["train"]["precision"], told["pretrained_model"]["clip_skip"]) == (
        "cpu",
        "bfloat16",
        2,
    )


def test_canvas_render_and_resume(tmp_path: Path, cli: Any) -> None:
    out = tmp_path / "shards"
    assert cli("canvas", "render", "shards", out, "--n", 3).exit_code == 0
    assert (out / "00000.tar").exists()
    assert cli("canvas", "render", "shards", out, "--n", 3).exit_code == 2
    assert cli("canvas", "render", "shards", out, "--n", 3, "--resume").exit_code == 0


def test_canvas_train_passes_on_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("mu.models.canvas.training.train_world", lambda out, **how: asked.update(how, out=out))
    done = cli(
        "canvas",
        "train",
        "--out",
        tmp_path,
        "--stages",
        "judge,clip",
        "--steps",
        "judge=3",
        "--device",
        "cpu",
        "--seed",
        4,
    )
    assert done.exit_code == 0, done.output
    assert asked == {
        "out": tmp_path,
        "seed": 4,
        "world": None,
        "device": "cpu",
        "stages": ("judge", "clip"),
        "steps": {"judge": 3},
    }


def test_demo_prints_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    monkeypatch.setattr("mu.demo.run", lambda folder, overwrite: folder / f"{overwrite}.html")
    assert cli("demo", "--out", tmp_path, "--overwrite").stdout == f"{tmp_path / 'True.html'}\n"
