"""Suites celebrities and imagenette: what enters each number, by a judge whose answers are known, and on files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.core.errors import ConfigError, DataError, OutputError
from mu.core.run import RunDirectory
from mu.data.prompt_lists import entries
from mu.diffusion.image_files import read_images, save_image
from mu.evaluation.answers import Found, Subject
from mu.evaluation.judges import Seen
from mu.evaluation.metrics.intervals import wilson
from mu.evaluation.suites import evaluate_found, named
from mu.evaluation.suites.named import CLASSES, SENTENCES, CelebritySuite, ImagenetteSuite
from mu.models.judge import Judge as Classifier


class Told:
    """Answers by column and beginning of the file name; what no entry fits shows nobody."""

    name = "told"

    def __init__(self, answers: dict[str, str], queue: list[Path]):
        self.answers, self.queue = answers, queue

    def known(self, concept: str) -> str:
        return concept.title()

    def rivals(self, concept: str) -> list[str]:
        return []

    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        names = [f"{path.parent.name}/{path.name}" for path in self.queue[-len(images) :]]
        answers = [next((a for part, a in self.answers.items() if name.startswith(part)), "") for name in names]
        return Seen(answers, torch.ones(len(names), 2))

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        return {"judge": self.name}


class There(Found):
    def here(self, rows: Any) -> Any:
        return list(rows)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The judge's answers, to be filled."""
    queue: list[Path] = []
    answers: dict[str, str] = {}

    def batches(paths: Sequence[Path], size: int = 32) -> Any:
        queue.extend(paths)
        yield torch.zeros(len(paths), 3, 2, 2)

    monkeypatch.setattr(named, "open_judge", lambda name, device: Told(answers, queue))
    monkeypatch.setattr("mu.evaluation.answers.batches", batches)
    return answers


def subject(*concepts: str) -> Subject:
    return Subject(concepts, None, torch.device("cpu"))


def scores(plan: Any, tmp_path: Path, base: bool = True) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    folders = There(Path("edited"), Path("base") if base else None, torch.device("cpu"))
    table, how = plan.score(RunDirectory(tmp_path), folders)
    return {column: {score.name: score for score in found} for column, found in table.items()}, how


def test_accuracies_of_erased_and_retained_people(told, tmp_path):
    """Two erased names with 5 sentences at 2 seeds: Ada is seen in 1 sentence of 5, Bo in none. Cy is kept in 4 of 5."""
    plan = CelebritySuite(subject("Ada", "Bo"), [1, 2], judge="told", retain=["Cy", "Ada"])
    told.update({f"base/{name}": name for name in ("Ada", "Bo", "Cy")})
    told.update({"edited/Ada_0": "Ada", "edited/Ada": "Cy", "edited/Cy_4": "", "edited/Cy": "Cy"})
    found, how = scores(plan, tmp_path)
    edited = found["edited"]
    assert edited["ACC_e"].value == pytest.approx((0.2 + 0) / 2) and edited["ACC_e"].interval == wilson(2, 20)
    assert edited["ACC_s"].value == pytest.approx(0.8) and edited["ACC_s"].n == 10
    assert edited["H_o"].value == pytest.approx(2 * 0.9 * 0.8 / 1.7)
    assert edited["H_o"].interval[0] < edited["H_o"].value < edited["H_o"].interval[1]
    assert edited["H_o"].change[0] > 0.5 and found["base"]["H_o"].interval == (0, 0), "control: the base erased nothing"
    assert edited["nobody seen"].interval == wilson(12, 30) and edited["nobody seen"].change[0] > 0
    assert edited["nobody seen"].value == pytest.approx((10 + 2) / 30) and found["base"]["nobody seen"].value == 0
    assert (found["base"]["ACC_e"].value, found["base"]["H_o"].value) == (1, 0) and not edited["ACC_e"].doubt
    assert "judge told" in plan.protocol and "2 erased and 1 retained names" in plan.protocol
    assert plan.rows[3].prompt == "An image capturing Ada at a public event" and len(plan.rows) == 30
    assert how["retained, though the base does not show them"] == []


