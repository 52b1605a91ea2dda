"""LoRA files of other tools, read and written: kohya, LyCORIS' plain LoRA, diffusers (old and new), PEFT and SPM.

Reading accounts for every tensor and every metadata key: it is used, known not to matter, or an `EditError`. A key
consists of a prefix (the component), a layer and an ending (the part). Layers are looked up in tables of the published
models' module names. The tables treat dots and underscores alike and leave numbers open, so one table serves all
spellings and sizes.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mu.core.documents import parse_json
from mu.core.errors import EditError, quoted, titled
from mu.core.files import read_text
from mu.edits.edit import Edit, EditInfo
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.places import ADAPTER_FILES

IMPORTED = "imported"
"""`EditInfo.method` of an edit that another tool made."""

log = logging.getLogger("mu")


# -- reading -----------------------------------------------------------------------------------------------------------


def read_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> LowRankEdit:
    """The edit in the ``tensors`` and ``metadata`` of the file at ``path`` (and PEFT's adapter_config.json next to it).

    Raises `EditError` for a file without LoRA factors, a tensor or setting that mu's LoRA does not support, and a layer
    of an unknown model.
    """
    name = path.parent.absolute().name if path.name in ADAPTER_FILES else path.stem
    layers = _layers(tensors, name)
    scales = _Scales.of(metadata, path, name)
    if not scales.settings and any("base_model.model." in key for key in tensors):
        log.warning("%r is a PEFT file without its adapter_config.json, which holds alpha: alpha = rank is used", name)
    factors = {parameter: layer.factors(scales, name) for parameter, layer in layers.items()}
    return LowRankEdit(factors, EditInfo(IMPORTED, _concepts(metadata, name), config={"file": name, **metadata}))


def _concepts(metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Read the concepts from the metadata. SPM's ``prompts`` joins concepts by commas, so a comma always separates."""
    if "mu_concepts" in metadata:
        return tuple(map(str, _json(metadata["mu_concepts"], list, f"mu_concepts of {titled(name)}")))
    return tuple(part.strip() for part in metadata.get("prompts", "").split(",") if part.strip())


def _json(text: str, kind: type, what: str) -> Any:
    content = parse_json(text, what, error=EditError)
    if not isinstance(content, kind):
        raise EditError(f"{what} is not the expected kind of JSON: make or copy the file again")
    return content


# -- tensors: the ending of a key --------------------------------------------------------------------------------------

_ENDINGS = {
    "down": r"(?:\.lora_down|\.lora_A(?:\.(?P<adapter>[^.]+))?|\.lora_linear_layer\.down|[._]lora\.down)\.weight",
    "up": r"(?:\.lora_up|\.lora_B(?:\.(?P<adapter>[^.]+))?|\.lora_linear_layer\.up|[._]lora\.up)\.weight",
    "alpha": r"(?:\.lora_linear_layer|[._]lora)?\.alpha",
}
_PARTS = {part: re.compile(f"(?P<layer>.+?){ending}") for part, ending in _ENDINGS.items()}

# Keys that identify other adapter kinds. Ignoring them would load a different edit than the author trained.
_OTHER_KINDS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lora_mid": "LoCon (Tucker factors)", "hada_": "LoHa",
    "lokr_": "LoKr", "oft_": "OFT", "boft_": "BOFT", "ia3_": "(IA)3",
    "diff": "full-rank delta", "diff_b": "full-rank delta",
    "w_norm": "LyCORIS norm", "b_norm": "LyCORIS norm", "scalar": "LyCORIS scalar", "bundle_emb": "LoRA and embedding",
    "emb_params": "embedding", "lora_embedding_": "LoRA of an embedding", "bias": "LoRA with biases",
    "a1": "GLoRA", "a2": "GLoRA", "b1": "GLoRA", "b2": "GLoRA",
    **dict.fromkeys(("lora_down", "lora_up", "lora_A", "lora_B", "lora_linear_layer"), "LoRA of unknown spelling"),
}  # fmt: skip


