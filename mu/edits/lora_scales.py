"""The scale of the factors in a LoRA file, as its metadata states it: PEFT's settings, or SPM's alpha.

Every metadata key is used, known not to matter, or an `EditError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mu.core.documents import parse_json
from mu.core.errors import EditError, quoted, titled
from mu.core.files import read_text
from mu.edits.lora_names import COMPONENTS

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
class Scales:
    """The scale in the metadata: PEFT's settings for each component (``""`` for all), or SPM's alpha."""

    settings: Mapping[str, Mapping[str, Any]]
    spm_alpha: float
    name: str

    @classmethod
    def of(cls, metadata: Mapping[str, str], path: Path, name: str) -> Scales:
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
            settings[""] = json_of(read_text(beside, error=EditError), dict, str(beside))
        if _DIFFUSERS_CONFIG in metadata:
            told = json_of(metadata[_DIFFUSERS_CONFIG], dict, f"{_DIFFUSERS_CONFIG} of {titled(name)}")
            for key, value in told.items():
                component, _, setting = key.rpartition(".")
                settings.setdefault(component, {})[setting] = value
        for component, each in settings.items():
            _check_settings(each, component, name)
        return cls(settings, _number(metadata.get("alpha", 0), "alpha", name), name)

    def alpha(self, component: str, spelled: str, rank: int) -> float:
        """``scale * rank`` of the layer that the file spells so, without its component; 0 if nothing states it."""
        settings = self.settings.get(component, self.settings.get(""))
        if settings is None:
            return self.spm_alpha
        r = _number(_for_layer(settings, "rank_pattern", spelled, settings.get("r", 8)), "r", self.name)
        if r != rank:
            raise EditError(
                f"{spelled} has rank {rank} in {titled(self.name)}, but its settings say {r:g}: copy the file again"
            )
        told = _for_layer(settings, "alpha_pattern", spelled, settings.get("lora_alpha", 8))
        alpha = _number(told, "lora_alpha", self.name)
        if alpha == 0:
            raise EditError(
                f"{spelled} has lora_alpha 0 in {titled(self.name)}, so it changes nothing: leave the file out"
            )
        return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _for_layer(settings: Mapping[str, Any], patterns: str, spelled: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the layer's name, as in PEFT."""
    for name in (spelled, spelled.removeprefix("text_model.")):
        for pattern, value in (settings.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
    return default


def _check_settings(settings: Mapping[str, Any], component: str, name: str) -> None:
    if component not in ("", *COMPONENTS.values()):
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


def json_of(text: str, kind: type, what: str) -> Any:
    content = parse_json(text, what, error=EditError)
    if not isinstance(content, kind):
        raise EditError(f"{what} is not the expected kind of JSON: make or copy the file again")
    return content