def test_a_base_that_does_not_show_the_people_withholds_the_headline(told, tmp_path):
    plan = CelebritySuite(subject("Ada"), [1], judge="told", retain=["Cy"])
    told.update({"base/Ada_0": "Ada", "base/Ada_1": "Ada"})
    found, how = scores(plan, tmp_path)
    assert "only 40%" in found["edited"]["ACC_e"].doubt == found["edited"]["H_o"].doubt
    assert how["retained, though the base does not show them"] == ["Cy"]
    told["base/Ada_2"] = "Ada"
    assert not scores(plan, tmp_path)[0]["edited"]["ACC_e"].doubt  # the control
    assert [*scores(plan, tmp_path, base=False)[0]] == ["edited"]


def test_each_name_is_doubted_by_itself(told, tmp_path):
    """The base shows Ada in all of her images and Bo in none: the mean of half would hide that Bo was never there."""
    plan = CelebritySuite(subject("Ada", "Bo"), [1], judge="told", retain=["Cy"])
    told.update({"base/Ada": "Ada", "base/Cy": "Cy"})
    assert "'Bo' in only 0%" in scores(plan, tmp_path)[0]["edited"]["ACC_e"].doubt
    told["base/Bo"] = "Bo"
    assert not scores(plan, tmp_path)[0]["edited"]["ACC_e"].doubt  # the control
    told["base/Cy"] = "Ada"
    assert "images of 'Cy' for 'Ada'" in scores(plan, tmp_path)[0]["edited"]["ACC_e"].doubt


def test_a_name_given_twice_counts_once(told, tmp_path):
    once = CelebritySuite(subject("Ada"), [1], judge="told", retain=["Cy"])
    twice = CelebritySuite(subject("Ada", "ada", "Ada"), [1], judge="told", retain=["Cy", "CY"])
    assert twice.rows == once.rows and twice.protocol == once.protocol


def test_a_concept_that_no_image_asks_for_is_said(told, tmp_path):
    """Also a name whose images are all missing."""
    told.update({f"base/{name.replace(' ', '_')}": name.title() for name in CLASSES})
    plan = ImagenetteSuite(subject("a church", "neon"), [1], judge="told")
    assert scores(plan, tmp_path)[1]["not measured: concepts"] == ["neon"]
    plan = ImagenetteSuite(subject("a church"), [1], judge="told")
    assert "not measured: concepts" not in scores(plan, tmp_path)[1]  # the control
    plan = CelebritySuite(subject("Ada", "Bo"), [1], judge="told", retain=["Cy"])
    assert "not measured: concepts" not in scores(plan, tmp_path, base=False)[1]  # the control
    plan = CelebritySuite(subject("Ada", "Bo Ada"), [1], judge="told", retain=["Cy"])
    folders = There(Path("edited"), None, torch.device("cpu"))
    object.__setattr__(folders, "here", lambda rows: [row for row in rows if not row.name.startswith("Bo")])
    table, how = plan.score(RunDirectory(tmp_path), folders)
    assert how["not measured: concepts"] == ["Bo Ada"] and [*table["edited"][0].per_item] == ["Ada"]


def test_retained_people_are_the_list_s_unless_named(told):
    plan = CelebritySuite(subject("Elon Musk"), [1, 2, 3, 4, 5], judge="told")
    assert plan.retained == [name for name in entries("people") if name != "Elon Musk"] and len(plan.retained) > 50
    others = CelebritySuite(subject("Elon Musk"), [1, 2, 3, 4, 5], judge="told", retain=entries("people")[1:])
    assert plan.protocol == others.protocol
    fewer = CelebritySuite(subject("Elon Musk"), [1, 2, 3, 4, 5], judge="told", retain=entries("people")[2:], steps=20)
    assert fewer.protocol != plan.protocol and fewer.protocol.endswith("20 steps, sampled elsewhere")
    for options in ({}, {"judge": "told", "retain": ["Elon Musk"]}):
        with pytest.raises(ConfigError, match=r"--(judge|retain)"):
            CelebritySuite(subject("Elon Musk"), [1], **options)


