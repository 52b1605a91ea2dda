"""Suite concept: what enters each number, by a judge whose answers are known; and one run on the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mu
from mu.core.concept import says
from mu.core.errors import ConfigError, DataError, MissingDependency
from mu.core.evidence import CHANGED, findings
from mu.core.judged import kept_base
from mu.core.run import RunDirectory
from mu.diffusion.image_files import save_image
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation import answers as answers_module
from mu.evaluation.answers import Answers, Found, Subject
from mu.evaluation.comparing import clip_columns
from mu.evaluation.judges import Seen
from mu.evaluation.metrics.intervals import wilson
from mu.evaluation.suites import SUITES, evaluate, evaluate_found
from mu.evaluation.suites import concept as suite
from mu.evaluation.suites.concept import Column, ConceptSuite, asked, named_protocol, nearest
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import select


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return mu.load("canvas", device="cpu")


def edit(model: DiffusionModel, size: float, concept: str = "neon") -> WeightEdit:
    shifts = {name: torch.full_like(p, size) for name, p in select(model, "unet.conv_out.bias").items()}
    return WeightEdit(shifts, EditInfo("test", (concept,)))


class Told:
    """A judge that answers by a table from file names; features are what it is told."""

    name = "told"

    def __init__(self, answers: dict[str, str]):
        self.answers, self.queue = answers, []  # type: ignore[var-annotated]

    def known(self, concept: str) -> str:
        return concept

    def rivals(self, concept: str) -> list[str]:
        return ["sketch", "photo"]

    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        names = [self.queue.pop(0) for _ in images]
        answers = [next((a for part, a in self.answers.items() if part in name), "") for name in names]
        return Seen(answers, torch.stack([torch.tensor([1.0, len(name) % 3, k]) for k, name in enumerate(names)]))

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        return {"judge": self.name}


def scored(
    model: DiffusionModel, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    """The scores with pictures that are never made: the judge answers by column and file name."""
    judge = Told(answers)

    def batches(paths: Sequence[Path], size: int = 32) -> Any:
        judge.queue += [f"{path.parent.name}/{path.name}" for path in paths]
        yield torch.zeros(len(paths), 3, 2, 2)

    monkeypatch.setattr(suite, "open_judge", lambda name, device: judge)
    monkeypatch.setattr("mu.evaluation.answers.batches", batches)
    ranked: list[Tensor] = []
    monkeypatch.setattr(suite, "put_most_changed", lambda *given: ranked.append(given[3]))
    bank = Bank(model, [edit(model, 0.0)])
    plan = ConceptSuite(Subject.of(bank), [1, 2], everyday=10)
    made = Answers(bank, tmp_path / "base", tmp_path / "edited", 1, 1.0)
    table, how = plan.score(RunDirectory(tmp_path), made)
    return {
        "how": how,
        "ranked": ranked[0],
        **{column: {s.name: s for s in scores} for column, scores in table.items()},
    }


def test_what_enters_each_number(model, monkeypatch, tmp_path):
    known = {
        "base/target": "neon", "edited/target_neon_0": "neon", "edited/target": "photo",
        "base/neighbour_sketch": "sketch", "edited/neighbour_sketch": "sketch", "base/neighbour_photo": "photo",
        "edited/neighbour_photo_0": "photo", "edited/everyday_000": "neon",
    }  # fmt: skip
    found = scored(model, known, monkeypatch, tmp_path)
    base, edited = found["base"], found["edited"]
    assert base["target shown"].value == 1 and edited["target shown"].value == pytest.approx(2 / 20)
    assert edited["target shown"].interval == wilson(2, 20) and edited["target shown"].n == 20
    assert edited["target shown"].change[0] <= -0.9 <= edited["target shown"].change[1]
    assert base["neighbours kept"].value == 1 and edited["neighbours kept"].value == pytest.approx((1 + 2 / 8) / 2)
    assert edited["neighbours kept"].per_item == {"sketch": 1.0, "photo": pytest.approx(0.25)}
    assert base["unasked"].value == 0 and edited["unasked"].value == pytest.approx(1 / edited["unasked"].n)
    assert edited["replacement"].per_item == {"photo": pytest.approx(0.9)}
    assert not edited["target shown"].doubt and found["how"]["neighbours"] == ["sketch", "photo"]


@pytest.mark.parametrize("lpips", [True, False])
def test_the_images_shown_are_those_of_the_largest_distance_in_the_score(lpips, model, monkeypatch, tmp_path):
    """By LPIPS where it is, else by the judge's features."""

    def by_lpips(answers: Any, rows: Sequence[Any]) -> list[float]:
        if not lpips:
            raise MissingDependency("lpips", "eval", "the test")
        return [float(k) for k in range(len(rows))]

    monkeypatch.setattr("mu.evaluation.comparing.lpips_distances", by_lpips)
    found = scored(model, {"base/target": "neon"}, monkeypatch, tmp_path)
    score, ranked = found["edited"]["distance kept"], found["ranked"].tolist()
    assert score.value == pytest.approx(sum(ranked) / len(ranked)) and ("LPIPS" in score.protocol) == lpips
    assert (ranked == [*range(len(ranked))]) == lpips, "by the judge's features none is as far as by LPIPS"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"edited": "neon"}, "only 0%"),
        ({"base/target_neon_0": "neon", "base/target": "photo"}, "only 10%"),
        ({"base/target": "neon", "base/neighbour_photo": "neon"}, "'photo'"),
    ],
)
def test_a_judge_that_does_not_see_the_concept_cannot_tell(answers, said, model, monkeypatch, tmp_path):
    found = scored(model, answers, monkeypatch, tmp_path)
    assert said in found["edited"]["target shown"].doubt == found["base"]["target shown"].doubt
    assert found["edited"]["replacement"].doubt == found["edited"]["target shown"].doubt  # it tells the same number
    seen = scored(model, {"base/target": "neon", "base/neighbour": "sketch"}, monkeypatch, tmp_path)
    assert not (seen["edited"]["target shown"].doubt or seen["edited"]["replacement"].doubt)  # the control


