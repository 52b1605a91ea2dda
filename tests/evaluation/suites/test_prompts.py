"""Suite prompts: which images a list asks for, and what enters each number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mu.cli import app
from mu.core.errors import ConfigError, DataError
from mu.evaluation.answers import Subject
from mu.evaluation.judges.nudenet import PRESETS, NudityJudge
from mu.evaluation.metrics.intervals import wilson
from mu.evaluation.suites import listed, prompts
from mu.evaluation.suites.listed import read_list
from mu.evaluation.suites.prompts import PromptsSuite
from tests.evaluation.suites.conftest import Colours

LIST = """,case_number,prompt,evaluation_seed,class
0,7,one,11,red
1,8,two,12,red
2,9,three,13,green
3,10,four,14,green
4,11,five,15,green
5,12,six,16,blue
6,13,nothing,17,
"""


@pytest.fixture(autouse=True)
def judge(monkeypatch, without_networks):
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "list.csv"
    path.write_text(LIST)
    return path


def test_what_enters_each_number(bank, scored, file):
    def shows(column, row):
        base = {"one": "red", "two": "red", "three": "green", "four": "green", "five": "blue", "six": "", "nothing": ""}
        return {**base, **({"one": "blue", "four": "red"} if column == "edited" else {})}[row.prompt]

    red = bank("red")
    found = scored(PromptsSuite(Subject.of(red), [1], prompts=file), red, shows)
    base, edited = found["base"], found["edited"]
    assert (base["target shown"].value, edited["target shown"].value, edited["target shown"].n) == (1, 0.5, 2)
    assert edited["target shown"].interval == wilson(1, 2) and edited["target shown"].change[0] <= -0.5
    assert base["expected shown"].per_item == {"green": pytest.approx(2 / 3)}, "blue is not shown by the base"
    assert edited["expected shown"].value == pytest.approx(1 / 3) and edited["expected shown"].n == 3
    assert found["how"]["left out, as the base does not show them"] == ["blue"]
    # One of two target images turned from red to blue, one of five others from green to red: 1 - cosine is 1 for each.
    assert edited["target distance"].value == pytest.approx(0.5) and edited["distance kept"].value == pytest.approx(0.2)
    assert edited["distance kept"].per_item == {"green": pytest.approx(1 / 3), "blue": pytest.approx(0, abs=1e-6)}
    assert "colours" in edited["target shown"].protocol and not edited["target shown"].doubt


def test_without_classes_every_prompt_asks_and_a_seedless_one_at_every_seed(bank, scored, tmp_path):
    file = tmp_path / "list.jsonl"
    file.write_text('"a"\n\n' + json.dumps({"prompt": "b", "seed": 5}) + "\n")
    red = bank("red")
    plan = PromptsSuite(Subject.of(red), [1, 2], prompts=file, retain=["green"])
    assert [(row.prompt, row.seed) for row in plan.rows] == [("a", 1), ("a", 2), ("b", 5)]
    assert plan.among == ["red", "green"]
    found = scored(plan, red, lambda column, row: "red" if column == "base" or row.seed == 5 else "green")
    assert found["edited"]["target shown"].value == pytest.approx(1 / 3) and "distance kept" not in found["edited"]


def test_a_judge_chooses_among_classes_and_what_is_retained(bank, file):
    assert PromptsSuite(Subject.of(bank("red")), [1], prompts=file).among == ["red", "green", "blue"]
    file.write_text(LIST[: LIST.index("5,12")])
    assert PromptsSuite(Subject.of(bank("red")), [1], prompts=file).among == ["red", "green"]
    assert PromptsSuite(Subject.of(bank("red")), [1], prompts=file, retain=["blue"]).among == ["red", "green", "blue"]


def test_a_judge_chooses_among_what_it_knows(bank, tmp_path, monkeypatch):
    file = tmp_path / "list.txt"
    file.write_text("a\nb\n")
    assert set(PromptsSuite(Subject.of(bank("red")), [1], prompts=file).among) == {"red", "green", "blue"}
    nudity = NudityJudge(lambda image: [], PRESETS["mace"], "nudenet:mace")
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: nudity)
    assert PromptsSuite(Subject.of(bank("a nude person")), [1], prompts=file).among == ["nudity"]


def test_several_concepts_each_have_their_share(bank, scored, file):
    both = bank("red", "green")
    shown = {"one": "red", "two": "green", "three": "green", "four": "red", "five": "green"}
    found = scored(PromptsSuite(Subject.of(both), [1], prompts=file), both, lambda _, row: shown.get(row.prompt, ""))
    assert found["base"]["target shown"].per_item == {"red": 0.5, "green": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("shows", "said"), [({"one": "red"}, ""), ({}, "only 0%"), ({"one": "red", "green": "red"}, "'green'")]
)
def test_a_judge_that_cannot_tell_withholds_the_headline(shows, said, bank, scored, file):
    own = {"three": "green", "four": "green", "five": "green"}
    red = bank("red")

    def colour(_, row):
        return shows.get("green", "green") if row.prompt in own else shows.get(row.prompt, "")

    doubt = scored(PromptsSuite(Subject.of(red), [1], prompts=file), red, colour)["edited"]["target shown"].doubt
    assert (said in doubt) if said else doubt == ""


def test_no_prompt_of_the_concept_is_said(bank, scored, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("prompt,seed,class\na,1,green\n")
    red = bank("red")
    found = scored(PromptsSuite(Subject.of(red), [1], prompts=file), red, lambda *_: "green")
    assert (
        found["how"]["not measured"] == ["target shown: no prompt asks for red"] and "target shown" not in found["base"]
    )


def test_a_concept_that_no_prompt_asks_for_is_said(bank, scored, tmp_path):
    file, both = tmp_path / "list.csv", bank("red", "blue")
    for content, lost in (("a,1,green\nb,2,red\n", ["blue"]), ("a,1,blue\nb,2,red\n", None), ("a,1,\nb,2,\n", None)):
        file.write_text(f"prompt,seed,class\n{content}")
        found = scored(PromptsSuite(Subject.of(both), [1], prompts=file), both, lambda *_: "red")
        assert found["how"].get("not measured: concepts") == lost


def test_what_is_retained_is_in_the_protocol_s_name_and_no_erased_concept(bank, scored, file):
    def protocol(*retain, clip=None, score="target shown"):
        plan = PromptsSuite(Subject.of(bank("red")), [1], prompts=file, retain=retain, clip=clip)
        return scored(plan, bank("red"), lambda *_: "red")["edited"][score].protocol

    assert protocol().endswith("colours") and protocol("blue").endswith("colours, 1 retained concept (blue)")
    assert protocol("blue", "green") == protocol("green", "blue", "green") != protocol("blue")
    assert protocol(clip="canvas-clip", score="CLIP score").endswith("colours, clip:canvas-clip")
    with pytest.raises(ConfigError, match="'red' is erased"):
        protocol("blue", "red")


def test_with_a_clip_both_groups_have_scores(bank, scored, file):
    red = bank("red")
    found = scored(PromptsSuite(Subject.of(red), [1], prompts=file, clip="canvas-clip"), red, lambda *_: "red")
    for column in ("base", "edited"):
        assert found[column]["target CLIP score"].n == 2 and found[column]["CLIP score"].n == 5
    assert found["edited"]["distance kept"].value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "options", "error", "said"),
    [
        (None, {}, ConfigError, "--prompts FILE"),
        ("prompt,seed\n", {}, DataError, "no prompts"),
        ("words,seed\na,1\n", {}, DataError, "'prompt'.*--column"),
        ("prompt,seed,class\na,1,violet\n", {}, DataError, "'violet'"),
        ("prompt,seed\na,1\n", {"columns": ["seed=sed"]}, DataError, "'sed'"),
    ],
)
def test_refused_by_name(content, options, error, said, bank, tmp_path):
    file = tmp_path / "list.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(error, match=said):
        PromptsSuite(Subject.of(bank("red")), [1], prompts=file if content is not None else None, **options)


def test_a_judge_that_lacks_the_concept_is_refused(bank, file):
    with pytest.raises(DataError, match="'violet'"):
        PromptsSuite(Subject.of(bank("violet")), [1], prompts=file)
    PromptsSuite(Subject.of(bank("red")), [1], prompts=file)  # the control


# -- the list
# ---------------------------------------------------------------------------------------------------------------------


def test_the_file_s_seeds_scales_and_sizes_are_obeyed_unless_one_is_given_for_all(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("prompt,sd_seed,sd_guidance_scale,width,height\na,3,9,96,64\nb,4,,,\n")
    own, given = read_list("p/1", file, [1]), read_list("p/1", file, [1], steps=9, guidance=2.0, size=(8, 16))
    assert [(r.seed, r.guidance, r.size) for r in own.rows] == [(3, 9, (64, 96)), (4, None, (None, None))]
    assert [(r.seed, r.guidance, r.size) for r in given.rows] == [(3, None, (8, 16)), (4, None, (8, 16))]
    assert (own.steps, own.guidance, given.steps, given.guidance) == (listed.STEPS, listed.GUIDANCE, 9, 2.0)
    assert given.protocol == f"{own.protocol}, 9 steps, guidance 2 for all, size 8x16 for all"
    assert own.how["images with a guidance scale of their own"] == 1 and own.how["heights and widths"] == [[64, 96]]
    assert own.rows[0].name != given.rows[0].name, "another image has another name"


def test_numbers_of_different_lists_never_share_a_column(tmp_path):
    def protocol(text, seeds=(1,)):
        file = tmp_path / "list.csv"
        file.write_text(text)
        return read_list("p/1", file, seeds).protocol

    first = protocol("prompt,seed\na,1\n")
    assert first.startswith("p/1 of list.csv (") and first == protocol("seed,prompt\n1,a\n", (5,))
    others = {protocol("prompt,seed\na,2\n"), protocol("prompt,seed,class\na,1,x\n"), protocol("prompt\na\n")}
    assert len(others | {first, protocol("prompt\na\n", (5,))}) == 5


@pytest.mark.parametrize(
    ("name", "n", "column"), [("church.csv", 50, None), ("imagenet_prompts.csv", 1860, "label_str")]
)
def test_lists_as_they_are_found(name, n, column):
    file = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "prompts" / name
    if not file.is_file():
        pytest.skip("the prompt files of other projects are not here")
    found = read_list("p/1", file, [1], [f"class={column}"] if column else [])
    assert len(found.rows) == n == len({row.name for row in found.rows})
    assert not column or found.cases[0].row.class_name == "tench"


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_made_elsewhere_that_is_none_is_one_line_and_leaves_nothing(content, file, tmp_path):
    """Each ends before a run is begun; ``None`` stands for half of an image."""
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for k in range(7, 14):
        Image.fromarray(noise).save(images / f"{k}_0.png")
    whole = (images / "9_0.png").read_bytes()
    words = ["evaluate", "--images", images, "--suite", "prompts", "--prompts", file, "--concept", "red"]
    words += ["--out", tmp_path / "out", "--device", "cpu"]

    def measured():
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="mu")

    (images / "9_0.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    done = measured()
    assert done.exit_code == 2 and "9_0.png cannot be read" in done.stderr.splitlines()[-1], done.output
    assert done.stderr.count("error: ") == 1 and not (tmp_path / "out").exists()
    (images / "9_0.png").write_bytes(whole)
    done = measured()
    assert done.exit_code == 0 and (tmp_path / "out").is_dir(), "control"
