"""CLIP of open_clip with an image tower of timm: features, names, stages, edits, the way back, and what is refused.

A stand-in for timm holds one small network of convolutions, so that all but the comparison with open_clip itself runs
without the package.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mu
from mu.algorithms import algorithm
from mu.algorithms.single_layer_unlearning_gradient.model import candidates
from mu.algorithms.single_layer_unlearning_gradient.probe import ClipProbe
from mu.core.errors import EditError, MissingDependency, ModelError
from mu.data.canvas import rendered_pairs
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.export import export
from mu.edits.weights import WeightEdit
from mu.models.clip import ClipModel
from mu.models.formats import timm_towers
from mu.models.formats.open_clip import in_open_clip
from mu.models.formats.open_clip_names import from_open_clip, open_clip_map
from mu.models.formats.packing import pack
from mu.models.formats.timm_towers import TimmTower
from mu.models.parameters import find_parameter, fingerprint, select
from mu.models.towers import TrunkTower, towers_of
from mu.models.zero_shot import canvas_tasks, target_of
from tests.models.formats.conftest import loaded, open_clip_folder

Tensors = dict[str, Tensor]
PAIRS, RIDGE = 256, 10.0
TEXTS = ["a star image in neon style.", "Ada Stone", "a moon"]


# -- a stand-in for timm -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Conv2d(width, width, 1), act=nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.conv_dw(x))


class Part(nn.Module):
    def __init__(self, before: int, width: int, blocks: int):
        super().__init__()
        self.downsample = nn.Identity() if before == width else nn.Conv2d(before, width, 2, 2)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(F.adaptive_avg_pool2d(x, 4).flatten(1)))


class ConvNeXt(nn.Module):
    """Parts of the names of timm's class, and its way through them."""

    num_features = 32 * 16

    def __init__(self, num_classes: int = 1000, global_pool: str = "avg"):
        super().__init__()
        assert global_pool in ("avg", "max"), f"no pooling {global_pool}\nat all"
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU())
        self.stages = nn.Sequential(Part(16, 16, 1), Part(16, 32, 2))
        self.norm_pre = nn.Identity()
        self.head = Head(self.num_features, num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.head.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.norm_pre(self.stages(self.stem(x))))


class Square(ConvNeXt):
    """A network of a kind that is not taken apart, which reads images of one size."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.patch_embed = nn.Identity()
        self.patch_embed.img_size = (64, 64)  # type: ignore[assignment]


class Mlp(nn.Sequential):
    def __init__(self, width: int, hidden: int, out: int, bias: tuple[bool, bool]):
        parts = OrderedDict(fc1=nn.Linear(width, hidden, bias[0]), act=nn.GELU(), fc2=nn.Linear(hidden, out, bias[1]))
        super().__init__(parts)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnext_small": ConvNeXt, "square_64": Square}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = ModuleType("timm")
    timm.__dict__.update(
        __version__="1.0",
        is_model=NETWORKS.__contains__,
        create_model=lambda name, **options: NETWORKS[name](**options),
        layers=SimpleNamespace(Mlp=Mlp),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)


VISION: dict[str, Any] = {
    "timm_model_name": "convnext_small", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
    "timm_drop": 0.0, "timm_drop_path": 0.1, "image_size": 64,
}  # fmt: skip


def canvas() -> ClipModel:
    found = mu.load("canvas-clip", device="cpu")
    assert isinstance(found, ClipModel)
    return found


@cache
def tokenizer() -> Any:
    return canvas().tokenizer


def texts_of(clip: ClipModel) -> Tensors:
    """The text tower and the temperature of ``clip``, in open_clip's names and layout."""
    own = {name: tensor for name, tensor in clip.model.state_dict().items() if not name.startswith("vis")}
    return {name: tensor.clone() for name, tensor in pack(own, open_clip_map(own)).items()}


def hub_folder(folder: Path, tensors: Tensors, vision: dict[str, Any] = VISION, **model: Any) -> Path:
    model = {"embed_dim": 128, "text_cfg": {"heads": 6}, "quick_gelu": True} | model
    config = {
        "model_cfg": {"vision_cfg": vision, **model},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }
    return open_clip_folder(folder, tensors, config, tokenizer())