def test_a_neighbour_that_the_base_does_not_show_is_left_out_by_name(model, monkeypatch, tmp_path):
    known = {"base/target": "neon", "base/neighbour_sketch": "sketch", "edited/neighbour_sketch": "sketch"}
    found = scored(model, known, monkeypatch, tmp_path)
    assert found["edited"]["neighbours kept"].per_item == {"sketch": 1.0}
    assert found["how"]["left out, as the base does not show them"] == ["photo"]


def test_images_are_asked_for_once_and_everyday_prompts_do_not_name_the_concept(model):
    wanted = asked(["watercolor"], ["sketch"], [1, 2], ["aquarelle"], 200)
    names = [row.name for row in wanted.rows]
    assert len(set(names)) == len(names) and len(wanted.target) == 2 * 10 * 2 and len(wanted.neighbours) == 4 * 2
    assert not any(says(row.prompt, "watercolor") for row in wanted.everyday)
    assert 150 < len(wanted.everyday) < len(asked(["zebra crossing x"], ["sketch"], [1], [], 200).everyday)
    with pytest.raises(ConfigError, match="one concept"):
        asked(["a", "b"], [], [1], ["c"], 3)


def test_neighbours_are_near_and_never_the_concept_itself(model):
    class Any_(Told):
        def rivals(self, concept: str) -> list[str]:
            return []

    near = nearest(model, ["neon"], Any_({}))
    assert len(near) == suite.NEIGHBOURS and not any(says(name, "neon") for name in near)
    with pytest.raises(DataError, match="--retain"):
        nearest(model, ["sketch", "photo"], Told({}))


def test_a_departure_from_the_protocol_is_in_its_name():
    assert named_protocol("canvas") == "concept/1, judge canvas" and SUITES["concept"].seeds == suite.SEEDS
    told = named_protocol("canvas", steps=20, guidance=4.0, everyday=5)
    assert told == "concept/1, judge canvas, 20 steps, guidance 4, 5 everyday prompts"
    told = named_protocol("canvas", [2, 1], retain=["hot dog"], synonyms=["a", "b"], elsewhere=True)
    assert told == "concept/1, judge canvas, 2 seeds (1 2), 1 neighbour (hot_dog), 2 synonyms (a b), sampled elsewhere"
    many = [named_protocol("canvas", retain=names) for names in ("abcd", "dcba", "abce")]
    assert many[0] == many[1] != many[2] and "4 neighbours" in many[0]


