"""Models by hub id: what a repository holds says how it is loaded."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from mu.core.errors import ModelError, nearest
from mu.models.places import EMBEDDED, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, PIPELINE, SINGLE_FILES, TRANSFORMERS_CONFIG


def hub_folder(name: str) -> Path | None:
    """The hub's repository ``name`` as a folder, with what transformers or open_clip read of it; None for a diffusers pipeline,
    whose loader knows which files it wants. Where the hub does not answer, what the local cache holds.

    Raises `ModelError` for a name that is no hub id, and for what is neither cached nor to be had.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        if Path(name).is_file():
            raise ModelError(f"{name!r} is no model: a file of weights ends in {', '.join(sorted(SINGLE_FILES))}")
        what = "does not exist" if ("/" in name or "\\" in name) else "is no model, file or folder that exists here"
        raise ModelError(f"{name!r} {what}.{nearest(name, EMBEDDED)}")
    try:
        files = [file.rfilename for file in HfApi().model_info(name, timeout=10).siblings or ()]
    except Exception as error:
        with contextlib.suppress(Exception):
            cached = Path(snapshot_download(name, local_files_only=True))
            if any((cached / file).exists() for file in (PIPELINE, TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG)):
                return cached
        raise not_there(name, error) from None
    try:
        return None if PIPELINE in files else Path(snapshot_download(name, allow_patterns=_needed(files)))
    except Exception as error:
        raise not_there(name, error) from None


def _needed(files: Sequence[str]) -> list[str]:
    """Repositories hold the same weights for several libraries: one of them is enough."""
    top = [file for file in files if "/" not in file]
    forms = ("model*.safetensors", "pytorch_model*.bin") if TRANSFORMERS_CONFIG in top else OPEN_CLIP_WEIGHTS
    weights: list[str] = next(filter(None, (fnmatch.filter(top, form) for form in forms)), [])
    return [file for file in top if file.endswith((".json", ".txt", ".model"))] + weights


def not_there(name: str, error: Exception) -> ModelError:
    hint = f"download it on a machine with network and name its folder, or use 'canvas' ({reason(error)})"
    return ModelError(f"{name!r} is not in the local cache and cannot be downloaded: {hint}")


def reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
