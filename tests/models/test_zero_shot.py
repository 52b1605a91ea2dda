"""Tasks of zero-shot classification: which images a concept is looked for in, and which are counted of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mu
from mu.algorithms.single_layer_unlearning_gradient.configs import SlugConfig
from mu.algorithms.single_layer_unlearning_gradient.data_handler import SingleLayerUnlearningGradientDataHandler
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.data.canvas import IDENTITIES, rendered_pairs
from mu.data.canvas.layouts import folder_name, write_celeba
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.suites import evaluate
from mu.evaluation.suites.clip import in_protocol
from mu.models.parameters import select
from mu.models.zero_shot import celeba_task, open_tasks, target_of

RARE, *FREQUENT = IDENTITIES


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's people as CelebA has them, three images each; the first is not in the frequent list."""
    folder = tmp_path_factory.mktemp("celeba")
    write_celeba(folder, per_identity=3)
    (folder / "frequent_celebs.txt").write_text("\n".join(folder_name(name) for name in FREQUENT[::-1]))
    return folder


def counts(task) -> dict[str, int]:
    return {name: task.labels.count(label) for label, name in enumerate(task.classes)}


@pytest.mark.parametrize("concept", [RARE, folder_name(RARE).lower()])
def test_a_person_outside_the_frequent_list_brings_all_own_images(celeba: Path, concept: str) -> None:
    without, task = celeba_task(celeba), celeba_task(celeba, [concept])
    assert task.classes == without.classes == tuple(sorted(IDENTITIES)), (
        "the names to choose from are all names, either way"
    )
    assert counts(without) == {**dict.fromkeys(FREQUENT, 3), RARE: 0}, "control"
    assert counts(task) == dict.fromkeys(IDENTITIES, 3)
    assert (task.beyond, without.beyond) == ({task.label_of(RARE)}, frozenset())
    with pytest.raises(ConfigError, match=f"'{concept}'.*identity"):
        target_of(concept, [without])
    assert target_of(concept, [task]).label == task.label_of(RARE)
    for image, label in zip(task.images, task.labels, strict=True):
        name = folder_name(task.classes[label])
        assert f"{image.path.name} {name}" in (celeba / "list_identity_celeba.txt").read_text()  # type: ignore[attr-defined]


def test_a_frequent_person_or_a_stranger_changes_nothing(celeba: Path) -> None:
    plain = celeba_task(celeba)
    for concept in (FREQUENT[0], "Nobody Here"):
        assert celeba_task(celeba, [concept]) == plain


def test_without_a_frequent_list_everybody_counts(tmp_path: Path) -> None:
    write_celeba(tmp_path, per_identity=1)
    task = celeba_task(tmp_path, [RARE])
    assert (counts(task), task.beyond) == (dict.fromkeys(IDENTITIES, 1), frozenset())


def test_without_a_frequent_list_few_images_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_celeba(tmp_path, per_identity=1)
    monkeypatch.setattr("mu.data.celeba.CLASSIFIED", 3)
    first, last = sorted(IDENTITIES)[:3], sorted(IDENTITIES)[-1]
    task = celeba_task(tmp_path, [last])
    assert {name for name, n in counts(task).items() if n} == {*first, last} and len(task.classes) == len(IDENTITIES)
    assert task.beyond == {task.label_of(last)}, "who is forgotten is looked at, and does not count"


def test_methods_search_where_the_concept_can_be_seen(celeba: Path) -> None:
    config = SlugConfig(concepts=[RARE]).merged({"data": {"tasks": [f"celeba:{celeba}"]}})
    tasks = SingleLayerUnlearningGradientDataHandler(config).tasks()
    assert target_of(RARE, tasks).task.labels.count(target_of(RARE, tasks).label) == 3


def test_fa_is_over_the_concepts_images_and_the_mean_over_the_frequent_people(celeba: Path, tmp_path: Path) -> None:
    info = EditInfo(
        "test", (RARE,), config={"data": {"forget": "canvas", "n_forget": 8, "tasks": [f"celeba:{celeba}"]}}
    )
    edit = WeightEdit({"visual_projection.weight": torch.zeros(128, 128)}, info)
    table = evaluate(RunDirectory(tmp_path), "clip", mu.load("canvas-clip", device="cpu"), edit, seeds=(1,))
    found = {score.name: score for score in table["base"]}
    assert (found["FA@1"].n, found["FA@1"].per_item) == (3, {RARE: found["FA@1"].value})
    assert {score.protocol for score in table["base"] if "@" in score.name} == {"clip/1, celeba (seen in the search)"}
    places = {f"celeba:{celeba}/": "celeba (seen in the search)", f"celeba:{tmp_path}": "celeba", "canvas": "canvas"}
    assert {name: in_protocol(name, edit) for name in places} == places, "control: others are not the search's pictures"
    for name in ("identity@1", "identity@1 retained", "identity@5"):
        assert found[name].n == 3 * len(FREQUENT) and set(found[name].per_item) == set(FREQUENT)