@dataclass
class _Layer:
    """The tensors of one layer in a file. ``spelled`` is its name there without the prefix, as in PEFT's patterns."""

    component: str
    spelled: str
    parts: dict[str, Tensor]

    def factors(self, scales: _Scales, name: str) -> Factors:
        down, up = (self._factor(part, name) for part in ("down", "up"))
        rank = down.shape[:1].numel()
        return Factors(down, up, self._alpha(name) or scales.alpha(self, rank) or float(rank))

    def _factor(self, part: str, name: str) -> Tensor:
        if part not in self.parts:
            there = " and ".join(self.parts)
            raise EditError(
                f"{self.spelled} has {there} but not both factors, so {titled(name)} is damaged: copy it again"
            )
        if not self.parts[part].is_floating_point():
            kind = str(self.parts[part].dtype).removeprefix("torch.")
            raise EditError(
                f"the factors of {self.spelled} in {titled(name)} are {kind}: save them as float16 or float32"
            )
        return self.parts[part]

    def _alpha(self, name: str) -> float:
        """The layer's alpha, or 0 if the file has none or 0 (by which kohya and SPM mean the rank)."""
        alpha = self.parts.get("alpha", torch.zeros(()))
        if alpha.numel() != 1:
            raise EditError(
                f"alpha of {self.spelled} in {titled(name)} is {tuple(alpha.shape)} and not a number: copy the "
                "file again"
            )
        return float(alpha)


def _layers(tensors: Mapping[str, Tensor], name: str) -> dict[str, _Layer]:
    """Group ``tensors`` by parameter. Raises `EditError` for a key that is not a LoRA's or names an unknown layer."""
    layers: dict[str, _Layer] = {}
    strange: list[str] = []
    adapters: set[str] = set()
    for key, tensor in tensors.items():
        part, layer, adapter = _split(key)
        if not part:
            strange.append(key)
            continue
        component, spelled, parameter = _place(layer)
        if not parameter:
            what = "which names no layer that mu knows"
            raise EditError(f"{titled(name)} holds {key}, {what}: use a LoRA for an architecture that mu supports")
        found = layers.setdefault(parameter, _Layer(component, spelled, {}))
        if part in found.parts or found.spelled != spelled:
            raise EditError(f"{titled(name)} holds {parameter} twice, the second time as {key}: keep one of the two")
        found.parts[part] = tensor
        if adapter:
            adapters.add(adapter)
    if len(adapters) > 1:
        raise EditError(
            f"{titled(name)} holds several adapters ({', '.join(sorted(adapters))}): save each to its own file"
        )
    for key in strange:
        if kind := _other_kind(key):
            raise EditError(
                f"{titled(name)} is a {kind} file ({key}), which mu does not read: convert it to a LoRA or "
                "merge it first"
            )
    if not layers:
        seen = f" (it holds {next(iter(tensors))})" if tensors else ""
        raise EditError(
            f"{titled(name)} holds neither mu's metadata nor LoRA or SPM factors{seen}: name an edit's file"
        )
    if strange:
        raise EditError(
            f"{titled(name)} holds {strange[0]}, which is not part of a LoRA that mu knows: merge the file with "
            "its own tool"
        )
    return layers


def holds_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these ``names`` are a LoRA's, or of a kind of adapter that `read_lora` names."""
    return any(_split(name)[0] or _other_kind(name) for name in names)


def _split(key: str) -> tuple[str, str, str | None]:
    """Part, layer, and PEFT's adapter name if the key has one. The part is empty if the key is not a LoRA's."""
    for part, pattern in _PARTS.items():
        if found := pattern.fullmatch(key):
            return part, found["layer"], found.groupdict().get("adapter")
    return "", key, None


def _other_kind(key: str) -> str:
    pieces = key.split(".")
    for mark, kind in _OTHER_KINDS.items():
        if any(piece == mark or (mark[-1] == "_" and piece.startswith(mark)) for piece in pieces):
            lora = mark != "bias" or "lora" in key  # a plain bias belongs to a whole model
            return kind if lora else ""
    return ""


# -- tensors: the layer ------------------------------------------------------------------------------------------------

# Wrapper prefixes: before the component, or between the component and the layer.
_WRAPPERS = ("base_model.model.", "module.", "model.")
_COMPONENTS = {
    "unet.": "unet", "diffusion_model.": "unet", "lora_unet_": "unet", "lycoris_": "unet",
    "text_encoder.": "text_encoder", "te.": "text_encoder", "te1.": "text_encoder", "clip_l.": "text_encoder",
    "text_encoders.clip_l.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    "text_encoder_2.": "text_encoder_2", "te2.": "text_encoder_2", "clip_g.": "text_encoder_2",
    "text_encoders.clip_g.": "text_encoder_2", "lora_te2_": "text_encoder_2",
    "vision_model.": "vision_model", "vision_tower.": "vision_model", "language_model.": "language_model",
    "multi_modal_projector.": "projector", "projector.": "projector",
}  # fmt: skip
# Levels that some versions of a library have, or that SD-WebUI adds.
_LEVELS = {
    "text_encoder": r"(?:0_)?(?:transformer_)?(?:text_model_)?",
    "text_encoder_2": r"(?:transformer_)?(?:text_model_)?",
    "vision_model": r"(?:vision_model_)?",
    "language_model": r"(?:model_)?",
}
_WITHOUT_PREFIX = ("unet", "text_encoder", "projections")