@pytest.fixture(scope="module")
def fitted() -> Tensors:
    """The tensors of a model that knows the canvas: a trunk with random weights, whose projection was solved for."""
    clip = canvas()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        trunk = ConvNeXt(0).eval()
    pairs = rendered_pairs(PAIRS, 11)
    with torch.no_grad():
        seen = trunk(clip.preprocess([pair.image() for pair in pairs]))
        wanted = clip.encode_text([pair.caption for pair in pairs])
    solved = torch.linalg.solve(seen.T @ seen + RIDGE * torch.eye(seen.shape[1]), seen.T @ wanted)
    own = {f"visual.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    return texts_of(clip) | own | {"visual.head.proj.weight": solved.T.contiguous()}


@pytest.fixture
def clip(stand_in: None, fitted: Tensors, tmp_path: Path) -> ClipModel:
    return loaded(hub_folder(tmp_path / "hub", fitted))


def shifts_of(clip: ClipModel, *patterns: str) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    chosen = select(clip, patterns)
    return {name: torch.randn(p.shape, generator=generator) * 0.1 * p.std() for name, p in chosen.items()}


def edit_of(shifts: Tensors) -> WeightEdit:
    return WeightEdit(shifts, EditInfo(method="test", concepts=("neon",)))


def same(found: Tensors, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# -- loading -----------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_trunk_its_projection_and_the_text_tower(clip: ClipModel, fitted: Tensors) -> None:
    trunk = ConvNeXt(0).eval()
    trunk.load_state_dict({name[13:]: each for name, each in fitted.items() if name.startswith("visual.trunk.")})
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = F.normalize(trunk(pixels) @ fitted["visual.head.proj.weight"].T, dim=-1)
    assert torch.allclose(clip.encode_pixels(pixels), wanted, atol=1e-6)
    other = canvas()
    assert torch.allclose(clip.encode_text(TEXTS), other.encode_text(TEXTS), atol=1e-5)
    assert clip.logit_scale == other.logit_scale
    assert list(clip.components) == ["text_encoder", "vision_model", "text_projection", "visual_projection"]
    assert clip.reads("vision_model.trunk.stages.1.blocks.0.conv_dw.weight")
    assert not clip.reads("vision_model.encoder.layers.0.mlp.fc1.weight")
    assert all(clip.reads(name) for name in select(clip, "*"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_all_numbers_have_the_precision_that_was_asked_for(
    precision: str, stand_in: None, fitted: Tensors, tmp_path: Path
) -> None:
    clip = loaded(hub_folder(tmp_path / "hub", fitted), precision=precision)
    assert {p.dtype for p in clip.model.parameters()} == {getattr(torch, precision)}


@pytest.mark.parametrize("proj", ["mlp", "", None])
def test_other_projections(proj: Any, stand_in: None, fitted: Tensors, tmp_path: Path) -> None:
    """Of two layers behind the trunk, or the trunk's own last layer, and then none."""
    vision = VISION | {"timm_proj": proj, "timm_pool": "avg", "timm_proj_bias": True}
    tensors = {name: each for name, each in fitted.items() if name != "visual.head.proj.weight"}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        trunk, head = ConvNeXt(0 if proj else 128), Mlp(512, 256, 128, (True, True)) if proj else nn.Sequential()
    tensors |= {f"visual.trunk.{name}": each for name, each in trunk.state_dict().items()}
    tensors |= {f"visual.head.mlp.{name}": each for name, each in head.state_dict().items()}
    clip = loaded(hub_folder(tmp_path / "hub", tensors, vision))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(clip.encode_pixels(pixels), F.normalize(head(trunk(pixels)), dim=-1), atol=1e-6)
    assert bool(list(clip.components["visual_projection"].parameters())) == bool(proj)
    assert same(in_open_clip(clip)[0], tensors)


def test_a_text_tower_of_its_own_has_a_name_before_its_tensors(
    stand_in: None, fitted: Tensors, clip: ClipModel, tmp_path: Path
) -> None:
    """As EVA has it. The older names without it are read too."""
    apart = {
        name if name.startswith(("visual.", "logit_scale")) else f"text.{name}": each for name, each in fitted.items()
    }
    for number, tensors in enumerate((apart, fitted)):
        found = loaded(hub_folder(tmp_path / str(number), tensors, custom_text=True))
        assert torch.equal(found.encode_text(TEXTS), clip.encode_text(TEXTS))
        assert same(in_open_clip(found)[0], tensors)
    assert same(from_open_clip(apart), from_open_clip(fitted))
    with pytest.raises(ModelError, match="text tower of another kind"):
        loaded(hub_folder(tmp_path / "control", apart))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"timm_model_name": "convnext_smal"}, "no model 'convnext_smal'"),
        ({"timm_model_name": "hf-hub:a/b"}, "no model 'hf-hub:a/b'"),
        ({"timm_model_name": 5}, "timm_model_name = 5"),
        ({"timm_pool": "abs_attn"}, "timm_pool = 'abs_attn'"),
        ({"timm_pool": "middle", "timm_proj": ""}, "no pooling middle at all"),
        ({"timm_proj": "none"}, "timm_proj = 'none'"),
        ({"image_size": [64, 32]}, "image_size"),
        ({"timm_model_name": "square_64", "image_size": 32}, "image_size is 32"),
        ({"timm_depth": 3}, "timm_depth = 3"),
    ],
)
def test_a_setting_that_is_not_obeyed_is_one_line(
    vision: dict[str, Any], said: str, stand_in: None, fitted: Tensors, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "hub", fitted, VISION | vision)
    with pytest.raises(ModelError) as raised:
        mu.load(folder)
    assert said in str(raised.value) and str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "key", ["visual.trunk.stages.1.blocks.1.conv_dw.bias", "visual.head.proj.weight", "ln_final.bias"]
)
def test_every_tensor_is_accounted_for(key: str, stand_in: None, fitted: Tensors, tmp_path: Path) -> None:
    less = {name: each for name, each in fitted.items() if name != key}
    with pytest.raises(ModelError, match=f"missing.*{key}"):
        mu.load(hub_folder(tmp_path / "less", less))
    with pytest.raises(ModelError, match=f"belong.*convnext_small.*{key}2"):
        mu.load(hub_folder(tmp_path / "more", fitted | {f"{key}2": fitted[key].clone()}))
    other = fitted | {key: torch.zeros(3)}
    with pytest.raises(ModelError, match=f"{key} has the shape 3"):
        mu.load(hub_folder(tmp_path / "other", other))