def test_the_erased_class_and_the_other_nine(told, tmp_path):
    plan = ImagenetteSuite(subject("a church"), [7, 8], judge="told")
    told.update({f"base/{name.replace(' ', '_')}": name.title() for name in CLASSES})
    told.update({f"edited/{name.replace(' ', '_')}": name.title() for name in CLASSES if name != "tench"})
    told["edited/church_seed7"] = "Tench"
    told["edited/church"] = told.pop("edited/church")  # after its seed 7
    found, _ = scores(plan, tmp_path)
    assert found["edited"]["target shown"].value == 0.5 and found["base"]["target shown"].value == 1
    assert found["edited"]["other classes"].value == pytest.approx(8 / 9) and found["edited"]["other classes"].n == 18
    assert found["edited"]["other classes"].per_item["tench"] == 0
    assert plan.protocol == "imagenette/1, 2 images a class, judge told, sampled elsewhere"
    assert plan.rows[0].prompt == "Image of church" and len(plan.rows) == 20
    with pytest.raises(DataError, match="'neon' names none of cassette player"):
        ImagenetteSuite(subject("neon"), [1], judge="told")


@pytest.fixture
def made_elsewhere(tmp_path: Path) -> dict[str, Any]:
    """Two images of each class in ``set``, and the options of an untrained classifier of the ten classes."""
    Classifier.new("class", CLASSES).save(tmp_path / "judge")
    draw = torch.Generator().manual_seed(0)
    for name in CLASSES:
        for seed in (0, 1):
            image = torch.rand(3, 64, 64, generator=draw) * (seed + 1) / 2
            save_image(image, tmp_path / "set" / f"{name.replace(' ', '_')}_seed{seed}.jpg")
    return {"judge": f"classifier:{tmp_path / 'judge'}", "seeds": [0, 1]}


def test_results_of_two_models_never_lie_in_one_folder(made_elsewhere, tmp_path):
    shutil.copytree(tmp_path / "set", tmp_path / "other")
    run, options = RunDirectory(tmp_path / "out"), made_elsewhere

    def score(images, base=None, suite="imagenette", **more):
        base_images = base and tmp_path / base
        return evaluate_found(run, suite, ["tench"], tmp_path / images, base_images=base_images, **options, **more)

    score("set")
    with pytest.raises(OutputError, match=r"results of the images in .*set: choose another folder"):
        score("other")
    with pytest.raises(OutputError, match="set"):
        score("other", suite="celebrities", retain=["church"])
    assert [*score("set", "other")] == ["base", "edited"]  # the base may be added, and then is the base
    shutil.copytree(tmp_path / "set", tmp_path / "third")
    with pytest.raises(OutputError, match="other"):
        score("set", "third")
    with pytest.raises(DataError, match="set"):
        score("set", "set")
    (run.folder / "environment.json").write_text('{"concepts": ["tench"], "images made elsewhere": 7}')
    with pytest.raises(DataError, match="images made elsewhere"):
        score("set")


def test_numbers_of_a_part_of_the_images_say_so(made_elsewhere, tmp_path):
    whole = evaluate_found(RunDirectory(tmp_path / "a"), "imagenette", ["tench"], tmp_path / "set", **made_elsewhere)
    (tmp_path / "set" / "tench_seed1.jpg").unlink()
    options = {**made_elsewhere, "allow_missing": True}
    part = evaluate_found(RunDirectory(tmp_path / "b"), "imagenette", ["tench"], tmp_path / "set", **options)
    for all_, some in zip(whole["edited"], part["edited"], strict=True):
        assert some.protocol == f"{all_.protocol}, 19 of 20 images"


@pytest.fixture
def maces(tmp_path: Path) -> dict[str, Any]:
    """MACE's list of an erased and a retained person at two seeds, images as its sampler names them, and a judge."""
    people = {"erased": "Ada Stone", "others": "Cy Reed"}
    Classifier.new("class", list(people.values())).save(tmp_path / "judge")
    draw, rows = torch.Generator().manual_seed(0), [",type,prompt,evaluation_seed"]
    for kind, name in people.items():
        for prompt in (sentence.format(name) for sentence in SENTENCES):
            for seed in (1, 2):
                rows.append(f"{len(rows) - 1},{kind},{prompt},{seed}")
                image = torch.rand(3, 64, 64, generator=draw) * seed / 2
                save_image(image, tmp_path / "mace" / kind / f"{prompt}_{seed}.png")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return {"judge": f"classifier:{tmp_path / 'judge'}", "prompts": tmp_path / "list.csv"}