def parameter_of(layer: str) -> str:
    """The parameter that a layer's name in a file refers to, empty if no known model has it.

    ``lora_unet_mid_block_attentions_0_proj_in``, ``base_model.model.mid_block.attentions.0.proj_in`` and
    ``lora_unet_middle_block_1_proj_in`` (as SGM names it) are all ``unet.mid_block.attentions.0.proj_in.weight``.
    """
    return _place(layer)[2]


def _place(layer: str) -> tuple[str, str, str]:
    """Component, layer name without it as the file spells it, and parameter (empty if unknown)."""
    rest = _unwrapped(layer)
    prefix = next((prefix for prefix in _COMPONENTS if rest.startswith(prefix)), "")
    rest = _unwrapped(rest.removeprefix(prefix))
    for component in (_COMPONENTS[prefix],) if prefix else _WITHOUT_PREFIX:
        if module := _module(component, rest):
            path = module if component == "projections" else f"{component}.{module}"
            return component, rest, f"{path}.weight"
    return "", rest, ""


def _unwrapped(name: str) -> str:
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), ""):
        name = name.removeprefix(wrapper)
    return name


def _module(component: str, spelled: str) -> str:
    """The module path of a layer in its component, empty if the component has no such layer."""
    name = spelled.replace(".", "_").replace("_processor_", "_")  # diffusers' attention processors
    if component == "unet" and name in _sgm_modules():
        return _sgm_modules()[name]
    name = re.sub("^" + _LEVELS.get(component, ""), "", name)
    module = _modules(component).get(_open(name), "")
    numbers = iter(re.findall(r"\d+", name))
    return re.sub("#", lambda _: next(numbers), module)


def _open(name: str) -> str:
    """``down_blocks.1.attentions.0`` -> ``down_blocks.#.attentions.#``."""
    return re.sub(r"\d+", "#", name)


@cache
def _modules(component: str) -> dict[str, str]:
    """Map underscore names to module paths of the layers that can have factors. Numbers are left open in both."""
    known = {}
    for module in map(_open, _module_names(component)):
        name = re.sub("^" + _LEVELS.get(component, ""), "", module.replace(".", "_"))
        known[name] = module
        for ending, old in (("_to_out_#", "_to_out"), *_OLD_TEXT.items()):
            if name.endswith(ending):
                known[name.removesuffix(ending) + old] = re.sub(r"to_out\.#$", "to_out.0", module)
    return known


# The first LoRA trainers of diffusers gave text encoder layers the names of UNet layers.
_OLD_TEXT = {f"attn_{layer}_proj": f"attn_to_{layer}" for layer in ("q", "k", "v", "out")}


def _module_names(component: str) -> Iterator[str]:
    """Names of the published models' linear and convolutional layers in the installed libraries."""
    from mu.models.formats.architectures import stable_diffusion_1, stable_diffusion_xl

    if component == "unet":
        for config in (stable_diffusion_1()["unet"], {**stable_diffusion_xl()["unet"], "time_cond_proj_dim": 1}):
            yield from _layer_names(config)
    elif component in ("text_encoder", "text_encoder_2"):
        yield from _layer_names(stable_diffusion_xl()[component])
    elif component == "projections":
        yield from ("text_projection", "visual_projection")
    elif component == "projector":
        yield from ("linear_1", "linear_2")
    else:
        kind = {"vision_model": "CLIPVisionModel", "language_model": "LlamaModel"}[component]
        yield from _layer_names({"architectures": [kind], "num_hidden_layers": 1})


def _layer_names(config: Mapping[str, Any]) -> Iterator[str]:
    from mu.models.formats.compvis import blueprint

    for name, module in blueprint(config).named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            yield name


