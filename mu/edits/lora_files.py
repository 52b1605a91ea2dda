"""LoRA files of other tools, read and written: kohya, LyCORIS' plain LoRA, diffusers (old and new), PEFT and SPM.

Reading accounts for every tensor: it is used, or an `EditError`. A key consists of a prefix and a layer
(`mu.edits.lora_names`), and an ending (the part). The metadata are read in `mu.edits.lora_scales`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mu.core.errors import EditError, titled
from mu.edits.edit import Edit, EditInfo
from mu.edits.lora_names import place_of
from mu.edits.lora_scales import Scales, json_of
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
    scales = Scales.of(metadata, path, name)
    if not scales.settings and any("base_model.model." in key for key in tensors):
        log.warning("%r is a PEFT file without its adapter_config.json, which holds alpha: alpha = rank is used", name)
    factors = {parameter: layer.factors(scales, name) for parameter, layer in layers.items()}
    return LowRankEdit(factors, EditInfo(IMPORTED, _concepts(metadata, name), config={"file": name, **metadata}))


def _concepts(metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Read the concepts from the metadata. SPM's ``prompts`` joins concepts by commas, so a comma always separates."""
    if "mu_concepts" in metadata:
        return tuple(map(str, json_of(metadata["mu_concepts"], list, f"mu_concepts of {titled(name)}")))
    return tuple(part.strip() for part in metadata.get("prompts", "").split(",") if part.strip())


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

    def factors(self, scales: Scales, name: str) -> Factors:
        down, up = (self._factor(part, name) for part in ("down", "up"))
        rank = down.shape[:1].numel()
        return Factors(down, up, self._alpha(name) or scales.alpha(self.component, self.spelled, rank) or float(rank))

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
        component, spelled, parameter = place_of(layer)
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
