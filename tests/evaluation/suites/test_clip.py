"""The suite ``clip`` on the shipped CLIP: what does nothing scores as the base, what forgets one style is told from
what breaks all."""

from __future__ import annotations

import json
import logging
import sys

import pytest
import torch
from PIL import Image

import mu
from mu.algorithms.single_layer_unlearning_gradient.configs import SlugMethod
from mu.algorithms.single_layer_unlearning_gradient.data_handler import SingleLayerUnlearningGradientDataHandler
from mu.core.errors import ConfigError, ModelError
from mu.core.intervals import wilson
from mu.core.run import RunDirectory
from mu.data.canvas import IDENTITIES, rendered_pairs
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.metrics.membership import membership_inference
from mu.evaluation.suites import clip as suite
from mu.evaluation.suites import evaluate, suite_for
from mu.models.contrastive import mean_gradients
from mu.models.parameters import find_parameter
from mu.models.zero_shot import Target, ZeroShot, report_tasks, target_of
from mu.report import write_report

CONCEPT = "Ada Stone"
TENSOR = "visual_projection.weight"
CONFIG = {"data": {"forget": "canvas", "n_forget": 24, "tasks": ["canvas"]}}


@pytest.fixture(scope="module")
def model():
    return mu.load("canvas-clip", device="cpu")


@pytest.fixture(scope="module")
def direction(model):
    """The forget gradient of one tensor, as long as the tensor."""
    theta = find_parameter(model, TENSOR)
    g = mean_gradients(model, rendered_pairs(24, 1, CONCEPT), {TENSOR: theta}, "cosine")[TENSOR]
    return g * theta.detach().norm() / g.norm()


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(suite, "PER_CLASS", 3)


def edit_of(shift, concepts=(CONCEPT,), config=CONFIG) -> WeightEdit:
    return WeightEdit({TENSOR: shift}, EditInfo("test", concepts, config=config, seed=0))


def values(scores) -> dict[str, float]:
    return {score.name: score.value for score in scores}


def test_the_suite_tells_nothing_from_forgetting_from_breaking(model, direction, tmp_path, snapshot):
    before = snapshot(model)
    measured_twice = RunDirectory(tmp_path / "forgets")
    runs = {"still": measured_twice, "forgets": measured_twice, "breaks": RunDirectory(tmp_path / "breaks")}
    theta = find_parameter(model, TENSOR).detach()
    shifts = {"still": 0 * direction, "forgets": 0.1 * direction, "breaks": theta.flip(0) - theta}
    tables = {name: evaluate(run, "clip", model, edit_of(shifts[name]), seeds=(1,)) for name, run in runs.items()}
    still, forgets, breaks = (values(tables[name]["edited"]) for name in runs)
    assert values(tables["still"]["base"]) == still == values(tables["breaks"]["base"])
    assert (
        still["FA@1"] == 1
        and still["identity@1 retained"] >= 0.9
        and still["style@1"] >= 0.9
        and still["cosine of forget pairs"] > 0.4
    )
    assert forgets["FA@1"] <= 0.4 and forgets["identity@1 retained"] >= 0.9 and forgets["style@1"] >= 0.9
    assert forgets["cosine of forget pairs"] < still["cosine of forget pairs"] - 0.1
    assert breaks["identity@1 retained"] < 0.5 and breaks["style@1"] < 0.5
    assert forgets["MIA"] > still["MIA"] + 0.1, "what was over-forgotten stands out"
    assert runs["forgets"].read_scores() == {"clip": tables["forgets"]}
    assert snapshot(model) == before
    unmeant = {score.name for table in tables.values() for score in table["edited"] if not score.change}
    assert unmeant == {"MIA"}, "its draws have a spread of their own"
    assert all(score.interval for score in tables["still"]["base"] if score.name != "MIA")
    still_fa, fa = (next(s for s in tables[name]["edited"] if s.name == "FA@1") for name in ("still", "forgets"))
    assert still_fa.change == (0.0, 0.0) and fa.change[1] < 0 and fa.interval == wilson(round(fa.value * fa.n), fa.n)

    told = json.loads((runs["forgets"].folder / "similarity.json").read_text(encoding="utf-8"))
    assert told["names"][0] == CONCEPT and len(told["names"]) == 5 and [len(row) for row in told["base"]] == [5] * 5
    assert told["edited"][0][0] < told["base"][0][0] - 0.1 and told["edited"][1][1] > told["edited"][1][0]
    with Image.open(runs["forgets"].folder / "similarity.png") as figure:
        assert figure.size == (1600, 600)
    page = write_report(runs["forgets"]).read_text(encoding="utf-8")
    assert all(text in page for text in ("identity@1 retained", "MIA", suite.PANEL, "data:image/jpeg"))
    assert len(json.loads((runs["forgets"].folder / "panels.json").read_text(encoding="utf-8"))) == 1, (
        "its own panel is replaced"
    )


