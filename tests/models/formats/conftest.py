"""Folders of open_clip's hub layout, and the models that they give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

import mu
from mu.models.clip import ClipModel


def open_clip_folder(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def loaded(place: Path, **options: Any) -> ClipModel:
    found = mu.load(place, device="cpu", **options)
    assert isinstance(found, ClipModel)
    return found
