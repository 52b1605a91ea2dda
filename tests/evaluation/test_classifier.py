"""A classifier learns what the folders say, measures by their names, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from mu.core import loop
from mu.core.errors import ConfigError, DataError, ModelError, OutputError
from mu.data import canvas as world
from mu.data.canvas import Scene
from mu.evaluation.classifier import Recipe, answers, folder_accuracy, images_in, train_classifier
from mu.models import EMBEDDED
from mu.models.judge import Judge, heads

QUICK = Recipe(epochs=6, batch=10, rate=0.05)
NAMES = {"neon": "0", "sketch": "Van Gogh"}


def write(folder: Path, per_class: int, seed: int, *, shuffled: bool = False) -> Path:
    """Every second image under the other's name where ``shuffled``: half of the labels are wrong."""
    for style, name in NAMES.items():
        scenes = [Scene(style, object=world.OBJECTS[k % len(world.OBJECTS)]) for k in range(per_class)]
        for k, image in enumerate(world.images(scenes, seed)):
            other = next(n for n in NAMES.values() if n != name)
            place = folder / (other if shuffled and k % 2 else name)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{style}-{k}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write(root / "train", 20, 0)
    write(root / "eval", 8, 1)
    write(root / "test", 10, 2)
    return root


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    out = data / "classifier"
    train_classifier(data / "train", data / "eval", out, QUICK, device="cpu")
    return out


def test_it_learns_what_images_it_never_saw_show(data, trained):
    found = folder_accuracy(Judge.open(trained), data / "test")
    assert found.value >= 0.95 and found.n == 20 and set(found.per_item) == {"0", "Van Gogh"}
    told = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    assert len(told["accuracy_by_epoch"]) == QUICK.epochs
    assert told["score"]["value"] == max(told["accuracy_by_epoch"])


def test_control_from_shuffled_labels_it_learns_nothing(data, tmp_path):
    shuffled = [write(tmp_path / part, n, seed, shuffled=True) for part, n, seed in (("train", 20, 0), ("eval", 8, 1))]
    train_classifier(*shuffled, tmp_path / "out", QUICK, device="cpu")
    assert 0.2 <= folder_accuracy(Judge.open(tmp_path / "out"), data / "test").value <= 0.8


def test_an_ordinary_program_opens_it(trained):
    model = AutoModelForImageClassification.from_pretrained(trained)
    assert set(model.config.id2label.values()) == {"style/0", "style/Van Gogh"}
    assert not list(trained.glob(".*")) and not (trained / "training.pt").exists()


def test_all_images_of_a_folder_may_be_asked_for_one_class(data, trained):
    judge = Judge.open(trained)
    right = folder_accuracy(judge, data / "test" / "Van Gogh", concept="van_gogh")
    wrong = folder_accuracy(judge, data / "test" / "Van Gogh", concept="0")
    assert right.value + wrong.value == 1 and right.value >= 0.9
    assert answers(judge, images_in(data / "test" / "0")).count("0") >= 9


def test_an_interrupted_training_ends_in_the_same_numbers(data, trained, tmp_path, monkeypatch):
    real, calls = torch.optim.SGD.step, []

    def stops(self, *more):
        calls.append(1)
        if len(calls) == 11:  # in the third epoch of four steps each
            raise KeyboardInterrupt
        return real(self, *more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stops)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(data / "train", data / "eval", tmp_path / "out", QUICK, device="cpu")
    assert not (tmp_path / "out" / "config.json").exists() and (tmp_path / "out" / "training.pt").exists()
    score = train_classifier(data / "train", data / "eval", tmp_path / "out", QUICK, device="cpu", resume=True)
    whole, again = Judge.open(trained).model.state_dict(), Judge.open(tmp_path / "out").model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    def never(*_, **__):
        raise AssertionError("a finished training is only read")

    monkeypatch.setattr(loop, "train", never)
    assert train_classifier(data / "train", data / "eval", tmp_path / "out", QUICK, device="cpu", resume=True) == score


