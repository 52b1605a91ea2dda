"""Models of open_clip as a `ClipModel`: by tag, from a folder in open_clip's hub layout, or from a state dict.

The weights are converted to transformers' CLIP. open_clip itself is needed only for the list of tags and the download.
The architecture follows from the shapes, except the number of attention heads and the activation (GELU or QuickGELU).
Those come from the config, the tag or the published file's name. An image tower that is no ViT of open_clip's own is
timm's (`mu.models.formats.timm_towers`), by the name in the config.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from mu.core.errors import MissingDependency, ModelError, nearest, quoted, titled
from mu.core.records import read_json
from mu.models.clip import READ_AT_LARGEST, ClipModel, OpenClipNames, clip_processor
from mu.models.formats import timm_towers
from mu.models.formats.architectures import blueprint
from mu.models.formats.checkpoint import read_state_dict
from mu.models.formats.open_clip_names import open_clip_map
from mu.models.formats.packing import pack, unpack
from mu.models.formats.single_file import END, find_tokenizer
from mu.models.places import GELUS, OPEN_CLIP, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS

Config = Mapping[str, Any]

# Attention heads are 64 wide, except in the image towers of ViT-H, g, bigG and e.
_HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
_READS = "mu reads open_clip models with CLIP's own text tower: name one, like open_clip:ViT-B-32/openai"
_UNNAMED = f"{OPEN_CLIP_CONFIG} must say which (timm_model_name), in the folder of the file {OPEN_CLIP_WEIGHTS[0]}"
_OTHER_KINDS = {  # the first that fits; a tower is told by a part of its tensors' names
    "visual.trunk.stages.": "ConvNeXt, an image tower of timm",
    "visual.trunk.attn_pool.": "SigLIP's ViT, an image tower of timm",
    "visual.trunk.blocks.0.attn.q_bias": "EVA, an image tower of timm",
    "visual.trunk.blocks.0.attn.q_proj.": "EVA, an image tower of timm",
    "visual.trunk.": "an image tower of timm",
    "visual.blocks.0.attn.": "EVA as image tower",
    "visual.attn_pool.": "an image tower with attentional pooling (CoCa)",
    "text.": "a text tower of another kind (SigLIP, CLIPA, CoCa, Hugging Face)",
    "logit_bias": "SigLIP's loss with a bias",
}
# Settings of a tower's config: those that affect only shapes or training, and the supported values of others.
_IN_SHAPES = {
    "image_size", "patch_size", "width", "layers", "mlp_ratio", "context_length", "vocab_size", "heads", "head_width",
    "patch_dropout", "output_tokens", "attn_pooler_heads", "attn_pooler_queries", "pad_id", "eos_id",
}  # fmt: skip
_KNOWN = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
_NUMBERS = {
    "input_resolution": ("vision_config", "image_size"),
    "context_length": ("text_config", "max_position_embeddings"),
    "vocab_size": ("text_config", "vocab_size"),
}
"""Numbers in the files of OpenAI, and where the config holds them."""
_LOOK = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}

log = logging.getLogger("mu")


# -- where a model comes from ------------------------------------------------------------------------------------------


def from_tag(
    name: str,
    *,
    compat_gelu: str | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> ClipModel:
    """Load ``open_clip:ARCH/TAG`` from open_clip's cache or the network.

    The activation is the one that the weights were trained with. open_clip itself runs ``ViT-B-32/laion400m_e32`` and
    similar models with GELU although they were trained with QuickGELU, and warns; ``compat_gelu="gelu"`` does the same.
    """
    try:
        import open_clip
    except ImportError as error:  # open_clip cannot be imported without torchvision either
        missing = error.name if error.name not in (None, "open_clip") else "open_clip_torch"
        raise MissingDependency(missing or "open_clip_torch", "clip", f"the model {titled(name)}") from None

    architecture, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
    model = open_clip.get_model_config(architecture)
    if model is None:
        raise ModelError(
            f"open_clip has no model {quoted(architecture)}.{nearest(architecture, open_clip.list_models())}"
        )
    known = open_clip.get_pretrained_cfg(architecture, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise ModelError(f"open_clip has no weights {quoted(tag)} of {architecture}.{nearest(tag, tags)}")
    # Versions of open_clip without this setting for a tag list the tag under this name too.
    quick = tag in open_clip.list_pretrained_tags_by_model(f"{architecture}-quickgelu")
    trained = {"quick_gelu": any((quick, model.get("quick_gelu"), known.get("quick_gelu")))}
    config = {"model_cfg": {**model, **trained}, "preprocess_cfg": known}
    _check_config(config, name)
    tower = model.get("vision_cfg") or {}
    if tower.get("timm_model_name") or isinstance(tower.get("layers"), list):
        timm_towers.package(f"the model {titled(name)}")  # before gigabytes are downloaded
    try:
        path = Path(open_clip.download_pretrained(known))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        hint = f"download it on a machine with network and name its file ({reason})"
        raise ModelError(f"{titled(name)} is not in the local cache and cannot be downloaded: {hint}") from None
    return _opened(read_state_dict(path), [], config, name, compat_gelu, device, precision)


def from_folder(
    folder: Path,
    name: str,
    *,
    compat_gelu: str | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> ClipModel:
    """Load a folder with ``open_clip_config.json`` and weights, as open_clip writes it for the hub."""
    config = _read_config(folder)
    weights = next((folder / file for file in OPEN_CLIP_WEIGHTS if (folder / file).exists()), None)
    if weights is None:
        raise ModelError(
            f"{folder} holds an {OPEN_CLIP_CONFIG} without weights ({' or '.join(OPEN_CLIP_WEIGHTS)}): copy them too"
        )
    return _opened(read_state_dict(weights), [folder], config, name, compat_gelu, device, precision)


def from_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    name: str,
    *,
    compat_gelu: str | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> ClipModel:
    """Load a state dict, the ``tensors`` of the file at ``path``, as open_clip publishes it or writes it in training.

    The file of OpenAI itself, a TorchScript program or its state dict, is read too: its three numbers identify it.
    Other files do not state the activation. One warning is logged if neither ``compat_gelu`` nor the file's name does.
    """
    if path.name in OPEN_CLIP_WEIGHTS and (path.parent / OPEN_CLIP_CONFIG).exists():
        return _opened(tensors, [path.parent], _read_config(path.parent), name, compat_gelu, device, precision)
    published = any(key in tensors for key in _NUMBERS)
    quick = published or any(word in path.stem.lower() for word in ("quickgelu", "quick_gelu", "openai"))
    if not quick and compat_gelu is None:
        log.warning(
            "%s does not state its activation: GELU is assumed; OpenAI's models and '-quickgelu' ones need "
            "compat_gelu='quick_gelu'",
            path,
        )
    return _opened(tensors, [path.parent], {"model_cfg": {"quick_gelu": quick}}, name, compat_gelu, device, precision)


# -- config ------------------------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> Config:
    file = folder / OPEN_CLIP_CONFIG
    config = read_json(file, error=ModelError)
    _check_config(config, str(file))
    return config


def _check_config(config: Any, where: str) -> None:
    """Refuse settings that CLIP in transformers would silently ignore."""

    def part(of: Any, key: str) -> dict[str, Any]:
        found = of.get(key, {}) if isinstance(of, dict) else None
        if not isinstance(found, dict):
            raise ModelError(f"{where} is not a config of open_clip: {key} is missing or not a mapping")
        return found

    model, look = part(config, "model_cfg"), part(config, "preprocess_cfg")
    vision, text = part(model, "vision_cfg"), part(model, "text_cfg")
    kind = None
    if text.get("hf_model_name"):
        kind = f"a text tower of Hugging Face ({text['hf_model_name']})"
    elif model.get("multimodal_cfg"):
        kind = "a text decoder (CoCa)"
    if kind:
        raise ModelError(f"{where} has {kind}: {_READS}")
    if isinstance(vision.get("layers"), list) and vision.get("head_width", 64) != 64:
        raise ModelError(
            f"{where} has the setting head_width = {quoted(vision['head_width'])}: a ResNet of timm has 64"
        )
    own = timm_towers.SETTINGS if vision.get("timm_model_name") else set()
    if own:
        timm_towers.check_settings(vision, where)
    for key, value in (*vision.items(), *text.items()):
        if value and key not in _IN_SHAPES | own and value not in _KNOWN.get(key, ()):
            raise ModelError(
                f"{where} has the setting {key} = {quoted(value)}, which CLIP in transformers lacks: {_READS}"
            )
    for key, value in look.items():
        if value != _LOOK.get(key, value):
            raise ModelError(
                f"{where} prepares images with {key} = {quoted(value)}: mu supports {quoted(_LOOK[key])} only"
            )
        numbers = [part for part in value if isinstance(part, (int, float))] if isinstance(value, (list, tuple)) else []
        if key in ("mean", "std") and len(numbers) != 3:
            raise ModelError(f"{where} has {key} = {quoted(value)}: three numbers are needed")


def _other_kind(names: Collection[str], named: bool) -> str | None:
    """What tensors of these ``names`` have that no CLIP here has, and what to do; None if they have nothing of it.

    ``named``: the config names the image tower of timm.
    """
    for part, kind in _OTHER_KINDS.items():
        if any(name.startswith(part) for name in names) and not (named and part.startswith("visual.trunk.")):
            return f"{kind}: {_UNNAMED if part.startswith('visual.trunk.') else _READS}"
    return None


def _shape(tensors: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in tensors or tensors[key].dim() != dimensions or not tensors[key].numel():
        raise ModelError(f"the tensor {key} of {dimensions} dimensions is missing: this is not a complete CLIP")
    return tuple(tensors[key].shape)


def _transformers_config(
    tensors: Mapping[str, Tensor], config: Config, hidden_act: str, built: timm_towers.Built | None = None
) -> dict[str, Any]:
    """The config.json of a transformers folder with these weights, without the token ids of the tokenizer.

    The image tower of a model with a ``built`` one is described by the size of its images alone.
    """
    vision, text = (config["model_cfg"].get(part) for part in ("vision_cfg", "text_cfg"))

    def tower(prefix: str, width: int, heads: Any) -> dict[str, Any]:
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise ModelError(f"{quoted(heads)} heads do not divide the width {width}: check {OPEN_CLIP_CONFIG}")
        blocks = f"{prefix}transformer.resblocks."
        return {
            "hidden_size": width,
            "intermediate_size": _shape(tensors, f"{blocks}0.mlp.c_fc.weight", 2)[0],
            "num_hidden_layers": len(
                {key.removeprefix(blocks).split(".")[0] for key in tensors if key.startswith(blocks)}
            ),
            "num_attention_heads": heads,
            "hidden_act": hidden_act,
            "projection_dim": embedding,
        }

    if built:
        embedding = _shape(tensors, "text_projection", 2)[1]
        images = {"image_size": built.size, "patch_size": built.size, "num_hidden_layers": 0}
    else:
        vision_width, embedding = _shape(tensors, "visual.proj", 2)
        patch = _shape(tensors, "visual.conv1.weight", 4)[-1]
        side = math.isqrt(_shape(tensors, "visual.positional_embedding", 2)[0] - 1)
        head_width = _HEAD_WIDTH.get(vision_width, 64) if vision is None else vision.get("head_width", 64)
        vision_heads = vision_width // head_width if isinstance(head_width, int) and head_width else head_width
        sizes = {"image_size": side * patch, "patch_size": patch}
        images = tower("visual.", vision_width, vision_heads) | sizes
    vocabulary, text_width = _shape(tensors, "token_embedding.weight", 2)
    text_heads = text_width // 64 if text is None else text.get("heads", 8)
    tokens = {
        "vocab_size": vocabulary,
        "max_position_embeddings": _shape(tensors, "positional_embedding", 2)[0],
    }
    return {
        "architectures": ["CLIPModel"],
        "projection_dim": embedding,
        "vision_config": images,
        "text_config": tower("", text_width, text_heads) | tokens,
    }


# -- conversion --------------------------------------------------------------------------------------------------------


def _opened(
    tensors: Mapping[str, Tensor],
    places: Sequence[Path],
    config: Config,
    name: str,
    compat_gelu: str | None,
    device: torch.device | str,
    precision: torch.dtype,
) -> ClipModel:
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    tensors = {key: tensor for key, tensor in tensors.items() if key.split(".")[-1] != "attn_mask"}
    model_cfg, look = config["model_cfg"], config.get("preprocess_cfg", {})
    apart = bool(model_cfg.get("custom_text")) and any(key.startswith("text.") for key in tensors)
    if apart:
        tensors = {key.removeprefix("text."): tensor for key, tensor in tensors.items()}
    if kind := _other_kind(tensors, named=bool((model_cfg.get("vision_cfg") or {}).get("timm_model_name"))):
        raise ModelError(f"{titled(name)} has {kind}")
    try:
        built = _image_tower(tensors, model_cfg.get("vision_cfg") or {}, name)
        activation = compat_gelu or GELUS[bool(model_cfg.get("quick_gelu"))]
        described, tokenizer = _described(tensors, places, config, activation, built)
        model, names = _with_weights(tensors, described, built, precision)
    except ModelError as error:
        raise ModelError(f"{titled(name)}: {error}") from None
    own = {f"image_{key}": look[key] for key in ("mean", "std") if look.get(key)}
    processor = clip_processor(described["vision_config"]["image_size"], **own)
    clip = ClipModel(model, tokenizer, processor, name, device)
    if apart:
        names = {
            own: key if key.startswith(("visual.", "logit_scale")) else f"text.{key}" for own, key in names.items()
        }
    clip.open_clip = OpenClipNames(names, _hub_config(model_cfg, described, built, processor))
    return clip


def _image_tower(tensors: Mapping[str, Tensor], vision: Config, name: str) -> timm_towers.Built | None:
    """The image tower of timm that the config names or the tensors are of; None for a ViT of open_clip's own."""
    need = f"the model {titled(name)}"
    if vision.get("timm_model_name"):
        return timm_towers.timm_tower(vision, _shape(tensors, "text_projection", 2)[1], need)
    return timm_towers.resnet_tower(tensors, need) if "visual.layer1.0.conv1.weight" in tensors else None


