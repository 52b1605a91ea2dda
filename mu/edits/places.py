"""Where an edit lies: its file, or the folder of a run, of PEFT or of diffusers. Imports no library."""

from __future__ import annotations

from pathlib import Path

from mu.core.errors import EditError, as_edit
from mu.core.files import check_regular
from mu.models.places import PIPELINE, TRANSFORMERS_CONFIG

ADAPTER_FILES = tuple(
    name + ending for ending in (".safetensors", ".bin") for name in ("adapter_model", "pytorch_lora_weights")
)
"""File names that PEFT and diffusers give to every LoRA, each in its own folder."""


def edit_file(path: Path) -> Path:
    """The file of the edit that is named by ``path``, a file or a folder. Raises `EditError` if there is none."""
    if path.is_dir():
        names = ("edit.safetensors", f"{path.name}_last.safetensors", *ADAPTER_FILES)
        found = [name for name in names if (path / name).exists()]
        if found and found[0] in ADAPTER_FILES and {Path(name).stem for name in found} != {Path(found[0]).stem}:
            raise EditError(f"{path} holds {' and '.join(found)}, which may differ: name the file of one")
        if found:
            return edit_file(path / found[0])
        if any((path / name).exists() for name in (PIPELINE, TRANSFORMERS_CONFIG, "unet", "text_encoder")):
            raise EditError(f"{path} is a model and not an edit: if its weights are edited, {as_edit(path)}")
        raise EditError(f"{path} holds neither {', '.join(names[:-1])} nor {names[-1]}: name the edit's file")
    if not path.exists():
        raise EditError(f"edit file {path} does not exist: check the path")
    check_regular(path, "edit file", error=EditError)
    return path