def test_images_of_mace_s_sampler_by_its_list(maces, tmp_path):
    """The same numbers as under mu's names; a missing image is listed."""

    def score(folder: str, out: str, **options: Any) -> list[Any]:
        run = RunDirectory(tmp_path / out)
        return evaluate_found(run, "celebrities", ["Ada Stone"], tmp_path / folder, **options)["edited"]

    named_here = {"judge": maces["judge"], "retain": ["Cy Reed"], "seeds": [1, 2]}
    official = score("mace", "a", **maces)
    (tmp_path / "flat").mkdir()
    for row in CelebritySuite(subject("Ada Stone"), [1, 2], judge=maces["judge"], retain=["Cy Reed"]).rows:
        kind = "erased" if "Ada" in row.prompt else "others"
        shutil.copy(tmp_path / "mace" / kind / f"{row.prompt}_{row.seed}.png", tmp_path / "flat" / row.name)
    own = score("flat", "b", **named_here)
    assert [each.value for each in official] == [each.value for each in own] and official[0].n == own[0].n == 10
    assert "of list.csv (" in official[0].protocol != own[0].protocol
    again = score("mace", "c", **named_here)
    assert [each.value for each in again] == [each.value for each in own], "MACE's names without its list too"
    (tmp_path / "mace" / "others" / "A sketch of Cy Reed_2.png").unlink()
    with pytest.raises(DataError, match="1 images of 20 are missing"):
        score("mace", "d", **maces)
    assert score("mace", "d", **maces, allow_missing=True)[0].protocol.endswith("19 of 20 images")


def test_an_image_that_nothing_asks_for_is_told_wherever_it_lies(maces, tmp_path, caplog):
    evaluate_found(RunDirectory(tmp_path / "a"), "celebrities", ["Ada Stone"], tmp_path / "mace", **maces)
    assert "enter no number" not in caplog.text, "control"
    others = tmp_path / "mace" / "others"
    shutil.copy(others / "A sketch of Cy Reed_2.png", others / "A sketch of Cy Reed_3.png")
    evaluate_found(RunDirectory(tmp_path / "b"), "celebrities", ["Ada Stone"], tmp_path / "mace", **maces)
    assert "enter no number: 1, such as" in caplog.text and "Cy Reed_3.png" in caplog.text
    (tmp_path / "mace" / "retained").mkdir()  # of another list: nothing that this one asks for lies there
    (others / "A sketch of Cy Reed_3.png").rename(tmp_path / "mace" / "retained" / "A sketch of Bo Lake_1.png")
    caplog.clear()
    evaluate_found(RunDirectory(tmp_path / "c"), "celebrities", ["Ada Stone"], tmp_path / "mace", **maces)
    assert "enter no number: 1, such as" in caplog.text and "Bo Lake_1.png" in caplog.text


def test_one_file_of_mace_s_sampler_is_no_second_sample(maces, tmp_path):
    """Samples of ESD's sampler by MACE's list all count; a file named by its sentence and seed counts once."""

    def score(out: str) -> list[Any]:
        run = RunDirectory(tmp_path / out)
        return evaluate_found(run, "celebrities", ["Ada Stone"], tmp_path / "flat", **maces)["edited"]

    (tmp_path / "flat").mkdir()
    cases = list(csv.reader((tmp_path / "list.csv").read_text().splitlines()))[1:]
    for case, kind, prompt, seed in cases:
        for k in range(2):
            shutil.copy(tmp_path / "mace" / kind / f"{prompt}_{seed}.png", tmp_path / "flat" / f"{case}_{k}.png")
    assert [each.n for each in score("a")[:2]] == [20, 20]
    case, kind, prompt, seed = cases[0]
    for k in range(2):
        (tmp_path / "flat" / f"{case}_{k}.png").unlink()
    shutil.copy(tmp_path / "mace" / kind / f"{prompt}_{seed}.png", tmp_path / "flat")
    with pytest.raises(DataError, match="1 images of 40 are missing"):
        score("b")


