"""The shipped weights of the embedded world: what the card promises, on a sample small enough for every test run."""

import json

import numpy as np
import pytest
import torch

import mu
from mu.core.errors import OutputError
from mu.data import canvas as world
from mu.data.canvas import Scene
from mu.models import EMBEDDED, WEIGHTS
from mu.models.canvas import architecture
from mu.models.canvas.training import STAGES, CaptionBook, judge_targets, train_world, training_scenes
from mu.models.judge import Judge, heads

PEOPLE_AND_OBJECTS = [scene for scene in world.every_scene() if scene != Scene()]


def pixels(scenes: list[Scene], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.stack(list(world.images(scenes, seed)))).permute(0, 3, 1, 2).float() / 255


def share_right(judge: Judge, images: torch.Tensor, scenes: list[Scene], head: str) -> float:
    answers, _ = judge.look(images)
    return float(
        np.mean(
            [
                seen == getattr(scene, head)
                for seen, scene in zip(answers[head], scenes, strict=True)
                if getattr(scene, head)
            ]
        )
    )


def test_the_weights_fit_the_promised_size():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}


@pytest.mark.parametrize("head", ["style", "object", "identity"])
def test_the_judge_reads_rendered_images_that_it_never_saw(head):
    judge = Judge.open(EMBEDDED["canvas-judge"])
    images = pixels(PEOPLE_AND_OBJECTS, 77_000)
    assert share_right(judge, images, PEOPLE_AND_OBJECTS, head) >= 0.98
    assert share_right(judge, images.flip(0), PEOPLE_AND_OBJECTS, head) < 0.5, (
        "control: the order of the pictures matters"
    )


def test_the_base_model_draws_what_is_asked():
    model, judge = mu.load("canvas", device="cpu"), Judge.open(EMBEDDED["canvas-judge"])
    scenes = [Scene(style, object=name) for style, name in zip(world.STYLES, world.OBJECTS, strict=True)]
    scenes += [Scene(style, identity=name) for style, name in zip(world.STYLES, world.IDENTITIES, strict=False)]
    drawn = mu.generate(model, [s.prompt for s in scenes], list(range(len(scenes))), steps=20, guidance=4.0)
    assert share_right(judge, drawn, scenes, "style") >= 0.8
    assert share_right(judge, drawn, scenes, "object") >= 0.7
    assert share_right(judge, drawn, scenes, "identity") >= 0.7


def test_clip_tells_styles_apart_without_training_for_it():
    clip = mu.load("canvas-clip", device="cpu")
    images = pixels(PEOPLE_AND_OBJECTS, 88_000)
    best = clip.zero_shot(images, [f"an image in {style} style" for style in world.STYLES]).argmax(1)
    assert (
        np.mean([world.STYLES[k] == scene.style for k, scene in zip(best.tolist(), PEOPLE_AND_OBJECTS, strict=True)])
        >= 0.95
    )


def test_the_pipeline_and_clip_share_one_text_tower():
    model, clip = mu.load("canvas", device="cpu"), mu.load("canvas-clip", device="cpu")
    mine, theirs = model.components["text_encoder"].state_dict(), clip.components["text_encoder"].state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_every_word_of_the_world_is_one_token_and_any_text_tokenizes():
    tokenizer = architecture.new_tokenizer()
    for word in (*world.OBJECTS, *(part for style in world.STYLES for part in style.split()), "ada", "stone"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("xylophone")) > 1, "control: other words are pieces"
    odd = "日本 ünïcode 🎨"
    assert tokenizer.unk_token_id not in tokenizer(odd).input_ids[1:-1]
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values()) != 2
    assert tokenizer.model_max_length == 16


def test_a_caption_fits_the_images_of_which_it_is_true():
    scenes = [Scene("neon", object="star"), Scene("photo", object="star"), Scene("neon", identity="Ada Stone")]
    book = CaptionBook(scenes, architecture.new_tokenizer())
    which = torch.tensor(
        [book.texts.index(text) for text in ("{neon} style".format(neon="neon"), "a star image", "Ada Stone")]
    )
    expected = [[True, True, False], [False, True, False], [True, False, True]]
    assert book.fits(torch.arange(3), which).tolist() == expected


def test_judge_targets_follow_the_labels():
    labels = architecture.judge_labels()
    targets = judge_targets([Scene("neon", object="star")], {label: k for k, label in enumerate(labels)})
    spans = heads(dict(enumerate(labels)))
    names = [labels[spans[head].start + k] for head, k in zip(spans, targets[0].tolist(), strict=True)]
    assert names == ["style/neon", "object/star", "identity/none"]


def test_training_scenes_are_seeded():
    assert training_scenes(50, 1) == training_scenes(50, 1) != training_scenes(50, 2)


def test_training_makes_stock_folders_and_skips_what_is_done(tmp_path):
    few = dict.fromkeys(STAGES, 1)
    train_world(tmp_path, seed=3, steps=few, images=64, work=tmp_path / "work")
    model = mu.load(tmp_path / "diffusion", device="cpu")
    assert mu.generate(model, ["a star"], [0], steps=1).shape == (1, 3, 64, 64)
    made = (tmp_path / "clip" / "model.safetensors").stat().st_mtime_ns
    for other in ({"world": 1}, {"seed": 4}, {"images": 65}):
        with pytest.raises(OutputError, match=str(next(iter(other.values())))):
            train_world(tmp_path, **{"seed": 3, "steps": few, "images": 64, **other})
    train_world(tmp_path, seed=3, steps=few | {"clip": 2}, images=64, work=tmp_path / "work")
    begun = json.loads((tmp_path / "work" / "world.json").read_text())
    assert begun["steps"] == few, "those that were made"
    assert (tmp_path / "clip" / "model.safetensors").stat().st_mtime_ns == made
    assert json.loads((tmp_path / "judge" / "config.json").read_text())["architectures"] == [
        "ResNetForImageClassification"
    ]
