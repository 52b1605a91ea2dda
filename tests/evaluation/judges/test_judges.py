"""Every judge: what it knows, what it says of images whose content is known, and what it must state of itself."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from mu.core.errors import ConfigError, DataError, ModelError
from mu.data.canvas import OBJECTS, STYLES, Scene, render
from mu.data.unlearncanvas import OBJECTS as CLASSES
from mu.data.unlearncanvas import STYLES as THEMES
from mu.evaluation.judges import JUDGES, open_judge, spelling
from mu.evaluation.judges.nudenet import PRESETS, NudityJudge
from mu.evaluation.metrics.nudity import EXPOSED
from mu.evaluation.suites.concept import JUDGE
from mu.models.judge import Judge as Classifier


def pixels(scene: Scene, seed: int = 3) -> Tensor:
    return torch.from_numpy(render(scene, seed)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Scene(style, object=name) for style, name in (("neon", "star"), ("sketch", "fish"), ("photo", "house"))]


@pytest.fixture(scope="module")
def images(scenes: list[Scene]) -> Tensor:
    return torch.stack([pixels(scene) for scene in scenes])


@pytest.mark.parametrize("name", ["canvas", "clip:canvas-clip"])
def test_a_judge_sees_what_the_renderer_drew(name: str, images: Tensor, scenes: list[Scene]) -> None:
    judge = open_judge(name)
    for kind, names in (("style", STYLES), ("object", OBJECTS)):
        truth = [str(getattr(scene, kind)) for scene in scenes]
        seen = judge.look(images, [judge.known(each) for each in names])
        assert seen.answers == truth
        assert judge.look(images.flip(0), list(names)).answers == truth[::-1]  # of each image, not of its place
        assert seen.features.shape[0] == len(images) and seen.features.dtype == torch.float32


def test_the_zero_shot_judge_may_see_none_of_the_concepts(images: Tensor) -> None:
    """Grey images show no style: with no answer for that, one of the names would have to be given."""
    judge = open_judge("clip:canvas-clip")
    assert judge.look(torch.full((1, 3, 64, 64), 0.5), ["moon"]).answers == [""]
    assert judge.look(images[:1], ["star", "moon"]).answers == ["star"]


def test_a_judge_of_fixed_classes_names_its_own_and_refuses_others() -> None:
    judge = open_judge("canvas")
    assert judge.known("Neon style") == "neon" and judge.known("pop_art") == "pop art"
    assert set(judge.rivals("neon")) == set(STYLES) - {"neon"} and set(judge.rivals("star")) == set(OBJECTS) - {"star"}
    for concept in ("Van Gogh", "none"):
        with pytest.raises(DataError, match="canvas has no class"):
            judge.known(concept)


def test_a_label_of_several_names_is_known_by_each(tmp_path: Path) -> None:
    Classifier.new("class", ["tench, Tinca tinca", "church, church building", "none"]).save(tmp_path / "c")
    judge = open_judge(f"classifier:{tmp_path / 'c'}")
    assert judge.known("tinca tinca") == judge.known("Tench") == "tench"
    assert judge.rivals("tench") == ["church", "none"]  # only the embedded world's "none" means nothing
    assert set(judge.look(torch.rand(3, 3, 64, 64), ["tench"]).answers) <= {"tench", "church", "none"}
    assert judge.facts(["tench"])["classes"] == ["tench", "church", "none"]


# -- UnlearnCanvas's classifiers --------------------------------------------------------------------------------------


def timm_logits(t: dict[str, Tensor], x: Tensor) -> Tensor:
    """timm's VisionTransformer as its documentation describes it: pre-norm, joint qkv, class token, epsilon 1e-6."""
    width, patch = t["cls_token"].shape[-1], t["patch_embed.proj.weight"].shape[-1]
    norm = lambda x, name: F.layer_norm(x, (width,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)  # noqa: E731
    line = lambda x, name: F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])  # noqa: E731
    x = F.conv2d(x, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=patch).flatten(2).mT
    x = torch.cat([t["cls_token"].expand(len(x), -1, -1), x], dim=1) + t["pos_embed"]
    for k in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        b, n, _ = x.shape
        q, k_, v = (
            line(norm(x, f"blocks.{k}.norm1"), f"blocks.{k}.attn.qkv")
            .view(b, n, 3, width // 64, 64)
            .permute(2, 0, 3, 1, 4)
        )
        x = x + line(
            F.scaled_dot_product_attention(q, k_, v).transpose(1, 2).reshape(b, n, width), f"blocks.{k}.attn.proj"
        )
        x = x + line(F.gelu(line(norm(x, f"blocks.{k}.norm2"), f"blocks.{k}.mlp.fc1")), f"blocks.{k}.mlp.fc2")
    return line(norm(x, "norm")[:, 0], "head")


@pytest.mark.parametrize(("names", "concept"), [(THEMES, "Van Gogh style"), (CLASSES, "dogs")])
def test_the_published_layout_gives_the_published_network(
    names: tuple[str, ...], concept: str, tmp_path: Path, timm_vit: Any
) -> None:
    tensors = timm_vit(len(names))
    torch.save({"model_state_dict": tensors, "epoch": 7}, tmp_path / "style50.pth")
    judge = open_judge(f"unlearncanvas:{tmp_path / 'style50.pth'}")
    assert judge.known(concept) in names and len(judge.rivals(concept)) == len(names) - 1
    images = torch.rand(5, 3, 32, 32)
    truth = timm_logits(tensors, (images - 0.5) / 0.5)
    network: Any = judge
    found = network.network.model(pixel_values=network.network.inputs(images)).logits
    assert torch.allclose(found, truth, atol=1e-4) and not torch.allclose(
        found, timm_logits(tensors, images), atol=1e-2
    )
    assert judge.look(images, [judge.known(concept)]).answers == [names[k] for k in truth.argmax(1).tolist()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blocks.1.norm2.bias"), "layernorm_after.bias"),
        (lambda t: t.update({"fc_norm.weight": torch.ones(128)}), "fc_norm.weight"),
        (lambda t: t.update({"head.weight": torch.ones(7, 128)}), "51 or 20"),
        (lambda t: t.pop("cls_token"), "cls_token"),
    ],
)
def test_another_layout_is_refused_by_name(change: Any, said: str, tmp_path: Path, timm_vit: Any) -> None:
    tensors = timm_vit(20)
    change(tensors)
    torch.save({"model_state_dict": tensors}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=said):
        open_judge(f"unlearncanvas:{tmp_path / 'x.pth'}")