@pytest.mark.parametrize("kind", ["timm", "resnet"])
def test_a_missing_timm_is_named_with_the_extra_that_brings_it(
    kind: str, fitted: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    resnet = {"visual.layer1.0.conv1.weight": torch.zeros(4)}
    tensors, vision = (fitted, VISION) if kind == "timm" else (texts_of(canvas()) | resnet, {})
    folder = hub_folder(tmp_path / "hub", tensors, vision)
    with pytest.raises(MissingDependency) as raised:
        mu.load(folder)
    assert all(word in str(raised.value) for word in ("'timm'", "'eval'", str(folder)))


def test_a_timm_that_cannot_be_imported_is_one_line(
    fitted: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "timm.py"
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=r"timm.*operator torchvision::nms"):
        mu.load(hub_folder(tmp_path / "hub", fitted))


# -- stages ------------------------------------------------------------------------------------------------------------


def stages_agree(clip: ClipModel, images: Tensor, names: list[str]) -> None:
    """Each shortcut of the image tower gives what the whole model gives with the tensor changed."""
    tower = towers_of(clip)["vision"]
    assert isinstance(tower, TrunkTower)
    hidden = tower.images(images)
    with torch.no_grad():
        base = clip.encode_images(images)
        assert torch.allclose(tower.features(hidden), base, atol=1e-5)
        for name in names:
            stage, parameter = tower.stage_of(name), find_parameter(clip, name)
            entering = tower.run(hidden, 0, stage)
            entering = tower.leaving(entering) if stage == tower.stages - 1 else entering
            shift, kept = torch.randn_like(parameter) * 0.5, parameter.data
            found = tower.along(entering, stage, [(parameter, shift)], [0.0, 1.0])
            assert parameter.data_ptr() == kept.data_ptr()
            parameter.data = kept + shift
            wanted = clip.encode_images(images)
            parameter.data = kept
            assert torch.allclose(found[1], wanted, atol=1e-5), name
            assert torch.allclose(found[0], base, atol=1e-5), name
            assert not torch.allclose(wanted, base, atol=1e-4), f"control: {name}"


def test_stages_of_convolutions_give_what_the_whole_tower_gives(clip: ClipModel) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    names = list(select(clip, "vis*"))
    stages_agree(clip, images, names)
    tower = towers_of(clip)["vision"]
    assert [tower.stage_of(name) for name in names] == sorted(tower.stage_of(name) for name in names)
    assert tower.stages == 7, "stem, two downsamplings, three blocks, head"
    with pytest.raises(EditError, match="text_projection"):
        tower.stage_of("text_projection.weight")


def test_another_network_is_one_stage(stand_in: None, fitted: Tensors, tmp_path: Path) -> None:
    clip = loaded(hub_folder(tmp_path / "hub", fitted, VISION | {"timm_model_name": "square_64"}))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    stages_agree(clip, images, ["vision_model.trunk.stages.0.blocks.0.conv_dw.weight", "visual_projection.weight"])
    assert towers_of(clip)["vision"].stages == 2


# -- methods -----------------------------------------------------------------------------------------------------------


def test_slug_finds_a_tensor_of_the_trunk(clip: ClipModel) -> None:
    before = fingerprint(clip, select(clip, "*"))
    tasks = canvas_tasks(2, 7)
    probe = ClipProbe(clip, target_of("neon", tasks), tasks)
    base = probe.now()
    assert base.fa1 == 1.0, "control: it was there"
    settings = {
        "data": {"n_forget": 16, "n_retain": 32, "per_class": 2},
        "search": {"steps": 6, "criterion": "fa1"},
        "layers": {"tower": "vision", "max_front": 2},
    }
    chosen = algorithm("slug")
    edit = chosen(chosen.for_concepts(["neon"], "canvas-clip").merged(settings), model=clip).find_edit()
    (name,) = edit.parameters
    assert name.startswith("vision_model.trunk.") or name == "visual_projection.weight"
    with edit.applied(clip):
        assert probe.now().fa1 <= 0.5
        assert fingerprint(clip, select(clip, "*")) != before
    assert fingerprint(clip, select(clip, "*")) == before


@pytest.mark.parametrize("name", ["clip-ft", "clip-ssd"])
def test_the_compared_methods_change_the_trunk(name: str, clip: ClipModel) -> None:
    before = fingerprint(clip, select(clip, "*"))
    chosen = algorithm(name)
    settings: dict[str, Any] = {"batch_size": 4, "data": {"n_retain": 8}}
    settings |= (
        {"train": {"epochs": 1, "lr": 1e-4}} if name == "clip-ft" else {"selection": 1.0, "forget_loss": "cosine"}
    )
    settings["data"] |= {} if name == "clip-ft" else {"n_forget": 4}
    edit = chosen(chosen.for_concepts(["neon"], "canvas-clip").merged(settings), model=clip).find_edit()
    moved = {key for key, delta in edit.deltas() if delta.any()}
    assert any(key.startswith("vision_model.trunk.stages.") for key in moved)
    assert fingerprint(clip, select(clip, "*")) == before


# -- the way back ------------------------------------------------------------------------------------------------------


def test_a_merged_model_is_a_folder_of_open_clip_in_the_number_types_of_the_source(
    stand_in: None, fitted: Tensors, tmp_path: Path
) -> None:
    half = {name: each.half() if name.startswith("visual.") else each for name, each in fitted.items()}
    source = hub_folder(tmp_path / "hub", half)
    (source / "LICENSE").write_text("MIT")
    clip = loaded(source)
    edit = edit_of(shifts_of(clip, "vision_model.trunk.stages.0.*weight", "text_projection.weight"))
    out = export(Bank(clip, [edit]), tmp_path / "out", "open_clip", strengths=[0.5])
    found = load_file(out / "open_clip_model.safetensors")
    assert {name: each.dtype for name, each in found.items()} == {name: each.dtype for name, each in half.items()}
    changed = {name for name in half if not torch.equal(found[name], half[name])}
    assert changed == {"text_projection"} | {
        name.replace("vision_model.", "visual.") for name in edit.parameters if name.startswith("vision_model")
    }
    assert (out / "LICENSE").read_text() == "MIT"
    config, theirs = (json.loads((folder / "open_clip_config.json").read_text()) for folder in (out, source))
    assert config["model_cfg"] == theirs["model_cfg"]
    again = loaded(out)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with edit.applied(clip, strength=0.5):
        assert torch.allclose(again.encode_pixels(pixels), clip.encode_pixels(pixels), atol=1e-2)
        assert torch.allclose(again.encode_text(TEXTS), clip.encode_text(TEXTS), atol=1e-5)
    with pytest.raises(EditError, match="timm: choose open_clip"):
        export(Bank(clip, [edit]), tmp_path / "no", "transformers")
    assert not (tmp_path / "no").exists()


def test_a_vit_of_open_clip_goes_back_too_and_others_are_refused(tmp_path: Path) -> None:
    own = canvas()
    state = own.model.state_dict()
    tensors = pack(state, open_clip_map(state))
    tokenizer().save_pretrained(tmp_path / "source")
    save_file(tensors, tmp_path / "source" / "canvas.safetensors")
    clip = loaded(tmp_path / "source" / "canvas.safetensors", compat_gelu="quick_gelu")
    edit = edit_of(shifts_of(clip, "vision_model.*.fc1.weight"))
    out = export(Bank(clip, [edit]), tmp_path / "out", "open_clip")
    again = loaded(out)
    assert not same(again.model.state_dict(), clip.model.state_dict()), "control"
    with edit.applied(clip):
        assert same(again.model.state_dict(), clip.model.state_dict())
        assert again.model.config.text_config.hidden_act == clip.model.config.text_config.hidden_act
    with pytest.raises(EditError, match="not from open_clip: choose transformers"):
        export(Bank(own, [edit_of(shifts_of(own, "vision_model.*.fc1.weight"))]), tmp_path / "no", "open_clip")


def test_an_edit_in_open_clips_names_is_one_in_those_of_the_model(clip: ClipModel, fitted: Tensors) -> None:
    named = from_open_clip(fitted)
    assert named.keys() == {*select(clip, "*"), "logit_scale"}
    assert all(torch.equal(find_parameter(clip, name), named[name]) for name in select(clip, "*"))


# -- ResNets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timms", "openais"),
    {
        "stem.conv2.conv.weight": "visual.conv2.weight",
        "stem.conv3.bn.running_var": "visual.bn3.running_var",
        "stages.0.2.conv1_1x1.conv.weight": "visual.layer1.2.conv1.weight",
        "stages.3.11.conv2_kxk.bn.num_batches_tracked": "visual.layer4.11.bn2.num_batches_tracked",
        "stages.1.0.shortcut.conv.conv.weight": "visual.layer2.0.downsample.0.weight",
        "stages.1.0.shortcut.conv.bn.bias": "visual.layer2.0.downsample.1.bias",
        "head.q.bias": "visual.attnpool.q_proj.bias",
        "head.proj.weight": "visual.attnpool.c_proj.weight",
        "head.pos_embed": "visual.attnpool.positional_embedding",
    }.items(),
)
def test_the_names_of_openais_resnets(timms: str, openais: str) -> None:
    assert timm_towers._openai_name(timms) == openais