def test_two_tasks_of_one_name_are_refused(celeba: Path) -> None:
    """What is seen of a task is kept by its name: the second would stand in for the first."""
    people = f"celeba:{celeba}"
    for names in (["canvas", people], [people, people], ["canvas", "canvas"]):
        with pytest.raises(ConfigError, match=r"'(identity|style)'") as refused:
            open_tasks(names, 1, 0)
        assert "\n" not in str(refused.value)
    assert [task.name for task in open_tasks([people], 1, 0)] == ["identity"], "control"
    assert len(open_tasks(["canvas"], 1, 0)) == 3, "control"


# -- the user's own images
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people and a third whose folder is empty; a file and a hidden folder beside them."""
    folder = tmp_path_factory.mktemp("own") / "people"
    for name in IDENTITIES[:2]:
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        for k, pair in enumerate(rendered_pairs(2, 7, name)):
            pair.image().save(place / f"{k}.{'JPG' if k else 'png'}", "PNG")
        (place / "notes.txt").write_text("mine")
    for name in ("nobody", ".hidden"):
        (folder / name).mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"")
    return folder


def test_a_folder_for_each_class_is_a_task(own: Path) -> None:
    (task,) = open_tasks([f"classes:{own}"], 1, 0)
    assert set(task.classes) == set(IDENTITIES[:2]) and counts(task) == dict.fromkeys(task.classes, 2)
    for image, label in zip(task.images, task.labels, strict=True):
        assert image.path.parent.name.replace("_", " ") == task.classes[label]  # type: ignore[attr-defined]
    assert target_of(IDENTITIES[1].lower(), [task]).label == task.classes.index(IDENTITIES[1])
    with pytest.raises(ConfigError, match=r"'nobody'.*classes \(2\)"):
        target_of("nobody", [task])


@pytest.mark.parametrize(
    ("folders", "said"), [([], "0 folders"), (["cat"], "1 folders"), (["tabby_cat", "Tabby cat"], "two folders.*abby")]
)
def test_what_is_no_set_of_classes_is_refused(folders: list[str], said: str, tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=said):
        open_tasks([f"classes:{tmp_path}"], 1, 0)
    with pytest.raises(DataError, match="does not exist"):
        open_tasks([f"classes:{tmp_path / 'none'}"], 1, 0)


def test_the_suites_measure_the_user_s_own_classes(own: Path, tmp_path: Path) -> None:
    concept = IDENTITIES[0]
    info = EditInfo("test", (concept,), config={"data": {"forget": "canvas", "n_forget": 8}})
    edit = WeightEdit({"visual_projection.weight": torch.zeros(128, 128)}, info)
    model, data = mu.load("canvas-clip", device="cpu"), [f"classes:{own}"]
    found = {
        s.name: s for s in evaluate(RunDirectory(tmp_path / "a"), "clip", model, edit, seeds=(1,), data=data)["base"]
    }
    assert found["FA@1"].n == 2 and found["classes@1 retained"].per_item.keys() == {IDENTITIES[1]}
    assert found["classes@1"].value > 0.5, "the embedded CLIP knows its people"
    before = in_protocol(data[0], edit)
    assert before.startswith("classes of people (") and before in found["classes@1"].protocol
    (own / folder_name(concept) / "2.png").write_bytes((own / folder_name(concept) / "0.png").read_bytes())
    assert in_protocol(data[0], edit) != before, "numbers of other images have another protocol"

    answering = mu.load("canvas-vlm", device="cpu")
    name, theta = next((n, p) for n, p in select(answering, "*").items() if p.ndim == 2)
    told = WeightEdit({name: torch.zeros_like(theta)}, info)
    table = evaluate(RunDirectory(tmp_path / "b"), "vlm", answering, told, seeds=(1,), data=data)
    assert {s.name: s.n for s in table["edited"]}["FA"] == 3