# -- nudity and Q16 ---------------------------------------------------------------------------------------------------


def test_the_preset_decides_what_counts_as_nudity() -> None:
    found = [
        [{"class": "ANUS_EXPOSED", "score": 0.9}],
        [{"class": "FEET_EXPOSED", "score": 0.5}],
        [],
        [{"class": "FACE_MALE", "score": 0.9}],
        [{"class": "BELLY_EXPOSED", "score": 0.3}],
        [{"class": "MALE_BREAST_EXPOSED", "score": 0.48}],
        [{"class": "BUTTOCKS_EXPOSED", "score": 0.5}],  # a threshold is to be exceeded
        [{"class": "ARMPITS_EXPOSED", "score": 0.7}],
    ]
    answers = {}
    for name, counting in PRESETS.items():
        each = iter(found)
        judge = NudityJudge(lambda image, each=each: next(each), counting, name)
        seen = judge.look(torch.rand(len(found), 3, 8, 8), ["nudity"])
        answers[name] = [k for k, answer in enumerate(seen.answers) if answer]
        assert seen.features.shape == (len(found), len(counting.parts))
    assert answers["mace"] == answers["rece"] == [0, 7]
    assert answers["speed"] == [7]
    assert answers["unlearndiffatk"] == [0, 1, 5, 6, 7]
    assert answers["mace-code"] == answers["esd"] == [0, 1, 4, 5, 6, 7]
    assert answers["eval-unlearn"] == [0]
    assert answers["steerers-code"] == [0, 5, 6]
    assert judge.known("a nude person") == "nudity"
    with pytest.raises(DataError, match="only nudity"):
        judge.known("nudge")


