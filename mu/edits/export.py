"""Edits in the formats of other tools. These formats have no gates, so edits have one strength for all prompts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mu.core.errors import EditError, OutputError
from mu.core.files import atomic_path, writing
from mu.edits.bank import Bank
from mu.edits.edit import shifted
from mu.edits.lora_files import edit_metadata, kohya_metadata, kohya_tensors, peft_tensors
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.tensor_file import write_tensors
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.places import PIPELINE, TRANSFORMERS_CONFIG
from mu.models.quiet import quiet_libraries
from mu.models.vision_language import VisionLanguageModel


def joined(bank: Bank, strengths: Sequence[float] | None = None) -> LowRankEdit:
    """Join the low-rank edits that are on. Their ranks are concatenated, so the sum is exact.

    Raises `EditError` for dense edits.
    """
    sizes = bank.strengths(strengths)
    edits = [edit for edit in bank.on if isinstance(edit, LowRankEdit)]
    if len(edits) != len(bank.on) or not edits:
        raise EditError(
            "a LoRA file holds low-rank edits only: export a merged model (diffusers, unet, compvis) instead"
        )
    if len(edits) == 1 and sizes == [1.0]:
        return edits[0]
    factors = {}
    for name in dict.fromkeys(name for edit in edits for name in edit.factors):
        parts = [(edit.factors[name], size) for edit, size in zip(edits, sizes, strict=True) if name in edit.factors]
        down = torch.cat([part.down.detach().float() for part, _ in parts])
        up = torch.cat([part.up.detach().float() * part.scale * size for part, size in parts], dim=1)
        factors[name] = Factors(down, up, float(len(down)))
    concepts = tuple(concept for edit in edits for concept in edit.info.concepts)
    return LowRankEdit(
        factors, type(edits[0].info)(method=edits[0].info.method, concepts=concepts, base=bank.model.name)
    )


def _kohya(edit: LowRankEdit, model: DiffusionModel, path: Path) -> None:
    modules = None
    if len(model.text) > 1:
        from mu.models.formats.compvis import kohya_module_names, sdxl_module_names

        # WebUI and kohya use the SGM names of SDXL's layers. For any other UNet they would point at different layers.
        named = kohya_module_names(model.backbone.config)
        modules = named if named.items() <= sdxl_module_names().items() else None
    two = "text_encoder_2" in model.components
    write_tensors(path, kohya_tensors(edit, modules, two_encoders=two), kohya_metadata(edit))


def _peft(edit: LowRankEdit, model: DiffusionModel, path: Path) -> None:
    write_tensors(path, peft_tensors(edit), {"format": "pt", **edit_metadata(edit)})


def _diffusers(model: DiffusionModel, path: Path) -> None:
    with _new_folder(path) as partial:
        model.pipeline.save_pretrained(partial)


def _transformers(model: ClipModel | VisionLanguageModel, path: Path) -> None:
    with _new_folder(path) as partial:
        for part in (model.model, model.tokenizer, model.processor):
            part.save_pretrained(partial)


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to. It replaces ``path`` once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        with quiet_libraries():
            yield partial
        partial.chmod(0o755)
        if path.is_dir():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unet(model: DiffusionModel, path: Path) -> None:
    _state(model.backbone.state_dict(), path)


def _compvis(model: DiffusionModel, path: Path) -> None:
    from mu.models.formats.single_file import to_compvis

    tensors = to_compvis(model.pipeline)
    _state(tensors if path.suffix == ".safetensors" else {"state_dict": tensors}, path)


def _state(content: Mapping, path: Path) -> None:
    if path.suffix == ".safetensors":
        write_tensors(path, content, {"format": "pt"})
    elif path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        with atomic_path(path) as partial, partial.open("wb") as file:
            torch.save(dict(content), file)  # given a path, it would store the partial file's random name inside
    else:
        raise OutputError(f"{path} has an unknown suffix: use .safetensors, .pt, .pth, .bin or .ckpt")


_LORA: dict[str, Callable[[LowRankEdit, Any, Path], None]] = {"kohya": _kohya, "peft": _peft}
_MERGED: dict[str, Callable[[Any, Path], None]] = {
    "diffusers": _diffusers,
    "unet": _unet,
    "compvis": _compvis,
    "transformers": _transformers,
}
FORMATS = (*_LORA, *_MERGED)
_FOLDERS = {"diffusers": PIPELINE, "transformers": TRANSFORMERS_CONFIG}
"""Formats that are folders, and the file that identifies each."""


def export(
    bank: Bank, path: Path | str, form: str, *, strengths: Sequence[float] | None = None, overwrite: bool = False
) -> Path:
    """Write the edits of ``bank`` that are on, in one of `FORMATS`, each at its strength (default: its own).

    ``kohya``, ``peft``: one LoRA ``.safetensors``. ``diffusers``: a folder with the merged model, loaded by
    ``DiffusionPipeline.from_pretrained`` alone. ``unet``: the merged UNet's state dict. ``compvis``: one merged file.
    ``transformers``, for a CLIP or a LLaVA: a folder with the merged model, loaded by transformers alone. To write a
    merged model, the edits are applied to the base model itself and then taken off; the model is not copied.
    Raises `OutputError` for an existing ``path`` without ``overwrite``. Raises `EditError` for a format that does not
    fit the kind of model.
    """
    path, model = Path(path), bank.model
    if form not in FORMATS:
        raise OutputError(f"unknown format {form!r}; choose {', '.join(FORMATS)}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already: choose another path or pass --overwrite")
    if path.is_dir() and not (form in _FOLDERS and (path / _FOLDERS[form]).exists()):
        raise OutputError(f"{path} is a folder without a {form} model and is not replaced: choose another path")
    if isinstance(model, DiffusionModel) == (form == "transformers"):
        what = (
            "a diffusion model: choose diffusers"
            if form == "transformers"
            else "not a diffusion model: choose transformers"
        )
        raise EditError(f"format {form} cannot hold {model.name!r}, which is {what}")
    with writing(path):
        if form in _LORA:
            _LORA[form](joined(bank, strengths), model, path)
        else:
            with shifted(model, bank.deltas(strengths)):
                _MERGED[form](model, path)
    return path