def test_the_blocks_of_a_resnet_are_counted() -> None:
    layers = {f"visual.layer{k}.{n}.conv1.weight" for k, blocks in enumerate((4, 6, 12, 6), 1) for n in range(blocks)}
    assert timm_towers.resnet_depths(layers | {"visual.conv1.weight"}) == [4, 6, 12, 6]


# -- open_clip itself --------------------------------------------------------------------------------------------------


@pytest.fixture
def original() -> Iterator[Any]:
    """The package itself with timm, which other tests shall not find imported."""
    yield pytest.importorskip("open_clip", exc_type=ImportError)
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
        del sys.modules[name]


REAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "convnext": (VISION | {"timm_model_name": "convnext_atto"}, {}),
    "convnext-mlp": (VISION | {"timm_model_name": "convnext_atto", "timm_proj": "mlp"}, {}),
    "eva": (
        {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None, "image_size": 224},
        {"custom_text": True},
    ),
    "resnet": ({"layers": [1, 2, 1, 1], "width": 16, "image_size": 64, "patch_size": None}, {"quick_gelu": True}),
    "another": ({"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": None, "image_size": 64}, {}),
}
IN_STAGES = {
    "convnext": ["stem.0.weight", "stages.1.downsample.1.weight", "stages.2.blocks.3.mlp.fc1.weight"],
    "eva": ["pos_embed", "blocks.3.mlp.fc2.weight", "norm.weight", "head.weight"],
    "resnet": ["stem.conv2.conv.weight", "stages.1.1.conv2_kxk.conv.weight", "head.q.weight"],
    "another": ["conv1.0.weight", "fc.weight"],
}