def test_the_macro_means_are_those_of_their_classes(model):
    """From made-up similarities: two people of three, four and one image; one of the first's four is wrong."""
    task = ZeroShot("identity", ("A", "B", "C", "D", "E", "F"), ("{}",), [], (0, 0, 0, 0, 1, 2))
    seen = torch.eye(6)[torch.tensor([0, 0, 0, 5, 1, 3])]
    found = {s.name: s for s in suite.accuracies({"identity": seen}, [task], [Target("b", task, 1)], "p")}
    assert found["FA@1"].value == 1 and found["FA@1"].per_item == {"b": 1.0} and found["FA@1"].n == 1
    assert found["identity@1"].value == pytest.approx((0.75 + 1 + 0) / 3) and found["identity@1"].n == 6
    assert found["identity@1 retained"].value == pytest.approx((0.75 + 0) / 2) and found["identity@1 retained"].n == 5
    assert set(found) == {"FA@1", "FA@5", "identity@1", "identity@1 retained", "identity@5", "identity@5 retained"}
    pooled = ZeroShot("imagenet", task.classes, ("{}",), [], task.labels)
    other = {
        s.name: s.value
        for s in suite.accuracies({"identity": seen, "imagenet": seen}, [task, pooled], [Target("b", task, 1)], "p")
    }
    assert other["imagenet@1"] == pytest.approx(4 / 6), "each picture counts once"
    assert [pytest.approx(end, abs=1e-4) for end in found["FA@1"].interval] == [0.2065, 1.0]
    low, high = found["identity@1 retained"].interval
    assert 0 <= low < 0.375 < high <= 1 and (low, high) != wilson(3, 5), "four of one and one of another: no Wilson"
    assert found["FA@1"].change is None, "the base has nothing to be compared with"
    few = ZeroShot("identity", task.classes[:3], ("{}",), [], (0, 1, 2))
    assert {s.name for s in suite.accuracies({"identity": torch.eye(3)}, [few], [], "p")} == {"identity@1"}


def test_an_edited_column_has_the_interval_of_its_change_image_by_image(model):
    """Made-up similarities: of six images of two people, the edit loses all of one and none of the other."""
    task = ZeroShot("identity", ("A", "B"), ("{}",), [], (0, 0, 0, 0, 1, 1))
    before, after = torch.eye(2)[torch.tensor([0, 0, 0, 0, 1, 1])], torch.eye(2)[torch.tensor([1, 1, 1, 1, 1, 1])]

    def scores(seen, base):
        found = suite.accuracies({"identity": seen}, [task], [Target("A", task, 0)], "p", before={"identity": base})
        return {score.name: score for score in found}

    lost = scores(after, before)
    assert lost["FA@1"].change == (-1.0, -1.0) and lost["identity@1 retained"].change == (0.0, 0.0)
    assert [pytest.approx(end, abs=1e-4) for end in lost["FA@1"].interval] == [0.0, 0.4899], "none of four"
    assert lost["identity@1"].change[0] < -0.5 < lost["identity@1"].change[1]
    assert {score.change for score in scores(before, before).values()} == {(0.0, 0.0)}, "control: nothing changed"
    level = scores(torch.zeros(6, 2), before)["FA@1"]
    assert (level.value, level.interval) == (0.5, wilson(2, 4)), "level classes share the hit"

    pooled = ZeroShot("imagenet", ("A", "B"), ("{}",), [], (0, 0, 0, 0, 1, 1))
    seen = torch.eye(2)[torch.tensor([0, 0, 1, 1, 1, 1])]
    (each,) = suite.accuracies({"imagenet": seen}, [pooled], [], "p", before={"imagenet": before})
    assert (each.name, each.value) == ("imagenet@1", pytest.approx(4 / 6)) and each.change[0] < -1 / 3 < each.change[1]
    assert [pytest.approx(end, abs=1e-4) for end in each.interval] == [0.3000, 0.9032], "four of six"