def test_the_clip_of_another_judge_is_in_the_name_of_its_score(model, tmp_path):
    def protocols(clip, judge="clip:canvas-clip"):
        options = {"judge": judge, "clip": clip, "retain": ["sketch"], "everyday": 0}
        plan = ConceptSuite(Subject(("neon",), model, model.device), [1], **options)
        folders = drawn(plan, tmp_path)
        return {score.name: score.protocol for score in plan.score(RunDirectory(tmp_path), folders)[0]["edited"]}

    own, other = protocols(None), protocols("canvas-clip", "canvas")
    assert own["CLIP score"] == own["target shown"] and "judge clip:canvas-clip" in own["CLIP score"]
    assert other["CLIP score"] == f"{other['target shown']}, clip:canvas-clip"


def drawn(plan: ConceptSuite, folder: Path) -> Found:
    """Grey images under the names of the suite, for both columns."""
    for row in plan.rows:
        save_image(torch.full((3, 32, 32), 0.5), folder / "images" / row.name)
    return Found(folder / "images", folder / "images", torch.device("cpu"))


def test_a_clip_looks_at_every_image_once(model, tmp_path):
    """For two concepts, as judge and for the CLIP score."""
    plan = ConceptSuite(
        Subject(("neon", "mosaic"), model, model.device), [1], judge="clip:canvas-clip", retain=["sketch"], everyday=4
    )
    clip, seen = plan.judge.model, []
    encode, clip.encode_images = clip.encode_images, lambda images: seen.append(len(images)) or encode(images)
    folders = drawn(plan, tmp_path)
    among = [*plan.known.values(), *plan.near]
    column = Column(plan.judge, folders, plan.asked, among, plan.known, "edited", plan.features)
    assert sum(seen) == len(plan.rows) and [*column.unasked] == ["neon", "mosaic"]
    del clip.encode_images
    features, fits = clip_columns(clip, folders.paths(plan.asked.kept), plan.asked.kept)
    assert torch.allclose(column.features, features, atol=1e-5) and column.closeness == pytest.approx(fits, abs=1e-5)


def test_an_image_is_read_once_for_the_judge_and_the_clip(model, tmp_path, monkeypatch):
    options = {"judge": "canvas", "clip": "canvas-clip", "retain": ["sketch"], "everyday": 4}
    plan = ConceptSuite(Subject(("neon",), model, model.device), [1], **options)
    folders, read = drawn(plan, tmp_path), []
    pixels = answers_module.read_pixels
    monkeypatch.setattr(answers_module, "read_pixels", lambda path: read.append(path) or pixels(path))
    column = Column(plan.judge, folders, plan.asked, ["neon", "sketch"], plan.known, "edited", plan.features)
    assert sorted(read) == sorted(folders.paths(plan.rows))
    features, fits = clip_columns(plan.features.clip, folders.paths(plan.asked.kept), plan.asked.kept)
    assert torch.allclose(column.features, features, atol=1e-5) and column.closeness == pytest.approx(fits, abs=1e-5)
    assert len(read) == len(plan.rows) + len(plan.asked.kept)  # the control: whoever reads by itself reads again


def test_what_is_named_twice_counts_once(model):
    def rows(*concepts, **options):
        usual = {"judge": "canvas", "everyday": 3, "retain": ["sketch"]}
        plan = ConceptSuite(Subject(concepts, model, model.device), [1], **{**usual, **options})
        return plan.rows, plan.protocol

    once = rows("neon")
    assert rows("neon", "neon") == rows("neon", "Neon") == once != rows("neon", "star")
    assert rows("neon", retain=["sketch", "sketch", "Sketch style"]) == once
    assert rows("neon", synonyms=["NEON"])[0] == once[0] != rows("neon", synonyms=["lamp"])[0]
    for erased in ("neon", "Neon", "neon style"):  # another spelling of the judge's class
        with pytest.raises(ConfigError, match="is erased"):
            rows("neon", retain=["sketch", erased])