def test_a_backbone_s_last_layer_alone_is_trained(data, tmp_path):
    backbone = str(EMBEDDED["canvas-judge"])
    one = Recipe(backbone=backbone, epochs=1, batch=20)
    train_classifier(data / "train", data / "eval", tmp_path / "out", one, device="cpu")
    before, after = Judge.open(backbone).model, Judge.open(tmp_path / "out").model
    inner = dict(before.base_model.named_parameters())
    assert inner and all(torch.equal(inner[name], p) for name, p in after.base_model.named_parameters())
    new = Judge.new("style", list(NAMES.values()), backbone)
    assert [tuple(p.shape) for p in new.head_parameters()] == [(2, 128), (2,)]


def test_what_lies_there_is_not_overwritten_silently(data, trained, tmp_path):
    with pytest.raises(OutputError, match="--resume"):
        train_classifier(data / "train", data / "eval", trained, QUICK, device="cpu")
    with pytest.raises(OutputError, match=r"training\.json"):
        train_classifier(data / "train", data / "eval", trained, Recipe(epochs=2), device="cpu", resume=True)
    (tmp_path / "thesis.txt").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match=tmp_path.name):
        train_classifier(data / "train", data / "eval", tmp_path, QUICK, device="cpu", overwrite=True)


def test_folders_that_cannot_be_learned_from_are_refused(data, tmp_path):
    out, empty, one = tmp_path / "out", tmp_path / "empty", tmp_path / "one"
    (empty / "0").mkdir(parents=True)
    (one / "0").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(one / "0" / "0.png")
    (tmp_path / "typo" / "Van Goh").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "typo" / "Van Goh" / "0.png")
    for train, held_out, says in [
        (tmp_path / "nowhere", data / "eval", "nowhere"),
        (empty, data / "eval", r"empty/0.*\.png"),
        (one, data / "eval", "one .*'0'"),
        (data / "train", tmp_path / "typo", "'Van Gogh'"),
    ]:
        with pytest.raises(DataError, match=says):
            train_classifier(train, held_out, out, QUICK, device="cpu")
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"rate": 0.0},
        {"size": 1},
        {"head": "a/b"},
        {"layers": "some"},
        {"seed": -1},
        {"seed": 2**70},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        Recipe(**wrong)


def test_unknown_names_are_refused(data, trained, tmp_path):
    judge = Judge.open(trained)
    with pytest.raises(DataError, match="'Van Gogh'"):
        folder_accuracy(judge, data / "test", concept="Van Goh")
    with pytest.raises(ConfigError, match="style, object, identity"):
        folder_accuracy(Judge.open(EMBEDDED["canvas-judge"]), data / "test", concept="neon")
    with pytest.raises(ModelError, match=tmp_path.name):
        Judge.new("style", ["a", "b"], str(tmp_path))


def test_a_stock_classifier_is_one_head_whose_labels_hold_several_names(data, tmp_path):
    judge = Judge.new("x", ["neon", "sketch"])
    judge.model.config.id2label = {0: "church, church building", 1: "chain saw, chainsaw"}
    stock = Judge(judge.model, judge.processor)
    assert heads({0: "cat", 1: "a/b"}) == {"class": slice(0, 2)}
    assert stock.classes == {"class": ["church, church building", "chain saw, chainsaw"]}
    folder = data / "test" / "0"
    shares = [folder_accuracy(stock, folder, concept=name).value for name in ("Church", "church building", "chain_saw")]
    assert shares[0] == shares[1] == 1 - shares[2]
    with pytest.raises(DataError):
        folder_accuracy(stock, folder, concept="saw")


def test_the_middle_of_a_image_is_seen_where_the_processor_says_so():
    judge = Judge.new("style", ["a", "b"])
    judge.processor.crop_pct = 0.5
    image = torch.zeros(1, 3, 128, 256)
    image[..., 32:96, 96:160] = 1.0
    assert torch.equal(judge.inputs(image), torch.ones(1, 3, 64, 64))