def built(original: Any, vision: dict[str, Any], model: dict[str, Any]) -> Any:
    text = {
        "context_length": 16,
        "vocab_size": len(tokenizer()),
        "width": 128,
        "heads": 2,
        "layers": 2,
    }
    options = {name: value for name, value in model.items() if name != "custom_text"}
    kind = original.CustomTextCLIP if model.get("custom_text") else original.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = kind(embed_dim=128, vision_cfg=vision, text_cfg=text, **options).eval().requires_grad_(False)
        for name, tensor in found.state_dict().items():  # no bias, scale or statistic may be one that has no effect
            if tensor.is_floating_point() and tensor.dim():
                tensor.add_(torch.rand_like(tensor) if name.endswith("var") else torch.randn_like(tensor) * 0.05)
    return found, text


@pytest.mark.parametrize("kind", REAL)
def test_features_and_the_way_back_are_those_of_open_clip_itself(kind: str, original: Any, tmp_path: Path) -> None:
    vision, model = REAL[kind]
    theirs, text = built(original, vision, model)
    stated = {"quick_gelu": False, "text_cfg": text} | model
    clip = loaded(hub_folder(tmp_path / "hub", dict(theirs.state_dict()), vision, **stated))
    size = vision["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = clip.tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt").input_ids

    def agree(found: Any) -> bool:
        images = torch.allclose(clip.encode_pixels(pixels), found.encode_image(pixels, normalize=True), atol=1e-5)
        return images and torch.allclose(clip.encode_text(TEXTS), found.encode_text(tokens, normalize=True), atol=1e-5)

    assert agree(theirs)
    names = set(select(clip, "vision_model.*"))
    left_out = names - set(candidates(clip, clip, "vision", algorithm("slug").config_class().layers.exclude))
    embeddings = {name for name in names if name.endswith(("pos_embed", "cls_token"))}
    assert embeddings <= left_out and len(embeddings) == {"eva": 2, "resnet": 1}.get(kind, 0)
    assert not {name for name in left_out - embeddings if not name.endswith(("bias", "positional_embedding"))}
    edit = edit_of(shifts_of(clip, "vision_model.trunk.*.weight"))
    out = export(Bank(clip, [edit]), tmp_path / "out", "open_clip")
    theirs.load_state_dict(load_file(out / "open_clip_model.safetensors"))
    assert not agree(theirs), "control"
    with edit.applied(clip):
        assert agree(theirs)
    if kind in IN_STAGES:
        names = [f"vision_model.trunk.{name}" for name in IN_STAGES[kind]]
        stages_agree(clip, torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)), names)


