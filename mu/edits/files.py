"""Read edit files: mu's own format, and those of other tools through `mu.edits.lora_files`."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from mu.core.documents import parse_json
from mu.core.errors import ConfigError, DataError, EditError, ModelError, as_edit
from mu.core.records import wrong
from mu.edits.edit import FORMAT, Edit, EditInfo
from mu.edits.joint import JointEdit
from mu.edits.lora_files import holds_lora, read_lora
from mu.edits.low_rank import LowRankEdit
from mu.edits.places import edit_file
from mu.edits.weights import WeightEdit
from mu.models.formats.checkpoint import read_metadata, read_state_dict
from mu.models.parameters import comparable

_KINDS: dict[str, type[LowRankEdit] | type[WeightEdit]] = {
    cls.kind: cls for cls in (LowRankEdit, JointEdit, WeightEdit)
}


def open_edit(path: Path | str) -> Edit:
    """Open an edit's file, a LoRA or SPM file of another tool, or a folder of a run, of PEFT or of diffusers.

    Raises `EditError` if the file is missing or truncated, holds no edit, or holds numbers that are not finite.
    """
    path = edit_file(Path(path))
    tensors, metadata = _read(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise EditError(f"{path} is not finite in {name}, so its training diverged: use an earlier save of it")
    if not any(key.startswith("mu.") for key in metadata):
        if not holds_lora(tensors) and any(name.endswith((".weight", ".bias")) for name in tensors):
            raise EditError(f"{path} holds weights ({next(iter(tensors))}, ...) and no edit: {as_edit(path)}")
        return _within(read_lora(tensors, metadata, path), path)
    try:
        facts = {
            key.removeprefix("mu."): parse_json(value, key) for key, value in metadata.items() if key.startswith("mu.")
        }
        if facts["format"] > FORMAT:
            raise EditError(
                f"{path} has format {facts['format']}, newer than this version of mu knows ({FORMAT}): upgrade mu"
            )
        kind = _KINDS[facts.pop("kind")]
        info = EditInfo.from_json(facts)
    except ValidationError as error:
        place, what = wrong(error)
        raise EditError(f"the metadata of {path} is wrong in mu.{place}: {what}: make or copy it again") from None
    except (KeyError, TypeError, ValueError, ConfigError, DataError) as error:
        raise EditError(f"the metadata of {path} is not that of an edit ({error}): make or copy it again") from None
    return _within(kind.from_tensors(tensors, info), path)


def _within(edit: Edit, path: Path) -> Edit:
    """``edit``, if no product of its factors can overflow; else `EditError`."""
    for name, factors in edit.factors.items() if isinstance(edit, LowRankEdit) else ():
        if factors.bound > torch.finfo(torch.float32).max:
            raise EditError(
                f"{path} has factors of {name} whose product can overflow, so its training diverged: use an earlier "
                "save of it"
            )
    return edit


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file or a pickle. A pickle has no metadata, and its code is not run."""
    try:
        return {name: comparable(tensor) for name, tensor in read_state_dict(path).items()}, read_metadata(path)
    except ModelError as error:
        raise EditError(str(error)) from None
