"""Where the embedded models lie, and by which names and files a model of each kind is known. Loads no library."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "canvas" / "weights"
EMBEDDED = {
    "canvas": WEIGHTS / "diffusion", "canvas-clip": WEIGHTS / "clip", "canvas-vlm": WEIGHTS / "vlm", "canvas-judge": WEIGHTS / "judge",
}  # fmt: skip
SINGLE_FILES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip:", "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PIPELINE, TRANSFORMERS_CONFIG = "model_index.json", "config.json"
GELUS = ("gelu", "quick_gelu")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def is_single_file(name: str | Path) -> bool:
    """Whether ``name`` is that of a file of weights, which says nothing of how they are used."""
    place = Path(name)
    return place.suffix.lower() in SINGLE_FILES and not place.is_dir() and not str(name).startswith(OPEN_CLIP)
