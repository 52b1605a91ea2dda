"""Models of open_clip as CLIP of transformers: the features of open_clip's definition, its names, and what is
refused."""

from __future__ import annotations

import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import mu
from mu.core.errors import ConfigError, MissingDependency, ModelError
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.models.canvas import architecture
from mu.models.clip import ClipModel
from mu.models.formats import open_clip
from mu.models.formats.architectures import blueprint
from mu.models.formats.open_clip_names import from_open_clip, open_clip_map
from mu.models.formats.packing import pack
from mu.models.formats.single_file import END
from mu.models.places import GELUS
from tests.models.formats.conftest import loaded, open_clip_folder

TEXTS = ["a star image in neon style.", "Ada Stone", "a moon"]
Tensors = dict[str, Tensor]


# -- the definition
# ---------------------------------------------------------------------------------------------------------


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGelu}


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, activation: str):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = [
            ("c_fc", nn.Linear(width, inner)),
            ("gelu", ACTIVATIONS[activation]()),
            ("c_proj", nn.Linear(inner, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, layers: int, *block: Any):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*block) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ImageTower(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, patch: int, size: int, embedding: int, activation: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(layers, width, heads, 4 * width, activation)
        self.proj = nn.Parameter(torch.randn(width, embedding) * width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Definition(nn.Module):
    """CLIP with a ViT as open_clip defines it: fused projections of q, k and v, projections as plain matrices."""

    def __init__(
        self,
        vision: tuple[int, int, int, int, int],
        text: tuple[int, int, int, int, int],
        embedding: int,
        activation: str = "gelu",
    ):
        super().__init__()
        width, heads, layers, vocabulary, context = text
        self.visual = ImageTower(*vision, embedding, activation)
        self.transformer = Blocks(layers, width, heads, 4 * width, activation)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embedding) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual(pixels), dim=-1)

    @torch.no_grad()
    def texts(self, tokens: Tensor) -> Tensor:
        """Of the whole context, read where the token with the largest number stands."""
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding, mask)
        read = self.ln_final(x)[range(len(x)), tokens.argmax(1)]
        return F.normalize(read @ self.text_projection, dim=-1)


TOKENS = len(architecture.new_tokenizer())
VISION, TEXT, EMBEDDING = (192, 3, 2, 8, 32), (128, 2, 3, TOKENS, 16), 48
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": EMBEDDING,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 192, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": TOKENS, "width": 128, "heads": 2, "layers": 3},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def defined(activation: str = "gelu") -> Definition:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Definition(VISION, TEXT, EMBEDDING, activation)
        for parameter in model.parameters():  # no bias or scale may be one that has no effect
            parameter.add_(torch.randn_like(parameter) * 0.05) if parameter.requires_grad_(False).dim() else None
    return model.eval()


def tensors(model: nn.Module) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def written(path: Path, state: Any) -> Path:
    """``state`` at ``path``, with the tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    architecture.new_tokenizer().save_pretrained(path.parent)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def hub_folder(folder: Path, state: Tensors, **model: Any) -> Path:
    config = {**CONFIG, "model_cfg": CONFIG["model_cfg"] | model}
    return open_clip_folder(folder, state, config, architecture.new_tokenizer())


def agree(model: ClipModel, reference: Definition) -> bool:
    """Whether ``model`` has the features of the definition, of images and of texts padded to the whole context."""
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    found = [model.encode_pixels(pixels), model.encode_text(TEXTS)]
    wanted = [reference.images(pixels), reference.texts(tokens)]
    close = {torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)}
    assert len(close) == 1, "one tower agrees and the other does not"
    return close.pop()


# -- features
# ---------------------------------------------------------------------------------------------------------------


def bare(folder: Path, state: Tensors) -> Path:
    return written(folder / "model.pt", state)


def tensors_only(folder: Path, state: Tensors) -> Path:
    return written(folder / "model.safetensors", state)


def of_training(folder: Path, state: Tensors) -> Path:
    """On several devices, with the optimizer's state."""
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    return written(folder / "epoch_3.pt", {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}})


def of_the_hub(folder: Path, state: Tensors) -> Path:
    return hub_folder(folder / "hub", state)