@cache
def _sgm_modules() -> dict[str, str]:
    """Map the names in Stability's code: ``input_blocks_4_1_proj_in`` -> ``down_blocks.1.attentions.0.proj_in``.

    SD 1.x, SD 2.x and SDXL number their blocks alike. So one table holds all, and each name means one layer.
    """
    from mu.models.formats.architectures import stable_diffusion_1
    from mu.models.formats.compvis import kohya_module_names, sdxl_module_names

    tables = (kohya_module_names(stable_diffusion_1()["unet"]), sdxl_module_names())
    return {place.replace(".", "_"): module for table in tables for module, place in table.items()}


# -- metadata ----------------------------------------------------------------------------------------------------------

_DIFFUSERS_CONFIG, _PEFT_CONFIG = "lora_adapter_metadata", "adapter_config.json"
# Notes of trainers and other programs. They do not change the meaning of the factors.
_NOTES = {
    "format", "prompts", "rank", "name", "title", "author", "description", "license", "tags", "date", "created",
    "notes", "software", "version", "training_info", "hash", "prompt", "workflow", "trigger_words", "base_model",
}  # fmt: skip
_NOTE_PREFIXES = ("ss_", "sshs_", "modelspec.", "mu_", "ot_", "civitai")
_PEFT_USED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
# Which layers were trained, and how. The tensors already show the layers.
_PEFT_NOTES = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
    "megatron_core",
    "qalora_group_size", "eva_config", "loftq_config", "corda_config", "lora_ga_config", "runtime_config",
}  # fmt: skip
_PEFT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # other initialisations change the base weights, so the published base does not fit
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mini_lora"),
}