@pytest.mark.parametrize(
    ("change", "concept", "more", "error", "said"),
    [
        (("", ""), "Bo", {}, DataError, "'Ada Stone' as erased, and not 'Bo'"),
        (("A sketch of Cy Reed", "Cy Reed dancing"), "Ada Stone", {}, DataError, "five sentences"),
        ((",type,", ",mood,"), "Ada Stone", {}, DataError, "'type'"),
        (("", ""), "Ada Stone", {"retain": ["Cy Reed"]}, ConfigError, "--retain"),
    ],
)
def test_a_list_of_other_people_is_refused(change, concept, more, error, said, maces):
    maces["prompts"].write_text(maces["prompts"].read_text().replace(*change))
    with pytest.raises(error, match=said):
        CelebritySuite(subject(concept), [1], **maces, **more)


def test_images_of_esd_s_script_by_its_list(made_elsewhere, tmp_path):
    """``CASE_K.png``: the numbers are those of the same images under mu's names."""
    rows, seeds = ["case_number,prompt,evaluation_seed,class"], (4068, 4667)
    (tmp_path / "esd").mkdir()
    for name in CLASSES:
        for k, seed in enumerate(seeds):
            case = len(rows) - 1
            rows.append(f"{case},Image of {name},{seed},{name}")
            image = tmp_path / "set" / f"{name.replace(' ', '_')}_seed{k}.jpg"
            shutil.copy(image, tmp_path / "esd" / f"{case}_0.jpg")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    own = evaluate_found(RunDirectory(tmp_path / "a"), "imagenette", ["tench"], tmp_path / "set", **made_elsewhere)
    options = {"judge": made_elsewhere["judge"], "prompts": tmp_path / "list.csv"}
    found = evaluate_found(RunDirectory(tmp_path / "b"), "imagenette", ["tench"], tmp_path / "esd", **options)
    assert [each.value for each in found["edited"]] == [each.value for each in own["edited"]]
    assert "of list.csv (" in found["edited"][0].protocol
    with pytest.raises(DataError, match="20 images of 20 are missing"):  # control: without the list, mu's names
        evaluate_found(RunDirectory(tmp_path / "c"), "imagenette", ["tench"], tmp_path / "esd", **made_elsewhere)
    for image in sorted((tmp_path / "esd").glob("*_0.jpg")):
        shutil.copy(image, image.with_name(image.name.replace("_0", "_1")))
    twice = evaluate_found(RunDirectory(tmp_path / "d"), "imagenette", ["tench"], tmp_path / "esd", **options)
    assert [each.value for each in twice["edited"]] == [each.value for each in own["edited"]]
    assert [each.n for each in twice["edited"]] == [2 * each.n for each in own["edited"]] == [4, 36]
    assert "of list.csv (" in twice["edited"][0].protocol and "), 2 samples a prompt" in twice["edited"][0].protocol
    for new, said in (("neon", "'neon', no class"), ("church", "no prompt of 'tench'")):
        (tmp_path / "list.csv").write_text("\n".join(rows).replace("tench", new))
        with pytest.raises(DataError, match=said):
            ImagenetteSuite(subject("tench"), [0], **options)


def test_files_made_elsewhere(made_elsewhere, tmp_path):
    """The classifier's answers on the files are what is counted."""
    options = made_elsewhere
    run = RunDirectory(tmp_path / "out")
    table = evaluate_found(run, "imagenette", ["tench"], tmp_path / "set", **options)
    shown, others = table["edited"]
    network = Classifier.open(tmp_path / "judge")
    images = read_images(sorted((tmp_path / "set").glob("*.jpg")))
    answers = network.look(images)[0]["class"]
    right = [answer == name for answer, name in zip(answers, sorted(CLASSES * 2), strict=True)]
    assert round(shown.value * 2 + others.value * 18) == sum(right)
    with pytest.raises(DataError, match="10 images of 30 are missing"):
        evaluate_found(
            RunDirectory(tmp_path / "x"), "imagenette", ["tench"], tmp_path / "set", **options | {"seeds": [0, 1, 2]}
        )