def test_the_page_lists_every_preset_with_its_classes_and_threshold() -> None:
    page = (Path(__file__).parents[3] / "docs/evaluate.md").read_text()
    counts = {"all nine": 9, "eight, no anus": 8, "six, no feet, belly, armpits": 6, "the same six": 6}
    for name, counting in PRESETS.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", page, re.MULTILINE)
        _, parts, threshold, _ = row.strip("| ").split(" | ")
        assert counts[parts] == len(counting.parts), name
        assert threshold == (str(counting.threshold) if counting.threshold else "all that is reported"), name
    assert "| `safegen`" not in page and "SafeGen has no preset" in page


def test_the_package_s_own_weights_run_on_images() -> None:
    pytest.importorskip("nudenet")
    judge = open_judge("nudenet:unlearndiffatk")
    seen = judge.look(torch.rand(2, 3, 64, 48), ["nudity"])
    assert seen.answers == ["", ""] and seen.features.shape == (2, len(EXPOSED))
    assert judge.facts([])["threshold"] == 0.45


def test_q16_asks_which_of_two_prompts_is_nearer(images: Tensor, tmp_path: Path) -> None:
    clip: Any = open_judge("clip:canvas-clip")
    safe, harmful = (clip.model.encode_images(images[k : k + 1])[0] for k in (0, 1))
    np.save(tmp_path / "p.npy", torch.stack([safe, harmful]).numpy())
    save_file({"prompts": torch.stack([harmful, safe])}, tmp_path / "swapped.safetensors")
    judge = open_judge(f"q16:{tmp_path / 'p.npy'},canvas-clip")
    assert judge.look(images[:2], [judge.known("violence")]).answers == ["", "inappropriate"]
    facts, other = judge.facts([]), open_judge("clip:canvas-clip").facts([])
    assert facts["weights of the clip"] == other["weights"] != facts["weights"]
    swapped = open_judge(f"q16:{tmp_path / 'swapped.safetensors'},canvas-clip")
    assert swapped.look(images[:2], ["inappropriate"]).answers == ["inappropriate", ""]


def test_published_prompts_in_a_pickle_are_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "prompts.p").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "o.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("prompts.p", "o.npy", "missing.npy"):
        with pytest.raises(DataError):
            open_judge(f"q16:{tmp_path / name},canvas-clip")
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "narrow.npy", np.ones((2, 5), np.float32))
    with pytest.raises(DataError, match=r"\(2, 5\)"):
        open_judge(f"q16:{tmp_path / 'narrow.npy'},canvas-clip")


@pytest.mark.parametrize(
    "name", ["", "clipp:x", "clip", "clip:", "canvas:x", "canvas:", "classifier:", "nudenet:mace2", "q16"]
)
def test_a_name_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError):
        open_judge(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (JUDGE, "--judge clip:FOLDER"),
        ("clip:canvas", "--judge clip:FOLDER"),
        ("resnet50", "--judge classifier:FOLDER"),
        ("classifier:some/body", "--judge classifier:FOLDER"),
        ("q16:p.npy", "--judge q16:FILE,FOLDER"),
    ],
)
def test_a_judge_that_is_not_there_says_how_to_name_one_for_any_model(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the embedded world, which knows no concept of another model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as error:
        open_judge(name)
    _, _, advice = str(error.value).partition(": ")
    assert said in advice and "canvas" not in advice


def test_every_judge_is_written_as_the_help_says() -> None:
    assert [spelling(kind) for kind in JUDGES][:3] == ["canvas", "clip:MODEL", "classifier:FOLDER|HUB"]
    with pytest.raises(ModelError, match="is none"):
        open_judge("clip:canvas")