@pytest.mark.parametrize("activation", GELUS)
@pytest.mark.parametrize("source", [bare, tensors_only, of_training, of_the_hub])
def test_features_are_those_of_open_clips_definition(source: Any, activation: str, tmp_path: Path) -> None:
    reference = defined(activation)
    path = source(tmp_path, tensors(reference))
    model = loaded(path, compat_gelu=activation)
    assert agree(model, reference)
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.exp().item())
    (other,) = set(GELUS) - {activation}
    assert not agree(loaded(path, compat_gelu=other), reference), "control: the other activation gives other features"


@pytest.fixture
def original() -> Iterator[Any]:
    """The package itself, which other tests shall not find imported."""
    yield pytest.importorskip("open_clip", exc_type=ImportError)
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
        del sys.modules[name]


def test_features_are_those_of_open_clip_itself(original: Any, tmp_path: Path) -> None:
    config = CONFIG["model_cfg"]
    for quick in (False, True):
        torch.manual_seed(0)
        theirs = original.CLIP(**config, quick_gelu=quick).eval()
        model = loaded(bare(tmp_path, tensors(theirs)), compat_gelu=GELUS[quick])
        pixels, tokens = (
            torch.randn(2, 3, 32, 32),
            model.tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids,
        )
        with torch.no_grad():
            assert torch.allclose(model.encode_pixels(pixels), theirs.encode_image(pixels, normalize=True), atol=1e-5)
            assert torch.allclose(model.encode_text(TEXTS), theirs.encode_text(tokens, normalize=True), atol=1e-5)


