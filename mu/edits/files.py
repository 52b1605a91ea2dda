"""Edit files: ours, and the SPM and LoRA files of other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mu.core.errors import ConfigError, EditError
from mu.edits.edit import FORMAT, Edit, EditInfo
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.weights import WeightEdit

_KINDS: dict[str, type[LowRankEdit] | type[WeightEdit]] = {cls.kind: cls for cls in (LowRankEdit, WeightEdit)}


def open_edit(path: Path | str) -> Edit:
    """Open an edit's file, or a run folder's; also SPM files and LoRA files made elsewhere (kohya, diffusers/PEFT).

    Raises `EditError` for a file that is missing, truncated or holds no edit.
    """
    path = _file(Path(path))
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EditError(f"{path} is damaged or no safetensors file ({error}): make or copy it again") from None
    if not any(key.startswith("mu.") for key in metadata):
        return foreign(tensors, metadata, path.stem)
    try:
        facts = {key.removeprefix("mu."): json.loads(value) for key, value in metadata.items() if key.startswith("mu.")}
        if facts["format"] > FORMAT:
            raise EditError(f"{path} has format {facts['format']}, newer than this version of mu knows ({FORMAT}): upgrade mu")
        kind = _KINDS[facts.pop("kind")]
        info = EditInfo.from_json(facts)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise EditError(f"the metadata of {path} is not that of an edit ({error})") from None
    return kind.from_tensors(tensors, info)


def _file(path: Path) -> Path:
    if path.is_dir():
        for candidate in (path / "edit.safetensors", path / f"{path.name}_last.safetensors"):
            if candidate.exists():
                return candidate
        raise EditError(f"{path} holds neither edit.safetensors nor {path.name}_last.safetensors")
    if not path.exists():
        raise EditError(f"edit file {path} does not exist")
    return path


# -- files of other tools ----------------------------------------------------------------------------------------------

# Names with underscores inside; all other underscores of a kohya key are dots.
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks", "proj_in", "proj_out", "to_q", "to_k",
    "to_v", "to_out", "time_emb_proj", "time_embedding", "add_embedding", "conv_in", "conv_out", "conv_shortcut", "linear_1", "linear_2",
    "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection",
)  # fmt: skip
# The heads of SGM's module names (those of SDXL's own repository), none of which heads a name in diffusers.
_SGM = re.compile(r"lora_unet_(?:(?:input|output)_blocks_\d|middle_block_\d|time_embed_\d|label_emb_\d|out_\d)")
_PREFIXES = {"lora_unet_": "unet.", "lora_te_": "text_encoder.", "lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2."}


# What other adapters are told by. Left out, the rest of such a file would be another edit than the one it was made for.
_OTHER_KINDS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lora_mid": "LoCon (Tucker factors)", "hada_": "LoHa", "lokr_": "LoKr",
    "oft_": "OFT", "diff": "full-rank shift", "diff_b": "full-rank shift",
}  # fmt: skip


def foreign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> LowRankEdit:
    """An edit from the tensors of a kohya, SPM or diffusers/PEFT file.

    Raises `EditError` where they are none of these, and where the file also holds what a LoRA does not (DoRA, LoHa, ...).
    """
    layers: dict[str, dict[str, Tensor]] = {}
    sgm = _sgm_layers() if any(_SGM.match(key) for key in tensors) else {}
    for key, tensor in tensors.items():
        layer, part = _split(key)
        if part:
            if _SGM.match(layer) and layer not in sgm:
                raise EditError(f"{name!r} holds {layer}, which names no layer of SDXL: it was made for another architecture")
            layers.setdefault(sgm.get(layer) or dotted(layer), {})[part] = tensor
        elif kind := _other_kind(key):
            raise EditError(
                f"{name!r} is a {kind} file ({key}), which mu does not read: convert it to a LoRA or merge it first"
            )
    factors = {}
    for layer, parts in layers.items():
        if not {"down", "up"} <= parts.keys():
            raise EditError(
                f"{layer} has {' and '.join(parts)} but not both factors: {name!r} is damaged or of an unknown kind"
            )
        rank = parts["down"].shape[:1].numel()
        alpha = float(parts["alpha"]) if "alpha" in parts else 0.0
        factors[f"{layer}.weight"] = Factors(parts["down"], parts["up"], alpha or float(rank))
    if not factors:
        raise EditError(f"{name!r} holds no edit: neither mu's own metadata nor LoRA or SPM factors")
    return LowRankEdit(factors, EditInfo(method="imported", concepts=_concepts(metadata, name), config=dict(metadata)))


def _concepts(metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Of an SPM file's metadata; its comma-joined ``prompts`` cannot tell a comma in a concept from two concepts."""
    if "mu_concepts" in metadata:
        return tuple(json.loads(metadata["mu_concepts"]))
    return tuple(part.strip() for part in metadata.get("prompts", "").split(",") if part.strip()) or (name,)


def _split(key: str) -> tuple[str, str]:
    for ending, part in (
        (".lora_down.weight", "down"), (".lora_up.weight", "up"), (".lora_A.weight", "down"), (".lora_B.weight", "up"),
        (".lora.down.weight", "down"), (".lora.up.weight", "up"), (".alpha", "alpha"),
    ):  # fmt: skip
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return key, ""


def _other_kind(key: str) -> str:
    parts = key.split(".")
    return next((kind for part in parts for mark, kind in _OTHER_KINDS.items() if part == mark or (mark[-1] == "_" and part.startswith(mark))), "")  # fmt: skip


def _sgm_layers() -> dict[str, str]:
    """``lora_unet_input_blocks_4_1_proj_in`` -> ``unet.down_blocks.1.attentions.0.proj_in``: kohya names SDXL's layers so."""
    from mu.models.formats.compvis import sdxl_module_names

    return {f"lora_unet_{place.replace('.', '_')}": f"unet.{module}" for module, place in sdxl_module_names().items()}


def dotted(layer: str) -> str:
    """``lora_unet_down_blocks_0_..._to_q`` -> ``unet.down_blocks.0....to_q``; dotted names stay."""
    prefix = next((p for p in _PREFIXES if layer.startswith(p)), None)
    if prefix is None:
        return layer.replace("text_encoder.text_model.", "text_encoder.")
    rest = layer.removeprefix(prefix)
    kept = re.split("(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + ")", rest)
    path = "".join(piece if k % 2 else piece.replace("_", ".") for k, piece in enumerate(kept))
    # transformers keeps the level ``text_model`` in the encoder with a projection, SDXL's second, only
    return _PREFIXES[prefix] + (path if prefix == "lora_te2_" else path.removeprefix("text_model."))


def spm_tensors(edit: LowRankEdit) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of ``edit`` in the file format of SPM (kohya key names, three legacy metadata keys)."""
    from mu.edits.export import kohya_tensors

    first = next(iter(edit.factors.values()))
    legacy = {"prompts": ",".join(edit.info.concepts), "rank": str(first.rank), "alpha": str(first.alpha)}
    return kohya_tensors(edit), {**legacy, **edit_metadata(edit)}


def edit_metadata(edit: Edit) -> dict[str, str]:
    """What a foreign format can carry of where an edit comes from."""
    facts: dict[str, Any] = {"mu_concepts": list(edit.info.concepts), "mu_method": edit.info.method, "mu_base": edit.info.base}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
