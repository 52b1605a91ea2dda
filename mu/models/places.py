"""Paths of the embedded models, and the names and files that identify each kind of model. Imports no library."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mu.core.errors import ModelError, nearest, titled
from mu.core.records import read_json

WEIGHTS = Path(__file__).parent / "canvas" / "weights"
EMBEDDED = {
    "canvas": WEIGHTS / "diffusion",
    "canvas-clip": WEIGHTS / "clip",
    "canvas-vlm": WEIGHTS / "vlm",
    "canvas-judge": WEIGHTS / "judge",
}
SINGLE_FILES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip:", "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PIPELINE, TRANSFORMERS_CONFIG = "model_index.json", "config.json"
GELUS = ("gelu", "quick_gelu")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def is_single_file(name: str | Path) -> bool:
    """True if ``name`` is a weight file, which does not state how its weights are used."""
    place = Path(name)
    return place.suffix.lower() in SINGLE_FILES and not place.is_dir() and not str(name).startswith(OPEN_CLIP)


def config_in(file: Path) -> dict[str, Any] | None:
    """The mapping in a JSON ``file``; None if it cannot be read or holds something else."""
    try:
        content = read_json(file, error=ModelError)
    except ModelError:
        return None
    return content if isinstance(content, dict) else None


def check_name(name: str) -> None:
    """Raise `ModelError` if no model can be found by ``name``: a file or folder that is missing, or no hub id.

    Reads no file and asks no network: a model may still be unknown to the hub, or of another kind.
    """
    place = Path(name)
    if name in EMBEDDED or name.startswith(OPEN_CLIP) or place.is_dir():
        return
    if is_single_file(name):
        if not place.exists():
            raise ModelError(f"{name} does not exist: check the name")
    elif place.exists():
        endings = ", ".join(sorted(SINGLE_FILES))
        raise ModelError(f"{titled(name)} is {_kind(place)}, not a model: a weight file ends in {endings}")
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        what = "does not exist" if ("/" in name or "\\" in name) else "is not a known model, file or folder"
        raise ModelError(f"{titled(name)} {what}.{nearest(name, EMBEDDED)}")


def _kind(place: Path) -> str:
    """What the existing ``place``, which is no folder, is."""
    from mu.models.formats.checkpoint import other_kind

    if not place.is_file():
        return "not a file"
    with contextlib.suppress(OSError), place.open("rb") as file:
        return other_kind(file.read(64)) or "a file of an unknown kind"
    return "a file that cannot be read"