def test_heads_that_shapes_do_not_tell_come_from_the_config(tmp_path: Path) -> None:
    text = CONFIG["model_cfg"]["text_cfg"] | {"heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        reference = Definition((192, 6, 2, 8, 32), (128, 4, 3, TOKENS, 16), EMBEDDING).eval()
    vision = CONFIG["model_cfg"]["vision_cfg"] | {"head_width": 32}
    folder = hub_folder(tmp_path / "hub", tensors(reference), vision_cfg=vision, text_cfg=text)
    assert agree(loaded(folder), reference)
    assert not agree(loaded(hub_folder(tmp_path / "other", tensors(reference))), reference), "control: heads of 64"


def test_precision_and_preprocessing(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", tensors(defined()))
    model = loaded(folder, precision="bfloat16")
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    red = model.preprocess([Image.new("RGB", (50, 40), (255, 0, 0))])
    wanted = (torch.tensor([1.0, 0, 0]) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    assert red.shape == (1, 3, 32, 32)
    assert torch.allclose(red[0, :, 7, 9], wanted)
    plain = loaded(bare(tmp_path, tensors(defined())), compat_gelu="gelu").processor
    assert plain.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert plain.image_std == pytest.approx([0.26862954, 0.26130258, 0.27577711])


# -- activation
# -------------------------------------------------------------------------------------------------------------


def acts(model: ClipModel) -> str:
    (found,) = {model.model.config.text_config.hidden_act, model.model.config.vision_config.hidden_act}
    return found


@pytest.mark.parametrize(
    ("file", "expected", "warnings"),
    [
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", "quick_gelu", 0),
        ("openai.pt", "quick_gelu", 0),
        ("epoch_9.pt", "gelu", 1),
    ],
)
def test_a_bare_file_is_named_or_guessed(
    file: str, expected: str, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / file, tensors(defined()))
    with caplog.at_level(logging.WARNING, "mu"):
        assert acts(loaded(path)) == expected
    assert len(caplog.records) == warnings
    assert all("compat_gelu" in record.getMessage() for record in caplog.records)
    caplog.clear()
    for chosen in GELUS:
        assert acts(loaded(path, compat_gelu=chosen)) == chosen
    assert not caplog.records


def test_a_folders_config_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for quick, expected in ((True, "quick_gelu"), (False, "gelu")):
        folder = hub_folder(tmp_path / expected, tensors(defined()), quick_gelu=quick)
        assert acts(loaded(folder)) == acts(loaded(folder / "open_clip_model.safetensors")) == expected
        assert acts(loaded(folder, compat_gelu="gelu")) == "gelu"
    assert not caplog.records


def test_an_activation_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compat_gelu.*'canvas-clip'"):
        mu.load("canvas-clip", compat_gelu="gelu")
    with pytest.raises(ConfigError, match=r"compat_gelu.*quick_gelu"):
        mu.load("open_clip:ViT-B-32/openai", compat_gelu="relu")


# -- tags
# -------------------------------------------------------------------------------------------------------------------


def package(monkeypatch: pytest.MonkeyPatch, path: Path, *, says_it: bool) -> None:
    """An open_clip that knows two tags of one architecture; old versions do not say of a tag which activation it
    needs."""
    pretrained: dict[str, Any] = {
        "Tiny": {"web_e1": {"quick_gelu": True} if says_it else {"url": "u"}, "plain_e1": {"url": "u"}}
    }
    pretrained["Tiny-quickgelu"] = {"web_e1": pretrained["Tiny"]["web_e1"]}
    configs: dict[str, Any] = {
        "Tiny": CONFIG["model_cfg"],
        "Tiny-quickgelu": CONFIG["model_cfg"] | {"quick_gelu": True},
    }
    configs["RN50"] = {"vision_cfg": {"layers": [3, 4, 6, 3]}, "text_cfg": {}}
    configs["convnext_base"] = {"vision_cfg": {"timm_model_name": "convnext_base"}, "text_cfg": {}}
    pretrained |= {"RN50": {"openai": {"url": "u"}}, "convnext_base": {"laion400m": {"url": "u"}}}
    fake = ModuleType("open_clip")
    fake.__dict__.update(
        get_model_config=configs.get,
        list_models=lambda: list(configs),
        get_pretrained_cfg=lambda arch, tag: pretrained.get(arch, {}).get(tag, {}),
        list_pretrained_tags_by_model=lambda arch: list(pretrained.get(arch, {})),
        download_pretrained=lambda cfg: str(path),
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)

    def found(places: Any, folder: str, config: Any, pad: str) -> Any:
        assert pad == END, "a word or a mark would be lost in texts"
        return architecture.new_tokenizer()

    monkeypatch.setattr(open_clip, "find_tokenizer", found)


@pytest.mark.parametrize("says_it", [True, False])
def test_a_tag_runs_with_the_activation_of_its_training(
    says_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package(monkeypatch, bare(tmp_path, tensors(defined())), says_it=says_it)
    assert agree(loaded(Path("open_clip:Tiny/plain_e1")), defined())
    assert acts(loaded(Path("open_clip:Tiny/web_e1"))) == "quick_gelu"
    assert acts(loaded(Path("open_clip:Tiny-quickgelu/web_e1"))) == "quick_gelu"
    assert acts(loaded(Path("open_clip:Tiny/web_e1"), compat_gelu="gelu")) == "gelu"
    assert not caplog.records


def test_unknown_tags_and_other_towers_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, tmp_path / "gone.pt", says_it=True)
    for name, named in {
        "Tinny/web_e1": ("'Tinny'", "'Tiny'"),
        "Tiny/web_e2": ("'web_e2'", "'web_e1'"),
        "Tiny": ("''", "Tiny"),
        "Tiny/plain_e1": ("gone.pt",),
    }.items():
        with pytest.raises(ModelError) as raised:
            mu.load(f"open_clip:{name}")
        assert all(word in str(raised.value) for word in named), raised.value
        assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    for name in ("RN50/openai", "convnext_base/laion400m"):
        with pytest.raises(MissingDependency, match=f"{name}.*timm.*eval"):  # and not that gone.pt is missing
            mu.load(f"open_clip:{name}")
    broken = SimpleNamespace(**vars(sys.modules["open_clip"]))
    broken.download_pretrained = lambda cfg: 1 / 0
    monkeypatch.setitem(sys.modules, "open_clip", broken)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"Tiny/plain_e1.*\(division by zero\)"):
        mu.load("open_clip:Tiny/plain_e1")
    monkeypatch.setitem(sys.modules, "open_clip", None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependency, match="open_clip"):
        mu.load("open_clip:Tiny/plain_e1")


# -- what is refused
# --------------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def with_(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda state: state | {name: torch.zeros(*shape)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("visual.proj"), "visual.proj"),
        (without("visual.ln_pre.bias"), "(visual.ln_pre.bias)"),
        (with_("visual.proj", 192), "visual.proj"),
        (with_("visual.positional_embedding", 12, 192), "12x192"),
        (with_("ln_final.weight", 5), "ln_final.weight"),
        (with_("transformer.resblocks.0.attn.in_proj_bias", 5), "transformer.resblocks.0.attn.in_proj_bias"),
        (with_("transformer.resblocks.0.ls_1.gamma", 128), "transformer.resblocks.0.ls_1.gamma"),
        (with_("visual.trunk.stem.0.weight", 4), "timm"),
        (with_("visual.trunk.stages.0.blocks.0.gamma", 4), "ConvNeXt"),
        (with_("visual.trunk.blocks.0.attn.q_bias", 4), "EVA"),
        (with_("visual.blocks.0.attn.q_bias", 4), "EVA"),
        (with_("visual.trunk.attn_pool.latent", 4), "SigLIP"),
        (with_("text.transformer.resblocks.0.ln_1.weight", 4), "text"),
        (with_("logit_bias", 1), "SigLIP"),
        (with_("token_embedding.weight", TOKENS + 5, 128), f"{TOKENS + 5}"),
    ],
)
def test_what_is_no_clip_with_a_vit_is_one_line(damage: Any, message: str, tmp_path: Path) -> None:
    path = bare(tmp_path, damage(tensors(defined())))
    with pytest.raises(ModelError) as raised:
        mu.load(path, compat_gelu="gelu")
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "open_clip_config.json"),
        ("[]", "model_cfg"),
        ({"model_cfg": 3}, "model_cfg"),
        ({"model_cfg": {"text_cfg": {"hf_model_name": "roberta-base"}}}, "roberta-base"),
        ({"model_cfg": {"vision_cfg": {"layers": [1, 1, 1, 1], "head_width": 32}}}, "head_width = 32"),
        ({"model_cfg": {"text_cfg": {"no_causal_mask": True}}}, "no_causal_mask = True"),
        ({"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}, "pool_type = 'avg'"),
        ({"model_cfg": {"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}}, "norm_kwargs"),
        ({"model_cfg": {"vision_cfg": {"head_width": 27}, "text_cfg": {"heads": 2}}}, "192"),
        ({"model_cfg": {"vision_cfg": {}, "text_cfg": {"heads": 0}}}, "128"),
        ({"model_cfg": {}, "preprocess_cfg": {"resize_mode": "squash"}}, "resize_mode = 'squash'"),
        ({"model_cfg": {}, "preprocess_cfg": {"mean": [0.5]}}, "mean"),
    ],
)
def test_configs_that_would_compute_otherwise_are_one_line(config: Any, message: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", tensors(defined()))
    (folder / "open_clip_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ModelError) as raised:
        mu.load(folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_weights_says_which_are_missing(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", tensors(defined()))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"open_clip_pytorch_model\.bin"):
        mu.load(folder)


# -- names
# ------------------------------------------------------------------------------------------------------------------


def same(found: Tensors, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def packed(tensors: Tensors) -> Tensors:
    """In open_clip's names and layout."""
    return pack(tensors, open_clip_map(tensors))


def test_names_and_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    state = tensors(defined())
    named = from_open_clip(state)
    assert same(packed(named), state)
    assert same(from_open_clip({f"module.{name}": tensor for name, tensor in state.items()}), named)
    model = loaded(bare(tmp_path, state), compat_gelu="gelu")
    assert same(packed(model.model.state_dict()), state)
    whole = {f"{part}.{name}": p for part, module in model.components.items() for name, p in module.named_parameters()}
    assert same({name: tensor.detach() for name, tensor in whole.items()}, without("logit_scale")(named))
    fused, layer = (
        state["visual.transformer.resblocks.1.attn.in_proj_weight"],
        "vision_model.encoder.layers.1.self_attn",
    )
    for k, part in enumerate(("q_proj", "k_proj", "v_proj")):
        assert torch.equal(named[f"{layer}.{part}.weight"], fused[192 * k : 192 * (k + 1)])
    assert torch.equal(named["text_projection.weight"], state["text_projection"].T)
    assert torch.equal(named["visual_projection.weight"], state["visual.proj"].T)


# width, heads, layers, patch, size; width, heads, layers, vocabulary, context; embedding; tensors; numbers in millions
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "ViT-B-32": ((768, 12, 12, 32, 224), (512, 8, 12, 49408, 77), 512, 302, 151.3),
    "ViT-L-14": ((1024, 16, 24, 14, 224), (768, 12, 12, 49408, 77), 768, 446, 427.6),
    "ViT-H-14": ((1280, 16, 32, 14, 224), (1024, 16, 24, 49408, 77), 1024, 686, 986.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_told_from_shapes_alone(name: str) -> None:
    vision, text, embedding, count, millions = PUBLISHED[name]
    with torch.device("meta"):
        state = Definition(vision, text, embedding).state_dict()
    assert len(state) == count
    assert sum(tensor.numel() for tensor in state.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    config = open_clip._transformers_config(state, {"model_cfg": {}}, "gelu")
    assert config["vision_config"]["num_attention_heads"] == vision[1]
    assert config["text_config"]["num_attention_heads"] == text[1]
    own = {key: tensor.shape for key, tensor in blueprint(config).state_dict().items()}
    assert set(open_clip_map(own).values()) == state.keys()
    found = {
        key.replace("text_encoder.", "text_model.", 1): tensor.shape for key, tensor in from_open_clip(state).items()
    }
    assert found == own
    back = packed(from_open_clip(state))
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in state.items()}


# -- edits
# ------------------------------------------------------------------------------------------------------------------


def test_a_shift_in_open_clips_names_is_an_edit_and_goes_back(tmp_path: Path) -> None:
    state = tensors(defined())
    torch.manual_seed(1)
    keys = [
        "visual.proj",
        "transformer.resblocks.1.attn.in_proj_weight",
        "visual.transformer.resblocks.0.mlp.c_fc.bias",
    ]
    shift = {key: torch.randn_like(state[key]) for key in keys}
    WeightEdit(from_open_clip(shift), EditInfo(method="imported", concepts=("x",))).save(tmp_path / "edit.safetensors")
    edit = mu.open_edit(tmp_path / "edit.safetensors")
    assert same(packed(dict(edit.deltas())), shift)
    model = loaded(bare(tmp_path, state), compat_gelu="gelu")
    with edit.applied(model):
        assert same(packed(model.model.state_dict()), state | {key: state[key] + shift[key] for key in keys})
    assert same(packed(model.model.state_dict()), state)


# -- OpenAI's own files
# -----------------------------------------------------------------------------------------------------


class Tree(nn.Module):
    """Modules that hold ``state`` by its names, as a program that TorchScript can save."""

    def __init__(self, state: Tensors) -> None:
        super().__init__()
        inner: dict[str, Tensors] = {}
        for name, tensor in state.items():
            head, _, rest = name.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = tensor
            else:
                self.register_buffer(head, tensor)
        for head, part in inner.items():
            self.add_module(head, Tree(part))

    def forward(self, x: Tensor) -> Tensor:
        return x


NUMBERS = {"input_resolution": 32, "context_length": 16, "vocab_size": TOKENS}


@pytest.mark.parametrize("program", [False, True])
def test_the_files_of_openai_open_with_their_activation(
    program: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = defined("quick_gelu")
    state = tensors(reference) | {name: torch.tensor(number) for name, number in NUMBERS.items()}
    if program:
        path = written(tmp_path / "ViT-B-32.pt", {})
        torch.jit.script(Tree(state)).save(str(path))
    else:
        path = written(tmp_path / "ViT-B-32.pt", state)
    with caplog.at_level(logging.WARNING, "mu"):
        model = loaded(path)
    assert acts(model) == "quick_gelu" and not caplog.records
    assert agree(model, reference)
    assert not agree(loaded(path, compat_gelu="gelu"), reference), "control"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_contradicts_the_tensors_is_refused(number: str, tmp_path: Path) -> None:
    state = tensors(defined()) | {number: torch.tensor(NUMBERS[number] + 1)}
    with pytest.raises(ModelError, match=f"{number} {NUMBERS[number] + 1}"):
        mu.load(bare(tmp_path, state), device="cpu")