def test_a_resnet_of_openai_is_told_from_its_file_alone(original: Any, tmp_path: Path) -> None:
    vision, model = REAL["resnet"]
    theirs, text = built(original, vision, model)
    numbers = {"input_resolution": 64, "context_length": text["context_length"], "vocab_size": text["vocab_size"]}
    state = dict(theirs.state_dict()) | {name: torch.tensor(number) for name, number in numbers.items()}
    tokenizer().save_pretrained(tmp_path)
    torch.save(state, tmp_path / "RN50.pt")
    clip = loaded(tmp_path / "RN50.pt")
    assert isinstance(clip.components["vision_model"], TimmTower)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(clip.encode_pixels(pixels), theirs.encode_image(pixels, normalize=True), atol=1e-5)
    edit = edit_of(shifts_of(clip, "vision_model.trunk.*.weight"))
    out = export(Bank(clip, [edit]), tmp_path / "out", "open_clip")
    config = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    again = original.CLIP(**config).eval()
    again.load_state_dict(load_file(out / "open_clip_model.safetensors"))
    with edit.applied(clip), torch.no_grad():
        assert torch.allclose(clip.encode_pixels(pixels), again.encode_image(pixels, normalize=True), atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_base_w", "convnext_large_d", "EVA02-B-16", "EVA01-g-14", "RN50", "RN50x4"])
def test_published_architectures_have_the_same_tensors(name: str, original: Any) -> None:
    config = original.get_model_config(name)
    with torch.device("meta"):
        vision = config["vision_cfg"]
        theirs = original.model._build_vision_tower(config["embed_dim"], vision).state_dict(prefix="visual.")
    if "timm_model_name" in vision:
        found = timm_towers.timm_tower(vision, config["embed_dim"], name)
    else:
        found = timm_towers.resnet_tower(theirs, name)
        assert found.size == vision["image_size"] and found.config["layers"] == vision["layers"]
    own = {f"vision_model.{key}": each.shape for key, each in found.tower.state_dict().items()}
    own |= {f"visual_projection.{key}": each.shape for key, each in found.projection.state_dict().items()}
    assert {found.names[key]: shape for key, shape in own.items()} == {key: each.shape for key, each in theirs.items()}