def _described(
    tensors: dict[str, Tensor],
    places: Sequence[Path],
    config: Config,
    hidden_act: str,
    built: timm_towers.Built | None,
) -> tuple[dict[str, Any], CLIPTokenizer]:
    """The model's config in transformers, and its tokenizer. OpenAI's numbers are taken out of ``tensors``."""
    numbers = {key: int(tensors.pop(key)) for key in _NUMBERS if key in tensors and tensors[key].numel() == 1}
    described = _transformers_config(tensors, config, hidden_act, built)
    for key, (part, setting) in _NUMBERS.items():
        if numbers.get(key, described[part][setting]) != described[part][setting]:
            raise ModelError(f"it says {key} {numbers[key]}, and its tensors {described[part][setting]}")
    # Not open_clip's "!": as a special token it would be removed from texts. Padding after the end is not read.
    tokenizer = find_tokenizer(places, ".", described["text_config"], pad=END)
    if len(tokenizer) != described["text_config"]["vocab_size"]:
        what = f"its vocabulary has {described['text_config']['vocab_size']} tokens, the tokenizer {len(tokenizer)}"
        raise ModelError(f"{what}: put the model's own tokenizer.json into the folder of the weights")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id == len(tokenizer) - 1 else READ_AT_LARGEST
    described["text_config"] |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end}
    return described, tokenizer


