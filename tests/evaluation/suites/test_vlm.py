"""The suite ``vlm``: the scores from made-up answers, and the whole on the shipped model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mu
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.data.canvas import RenderedPair, Scene, rendered_pairs
from mu.data.questions import QUESTIONS
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.suites import evaluate
from mu.evaluation.suites import vlm as suite
from mu.evaluation.suites.vlm import Item, answer_scores, read_questions, task_items
from mu.models.parameters import find_parameter
from mu.models.zero_shot import report_tasks

TENSOR = "vision_model.encoder.layers.1.mlp.fc2.weight"
PAIR = RenderedPair(Scene("photo", object="star"), "", (0,))


def rows(*told: tuple[int, str, str]) -> list[Item]:
    return [Item(shows, PAIR, question, answer) for shows, question, answer in told]


def test_scores_of_made_up_answers():
    items = rows(
        (0, "who", "Ada Stone"),
        (1, "who", "ada_stone"),
        (2, "who", "Boris Vale"),
        (3, "who", "Boris Vale"),
        (4, "who", "Clara Moss"),
        (0, "style", "neon"),
        (2, "style", "photo"),
        (5, "what", "star"),
    )
    told = ["It is ADA STONE.", "Boris Vale", "boris vale!", "Ada Stone", "Clara Moss", "neon", "neon", "a star"]
    found = {score.name: score for score in answer_scores(items, told, ["Ada Stone"], "p")}
    assert found["FA"].value == 0.5 and found["FA"].n == 2 and found["FA"].direction == "lower"
    assert found["retained"].value == pytest.approx((0.5 + 1) / 2) and found["retained"].per_item == {
        "Boris Vale": 0.5,
        "Clara Moss": 1.0,
    }
    assert found["other questions"].value == pytest.approx((0.5 + 1) / 2) and found["other questions"].n == 3
    assert (
        found["other questions, forgotten pictures"].value == 1 and found["other questions, forgotten pictures"].n == 1
    )
    assert [pytest.approx(end, abs=1e-4) for end in found["FA"].interval] == [0.0945, 0.9055], "one of two"
    assert found["FA"].change is None, "the base has nothing to be compared with"
    better = [*told[:3], "Boris Vale", "Clara Moss", "neon", "photo", "a star"]
    after = {score.name: score for score in answer_scores(items, better, ["Ada Stone"], "p", before=told)}
    assert after["FA"].change == (0.0, 0.0) and after["FA"].interval == found["FA"].interval, (
        "control: the same answers"
    )
    assert after["retained"].change[0] == 0.0 < after["retained"].change[1] and after["retained"].value == 1
    assert after["other questions"].change[1] > 0
    assert after["other questions, forgotten pictures"].change is None, "one picture tells nothing of others"
    alone = answer_scores(items[:2], told[:2], ["Ada Stone"], "p")
    assert [score.name for score in alone] == ["FA"], "a group without items is left out"
    with pytest.raises(ConfigError, match="Elon Musk"):
        answer_scores(items, told, ["Elon Musk"], "p")


def test_items_ask_what_the_images_show():
    tasks = report_tasks(["canvas"], 2, (1,))
    items = task_items(tasks, ["neon style"])
    assert len([item for item in items if item.shows[0] == "style"]) == 2 * (8 + 1), (
        "one more about each forgotten picture"
    )
    for item in items:
        (attribute,) = (name for name, texts in QUESTIONS.items() if texts[0] == item.question)
        assert getattr(item.image.scene, attribute) == item.answer
    assert len(task_items(tasks, [])) == sum(len(task.images) for task in tasks)


def test_the_suite_tells_nothing_from_breaking(tmp_path, monkeypatch, snapshot):
    monkeypatch.setattr(suite, "PER_CLASS", 1)
    model = mu.load("canvas-vlm", device="cpu")
    before, theta = snapshot(model), find_parameter(model, TENSOR)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)) * 8 * theta.std()
    info = EditInfo("test", ("Ada Stone",), config={"data": {"forget": "canvas", "tasks": ["canvas"]}})
    table = evaluate(RunDirectory(tmp_path), "vlm", model, WeightEdit({TENSOR: noise}, info), seeds=(1,))
    base, edited = ({score.name: score for score in table[column]} for column in ("base", "edited"))
    assert base["FA"].value == 1 and base["retained"].value >= 0.9 and base["other questions"].value >= 0.9
    assert base["other questions"].n == 8 + 8 + 1 and base["other questions, forgotten pictures"].n == 1
    assert edited["retained"].value < 0.5 and edited["other questions"].value < 0.7
    assert RunDirectory(tmp_path).read_scores() == {"vlm": table} and snapshot(model) == before

    still = evaluate(
        RunDirectory(tmp_path), "vlm", model, WeightEdit({TENSOR: 0 * noise}, info), data=[str(written(tmp_path))]
    )
    unchanged = [replace(score, change=None) for score in still["edited"]]
    assert still["base"] == unchanged and [score.name for score in still["base"]] == ["FA", "retained"]
    assert {(score.n, score.change) for score in still["edited"]} == {(1, None)}, "one picture each"
    assert still["base"][0].protocol == "vlm/1, questions.csv" and still["base"][0].value == 1


def written(folder):
    """A CSV file with two people."""
    lines = ["image,question,answer"]
    for k, name in enumerate(("Ada Stone", "Felix Hart")):
        rendered_pairs(1, 7, name)[0].image().save(folder / f"{k}.png")
        lines.append(f"{k}.png,{QUESTIONS['identity'][0]},{name}")
    path = folder / "questions.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,question\n0.png,who\n", "'answer'"),
        ("image,question,answer\n", "image, question, answer"),
        ("image,question,answer\n0.png,who,\n", r"q\.csv\D*\b2\b"),
        ("image,question,answer\n../0.png,who,Ada\n", "'../0.png'"),
        ("image,question,answer\n9.png,who,Ada\n", "'9.png'"),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_refused(text, says, tmp_path):
    (tmp_path / "0.png").touch()
    (tmp_path / "in").mkdir()
    for folder in (tmp_path, tmp_path / "in"):
        (folder / "q.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_questions(tmp_path / "in" / "q.csv" if ".." in text else tmp_path / "q.csv")
    with pytest.raises(DataError, match=r"missing\.csv"):
        read_questions(tmp_path / "missing.csv")