@dataclass(frozen=True)
class _Scales:
    """The scale in the metadata: PEFT's settings for each component (``""`` for all), or SPM's alpha."""

    settings: Mapping[str, Mapping[str, Any]]
    spm_alpha: float
    name: str

    @classmethod
    def of(cls, metadata: Mapping[str, str], path: Path, name: str) -> _Scales:
        """Raise `EditError` for the first metadata key or PEFT setting that may change the scale in an unknown way."""
        for key in metadata:
            if key not in _NOTES | {_DIFFUSERS_CONFIG, "alpha"} and not key.startswith(_NOTE_PREFIXES):
                raise EditError(
                    f"the metadata of {titled(name)} holds {quoted(key)}, which mu does not know and which may set the "
                    "scale: if it does not, save the tensors without it"
                )
        settings: dict[str, dict[str, Any]] = {}
        beside = path.parent / _PEFT_CONFIG
        if path.stem == "adapter_model" and beside.is_file():
            settings[""] = _json(read_text(beside, error=EditError), dict, str(beside))
        if _DIFFUSERS_CONFIG in metadata:
            told = _json(metadata[_DIFFUSERS_CONFIG], dict, f"{_DIFFUSERS_CONFIG} of {titled(name)}")
            for key, value in told.items():
                component, _, setting = key.rpartition(".")
                settings.setdefault(component, {})[setting] = value
        for component, each in settings.items():
            _check_settings(each, component, name)
        return cls(settings, _number(metadata.get("alpha", 0), "alpha", name), name)

    def alpha(self, layer: _Layer, rank: int) -> float:
        """``scale * rank`` according to the metadata; 0 if the metadata does not state it."""
        settings = self.settings.get(layer.component, self.settings.get(""))
        if settings is None:
            return self.spm_alpha
        r = _number(_for_layer(settings, "rank_pattern", layer, settings.get("r", 8)), "r", self.name)
        if r != rank:
            raise EditError(
                f"{layer.spelled} has rank {rank} in {titled(self.name)}, but its settings say {r:g}: copy the "
                "file again"
            )
        told = _for_layer(settings, "alpha_pattern", layer, settings.get("lora_alpha", 8))
        alpha = _number(told, "lora_alpha", self.name)
        if alpha == 0:
            raise EditError(
                f"{layer.spelled} has lora_alpha 0 in {titled(self.name)}, so it changes nothing: leave the file out"
            )
        return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _for_layer(settings: Mapping[str, Any], patterns: str, layer: _Layer, default: Any) -> Any:
    """The value of the first pattern that matches the end of the layer's name, as in PEFT."""
    for spelled in (layer.spelled, layer.spelled.removeprefix("text_model.")):
        for pattern, value in (settings.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", spelled):
                return value
    return default


def _check_settings(settings: Mapping[str, Any], component: str, name: str) -> None:
    if component not in ("", *_COMPONENTS.values()):
        first = next(iter(settings))
        raise EditError(
            f"the metadata of {titled(name)} holds {component}.{first}, of a component that mu does not know: "
            "use a LoRA for an architecture that mu supports"
        )
    for key, value in settings.items():
        off = value in (None, False, "", [], {})
        if not (off or key in _PEFT_USED | _PEFT_NOTES or value in _PEFT_NEUTRAL.get(key, ())):
            told = f"{key} = {json.dumps(value)[:60]}"
            raise EditError(f"{titled(name)} was made with {told}, so it is not a plain LoRA: merge it with PEFT first")
    for key in ("rank_pattern", "alpha_pattern"):
        try:
            for pattern in dict(settings.get(key) or {}):
                re.compile(pattern)
                if _takes_long(pattern):
                    raise EditError(
                        f"{key} of {titled(name)} holds the pattern {quoted(pattern)}, which may take years to match: "
                        "name the layers"
                    )
        except (TypeError, ValueError, OverflowError, RecursionError, re.error):
            what = "not a mapping from layer patterns to numbers"
            raise EditError(f"{key} of {titled(name)} is {what}: make or copy the file again") from None


def _takes_long(pattern: str) -> bool:
    """Whether matching ``pattern`` may take time exponential in a name's length, or a high power of it: it repeats a
    group, or holds more than three unbounded repetitions."""
    plain = re.sub(r"\[.*?\]", "x", re.sub(r"\\.", "x", pattern))
    return bool(re.search(r"\)[*+{]", plain)) or len(re.findall(r"[*+]|\{\d*,\d*\}", plain)) > 3


def _number(value: Any, what: str, name: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise EditError(
            f"{what} of {titled(name)} is {quoted(value)}, not a finite number: make or copy the file again"
        )
    return number


# -- writing -----------------------------------------------------------------------------------------------------------

_KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}


def kohya_tensors(
    edit: LowRankEdit, modules: Mapping[str, str] | None = None, *, two_encoders: bool = False
) -> dict[str, Tensor]:
    """Kohya keys, as SD-WebUI and ComfyUI read them. ``modules`` maps UNet module paths to other names (SDXL's).

    The first text encoder is ``te1`` with ``two_encoders``, else ``te``.
    """
    prefixes = _KOHYA_PREFIX | ({"text_encoder": "lora_te1_"} if two_encoders else {})
    named = {}
    for name, factors in edit.factors.items():
        component, _, path = name.removesuffix(".weight").partition(".")
        if component not in prefixes:
            raise EditError(
                f"a LoRA file holds edits of the UNet and text encoders only, not of {name}: export a merged model"
            )
        if component == "unet" and modules:
            path = modules[path]
        elif component != "unet" and not path.startswith(("text_projection", "text_model.")):
            path = f"text_model.{path}"
        key = prefixes[component] + path.replace(".", "_")
        named[f"{key}.lora_down.weight"] = factors.down.detach()
        named[f"{key}.lora_up.weight"] = factors.up.detach()
        named[f"{key}.alpha"] = torch.tensor(factors.alpha)
    return named


def kohya_metadata(edit: LowRankEdit) -> dict[str, str]:
    rank = max(factors.rank for factors in edit.factors.values())
    header = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    return {**header, **edit_metadata(edit)}


def peft_tensors(edit: LowRankEdit) -> dict[str, Tensor]:
    """Diffusers/PEFT keys. The format has no alpha, so the scale alpha / r is multiplied into ``lora_B``."""
    named = {}
    for name, factors in edit.factors.items():
        layer = name.removesuffix(".weight")
        named[f"{layer}.lora_A.weight"] = factors.down.detach()
        named[f"{layer}.lora_B.weight"] = factors.up.detach() * factors.scale
    return named


def spm_tensors(edit: LowRankEdit) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of ``edit`` in SPM's file format: kohya keys and three legacy metadata keys."""
    first = next(iter(edit.factors.values()))
    legacy = {"prompts": ",".join(edit.info.concepts), "rank": str(first.rank), "alpha": str(first.alpha)}
    return kohya_tensors(edit), {**legacy, **edit_metadata(edit)}


def edit_metadata(edit: Edit) -> dict[str, str]:
    """The edit's origin, as metadata for the formats of other tools."""
    info = edit.info
    facts: dict[str, Any] = {"mu_concepts": list(info.concepts), "mu_method": info.method, "mu_base": info.base}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