def _with_weights(
    tensors: Mapping[str, Tensor], described: Config, built: timm_towers.Built | None, precision: torch.dtype
) -> tuple[CLIPModel, dict[str, str]]:
    """The model with the weights ``tensors``, and open_clip's name of each of its tensors."""
    model, theirs = blueprint(described), built.names if built else {}
    if built:
        model.vision_model, model.visual_projection = built.tower, built.projection
    own = model.state_dict()
    names = open_clip_map(own.keys() - theirs.keys()) | theirs
    if surplus := sorted(tensors.keys() - names.values()):
        what = f"a CLIP with {built.kind if built else 'a ViT'}"
        raise ModelError(f"{len(surplus)} tensors do not belong to {what}, for example {surplus[0]}")
    weights = unpack(tensors, names, {key: parameter.shape for key, parameter in own.items()})
    for key in weights:  # a ResNet counts its batches in whole numbers
        kind = precision if weights[key].is_floating_point() else weights[key].dtype
        weights[key] = weights[key].to(kind, copy=True)
    model.load_state_dict(weights, assign=True)
    return model, names


# -- the way back ------------------------------------------------------------------------------------------------------


def _hub_config(
    model_cfg: Config, described: Config, built: timm_towers.Built | None, processor: Any
) -> dict[str, Any]:
    """The config with which open_clip reads the model as it is used here."""
    vision, text = described["vision_config"], described["text_config"]

    def sizes(part: Config) -> dict[str, Any]:
        ratio = {"mlp_ratio": part["intermediate_size"] / part["hidden_size"]}
        return {"width": part["hidden_size"], "layers": part["num_hidden_layers"]} | ratio

    def image_tower() -> Config:
        if built:
            return built.config
        head_width = vision["hidden_size"] // vision["num_attention_heads"]
        places = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
        return sizes(vision) | places | {"head_width": head_width}

    def text_tower() -> Config:
        places = {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"]}
        return sizes(text) | places | {"heads": text["num_attention_heads"]}

    return {
        "model_cfg": {
            **model_cfg,
            "embed_dim": described["projection_dim"],
            "quick_gelu": text["hidden_act"] == "quick_gelu",
            "vision_cfg": model_cfg.get("vision_cfg") or image_tower(),
            "text_cfg": model_cfg.get("text_cfg") or text_tower(),
        },
        "preprocess_cfg": {
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "interpolation": _LOOK["interpolation"],
            "resize_mode": _LOOK["resize_mode"],
        },
    }


def in_open_clip(clip: ClipModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a model that came from open_clip, in its own names and layout, and its config."""
    assert clip.open_clip is not None
    return pack(clip.model.state_dict(), clip.open_clip.names), dict(clip.open_clip.config)