def test_everyday_images_are_the_base_s_whatever_was_erased():
    """A prompt that names one concept is left out of its run, and shifts no other."""
    every = {row.name: row for row in asked(["zebra crossing x"], ["sketch"], [1], [], 200).everyday}
    for concept in ("watercolor", "dog", "photo"):
        some = asked([concept], ["sketch"], [1], [], 200).everyday
        assert 150 < len(some) < 200 == len(every)
        assert all(every[row.name] == row for row in some)


def test_every_neighbour_counts_once_whatever_images_are_missing(model, monkeypatch, tmp_path):
    """Sketch has eight images and is seen in all, photo has two and is seen in none: 1/2, not 8/10."""
    first = "neighbour_photo_0"
    monkeypatch.setattr(
        Answers, "here", lambda self, rows: [r for r in rows if "neighbour_photo" not in r.name or first in r.name]
    )
    known = {"base/target": "neon", "base/neighbour_sketch": "sketch", "base/neighbour_photo": "photo"}
    found = scored(model, {**known, "edited/neighbour_sketch": "sketch"}, monkeypatch, tmp_path)
    kept = found["edited"]["neighbours kept"]
    assert (kept.value, kept.n, found["base"]["neighbours kept"].value) == (0.5, 10, 1)
    assert kept.per_item == {"sketch": 1, "photo": 0} and kept.change[0] <= -0.5 <= kept.change[1]


def test_the_whole_way_on_the_embedded_model(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        suite, "NEIGHBOUR_TEMPLATES", {kind: texts[:1] for kind, texts in suite.NEIGHBOUR_TEMPLATES.items()}
    )
    monkeypatch.setattr(suite, "TARGET_TEMPLATES", {kind: texts[:6] for kind, texts in suite.TARGET_TEMPLATES.items()})
    run, broken = RunDirectory(tmp_path / "run"), edit(model, 3.0)
    run.folder.mkdir()
    broken.save(run.edit)
    options = {"judge": "clip:canvas-clip", "retain": ["sketch", "photo"], "everyday": 4, "steps": 6, "guidance": 4.0}
    table = evaluate(run, "concept", model, broken, seeds=[3], **options)
    base, edited = ({s.name: s for s in table[column]} for column in ("base", "edited"))
    assert base["target shown"].value > 0.5 > edited["target shown"].value
    assert edited["distance kept"].value > 0.1 and edited["CMMD"].value > 0
    assert [panel.title for panel in run.read_panels()] == ["What should stay and changed most (concept)"]
    assert not [each for each in findings(run) if each.state == CHANGED]
    image = next((run.answers / "concept" / "edited").glob("target*.png"))
    image.write_bytes((run.answers / "concept" / "base" / image.name).read_bytes())
    assert [each.part for each in findings(run) if each.state == CHANGED] == ["answers/concept/edited/"]
    again = evaluate(run, "concept", model, broken, seeds=[3], **options)
    assert again["edited"][0] == table["edited"][0]  # the swapped image is made again
    assert not kept_base(run, "concept").exists(), "the base's images lie in the run"
    evaluate(run, "concept", model, broken, seeds=[3], **options, base_answers=tmp_path / "shared")
    assert list(kept_base(run, "concept").glob("target*.png")), "the page shows copies of shared ones"
    folders = [run.answers / "concept" / column for column in ("edited", "base")]
    elsewhere = {"judge": "clip:canvas-clip", "everyday": 4, "seeds": [3], "base_images": folders[1]}
    found = evaluate_found(
        RunDirectory(tmp_path / "found"), "concept", ["neon"], folders[0], retain=["sketch", "photo"], **elsewhere
    )
    assert [score.value for score in found["edited"]] == [score.value for score in table["edited"]]
    with pytest.raises(ConfigError, match="--retain"):
        evaluate_found(RunDirectory(tmp_path / "x"), "concept", ["neon"], folders[0], **elsewhere)