def test_classes_of_one_name_each_count():
    task = ZeroShot("identity", ("crane", "crane", "tench"), ("{}",), [], (0, 1, 2))
    seen = torch.eye(3)[torch.tensor([0, 0, 2])]
    found = {s.name: s for s in suite.accuracies({"identity": seen}, [task], [Target("tench", task, 2)], "p")}
    assert found["identity@1"].value == pytest.approx(2 / 3) and found["identity@1 retained"].value == 0.5


def test_the_cosine_of_forget_pairs_has_the_interval_of_its_mean():
    base = {"A": suite.Fits([0.8, 0.6], []), "B": suite.Fits([0.4], [])}
    now = {"A": suite.Fits([0.5, 0.3], []), "B": suite.Fits([0.1], [])}
    (before,), (after,) = suite.fit_scores(base, "p"), suite.fit_scores(now, "p", before=base)
    assert (before.value, before.n, before.change) == (pytest.approx((0.7 + 0.4) / 2), 3, None)
    assert before.interval[0] < 0.55 < before.interval[1] and dict(after.per_item) == {"A": 0.4, "B": 0.1}
    assert after.change == (pytest.approx(-0.3), pytest.approx(-0.3)), "all of them changed by as much"


def test_members_are_the_pairs_that_the_method_learned_from_and_the_others_are_not():
    config = SlugMethod.presets["canvas-clip"].merged({"seed": 4})
    edit = WeightEdit(
        {TENSOR: torch.zeros(1)}, EditInfo("slug", ("neon style",), config=config.model_dump(mode="json"), seed=4)
    )
    tasks = report_tasks(["canvas"], 2, (188,))
    leak = suite.leak_of(edit, target_of("neon style", tasks), {}, (188,))
    data = SingleLayerUnlearningGradientDataHandler(config)
    assert list(leak.forgotten) == list(data.forget_pairs("neon style")) and len(leak.forgotten) == config.data.n_forget
    used = {(pair.seed, pair.scene) for pair in [*data.forget_pairs("neon style"), *data.retain_pairs("neon style")]}
    assert len(leak.others) > 150 and not used & {(pair.seed, pair.scene) for pair in leak.others}
    assert all(pair.scene.style != "neon" for pair in leak.others)


@pytest.mark.parametrize("seed", [0, 18, 188])
def test_report_images_are_none_of_the_searches(seed):
    """Whatever the method's own seed: also the report's."""
    searched = {
        (image.seed, image.scene)
        for task in SingleLayerUnlearningGradientDataHandler(
            SlugMethod.presets["canvas-clip"].merged({"seed": seed})
        ).tasks()
        for image in task.images
    }
    tasks = report_tasks(["canvas"], 2, (0, 18, 188))
    assert not searched & {(image.seed, image.scene) for task in tasks for image in task.images}
    assert [len(task.images) for task in tasks] == [6 * len(task.classes) for task in tasks] and len(tasks) == 3
    assert len({(image.seed, image.scene) for task in tasks for image in task.images}) == 6 * 28
    for task in tasks:
        for image, label in zip(task.images, task.labels, strict=True):
            assert getattr(image.scene, task.name) == task.classes[label]


def test_several_concepts_are_told_apart(model, direction, tmp_path):
    edit = edit_of(0.1 * direction, (CONCEPT, "neon style"), {"data": {"forget": "canvas", "n_forget": 8}})
    table = evaluate(RunDirectory(tmp_path), "clip", model, edit, seeds=(1, 2))
    (fa,) = (score for score in table["edited"] if score.name == "FA@1")
    assert fa.per_item.keys() == {CONCEPT, "neon style"} and fa.per_item["neon style"] > fa.per_item[CONCEPT]
    assert fa.value == pytest.approx(sum(fa.per_item.values()) / 2) and fa.n == 12
    assert {"identity@1 retained", "style@1 retained"} <= values(table["edited"]).keys()
    assert {score.protocol for score in table["edited"]} == {"clip/1, canvas"}
    assert json.loads((tmp_path / "similarity.json").read_text())["names"][:2] == [CONCEPT, "neon"]


def test_without_scikit_learn_or_pairs_the_rest_is_measured_and_one_line_says_so(
    model, direction, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with caplog.at_level(logging.WARNING, "mu"):
        table = evaluate(RunDirectory(tmp_path), "clip", model, edit_of(0 * direction), seeds=(1,))
    assert "MIA" not in values(table["base"]) and "cosine of forget pairs" in values(table["base"])
    assert "scikit-learn" in caplog.text
    told = {"data": {"forget": "grads/{concept}.safetensors", "tasks": ["canvas"]}}
    table = evaluate(RunDirectory(tmp_path), "clip", model, edit_of(0 * direction, config=told), seeds=(1,))
    assert "cosine of forget pairs" not in values(table["base"]) and "FA@1" in values(table["base"])


def test_forget_and_other_pairs_from_folders(model, direction, tmp_path, monkeypatch):
    for name, seed in (("forget", 5), ("val", 6)):
        (tmp_path / name).mkdir()
        for k, pair in enumerate(rendered_pairs(8, seed, CONCEPT if name == "forget" else IDENTITIES[3])):
            pair.image().save(tmp_path / name / f"{k}.png")
            (tmp_path / name / f"{k}.txt").write_text(pair.caption)
    data = [f"forget:{tmp_path / 'forget'}", f"val:{tmp_path / 'val'}"]
    asked: list[bool] = []

    def noted(*pairs, others_first):
        asked.append(others_first)
        return membership_inference(*pairs, others_first=others_first)

    monkeypatch.setattr(suite, "membership_inference", noted)
    data.append("mia:released")
    table = evaluate(RunDirectory(tmp_path / "run"), "clip", model, edit_of(0 * direction), seeds=(1,), data=data)
    assert asked and all(asked)
    (mia,) = (score for score in table["base"] if score.name == "MIA")
    assert mia.n == 16 and mia.protocol == "clip/1, canvas, MIA drawn as released"
    with pytest.raises(ConfigError, match="mia:released"):
        evaluate(RunDirectory(tmp_path / "no"), "clip", model, edit_of(direction), seeds=(1,), data=["mia:other"])


def test_what_cannot_be_measured_is_said(model, direction, tiny, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match="Elon Musk"):
        evaluate(run, "clip", model, edit_of(direction, ("Elon Musk",)))
    with pytest.raises(ModelError, match=r"\bconcept\b"):
        evaluate(run, "clip", tiny, edit_of(direction))
    with pytest.raises(ModelError, match=r"(?<!canvas-)clip"):
        evaluate(run, "canvas", model, edit_of(direction))
    with pytest.raises(ConfigError, match="base_answers"):
        evaluate(run, "clip", model, edit_of(direction), base_answers=tmp_path)
    with pytest.raises(ConfigError, match="--data"):
        evaluate(run, "clip", model, edit_of(direction, config={"data": {"forget": "x.tar"}}))
    assert (suite_for(model), suite_for(tiny)) == ("clip", "concept")
    assert not run.folder.exists()
