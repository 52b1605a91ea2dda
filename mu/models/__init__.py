"""Loading models by name: ``canvas``, ``canvas-clip``, a hub id, a diffusers, transformers or open_clip folder, a single file,
``open_clip:ARCH/TAG``."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mu.core.errors import ConfigError, ModelError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from mu.models.clip import ClipModel
    from mu.models.diffusion import DiffusionModel
    from mu.models.vision_language import VisionLanguageModel

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


def load(
    name: str | Path,
    *,
    device: Any = None,
    precision: str = "float32",
    clip_skip: int = 1,
    prediction_type: str | None = None,
    compat_gelu: str | None = None,
) -> DiffusionModel | ClipModel | VisionLanguageModel:
    """The model called ``name``, ready for edits.

    ``clip_skip`` and ``prediction_type`` (``epsilon``, ``v_prediction``, ``sample``) are for diffusion models: which hidden state
    of the text encoder is used, from the end, and what the UNet predicts; single SD 2.x files do not say it.
    ``compat_gelu`` (``gelu``, ``quick_gelu``) is for models of open_clip: the activation to run them with, where it shall not
    be the one they were trained with. Raises `ModelError` in one line for a model that is unknown, missing, corrupt or
    cannot be downloaded. Code from a model's folder is never run.
    """
    from mu.core import compute

    wanted = None if device is None else str(device)
    with compute.loading_on(wanted) as chosen:
        placed = {"device": chosen, "precision": compute.precision(precision)}
        return _read(name, placed, clip_skip, prediction_type, compat_gelu)


def _read(
    name: str | Path, placed: dict[str, Any], clip_skip: int, prediction_type: str | None, compat_gelu: str | None
) -> DiffusionModel | ClipModel | VisionLanguageModel:
    place = EMBEDDED.get(str(name), Path(name))
    if compat_gelu not in (None, *GELUS):
        raise ConfigError(f"compat_gelu cannot be {compat_gelu!r}: choose {' or '.join(GELUS)}")
    if prediction_type not in (None, *PREDICTIONS):
        raise ConfigError(f"prediction_type cannot be {prediction_type!r}.{nearest(prediction_type, PREDICTIONS)}")
    tensors = None
    by_tag = str(name).startswith(OPEN_CLIP)
    if is_single_file(name):
        from mu.models.formats.checkpoint import read_state_dict

        tensors = read_state_dict(place)
    elif not place.is_dir() and not by_tag:
        from mu.models.hub import hub_folder

        place = hub_folder(str(name)) or place
    is_open_clip = by_tag or _holds_open_clip(place, tensors)
    if is_open_clip or (place.is_dir() and not (place / PIPELINE).exists()):
        for option, value in (("clip_skip", clip_skip if clip_skip != 1 else None), ("prediction_type", prediction_type)):
            if value is not None:
                raise ConfigError(f"{option} is for diffusion models, and {str(name)!r} is none: leave it out")
    if is_open_clip:
        return _load_open_clip(place, str(name), tensors, compat_gelu, placed)
    if compat_gelu is not None:
        raise ConfigError(f"compat_gelu is for models of open_clip, and {str(name)!r} is none: leave it out")
    if place.is_dir() and not (place / PIPELINE).exists():
        return _load_transformers(place, str(name), placed)
    with quiet_libraries():
        from mu.models.diffusion import DiffusionModel

        if tensors is not None:
            from mu.models.formats.single_file import load_single_file

            pipeline = load_single_file(place, prediction_type=prediction_type, tensors=tensors)
        else:
            pipeline = _pipeline(place, str(name))
            if prediction_type is not None:
                pipeline.scheduler.register_to_config(prediction_type=prediction_type)
        return DiffusionModel(pipeline, str(name), clip_skip=clip_skip, **placed)


def is_single_file(name: str | Path) -> bool:
    """Whether ``name`` is that of a file of weights, which says nothing of how they are used."""
    place = Path(name)
    return place.suffix.lower() in SINGLE_FILES and not place.is_dir() and not str(name).startswith(OPEN_CLIP)


def load_diffusion(name: str | Path, **options: Any) -> DiffusionModel:
    """`load` for work that makes pictures; `ModelError` for a model of another kind."""
    from mu.models.diffusion import DiffusionModel

    model = load(name, **options)
    if not isinstance(model, DiffusionModel):
        raise ModelError(f"{str(name)!r} makes no pictures: name a diffusion model, like 'canvas'")
    return model


def _holds_open_clip(place: Path, tensors: Mapping[str, Tensor] | None) -> bool:
    """Published folders often hold the same model for transformers too."""
    if tensors is not None:
        return any(name.removeprefix("module.").startswith("visual.") for name in tensors)
    if not (place / OPEN_CLIP_CONFIG).exists():
        return False
    return not (place / TRANSFORMERS_CONFIG).exists() or any((place / file).exists() for file in OPEN_CLIP_WEIGHTS)


def _load_open_clip(
    place: Path, name: str, tensors: Mapping[str, Tensor] | None, compat_gelu: str | None, placed: dict[str, Any]
) -> ClipModel:
    with quiet_libraries():
        from mu.models.formats import open_clip

        if name.startswith(OPEN_CLIP):
            return open_clip.from_tag(name, compat_gelu=compat_gelu, **placed)
        if tensors is None:
            return open_clip.from_folder(place, name, compat_gelu=compat_gelu, **placed)
        return open_clip.from_file(place, tensors, name, compat_gelu=compat_gelu, **placed)


def _load_transformers(folder: Path, name: str, placed: dict[str, Any]) -> ClipModel | VisionLanguageModel:
    try:
        kind = json.loads((folder / TRANSFORMERS_CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (OSError, json.JSONDecodeError):
        raise ModelError(f"{name} holds neither a {PIPELINE} (diffusers) nor a {TRANSFORMERS_CONFIG} (transformers)") from None
    with quiet_libraries():
        if kind == "clip":
            from mu.models.clip import ClipModel

            return ClipModel.open(folder, name, **placed)
        if kind == "llava":
            from mu.models.vision_language import VisionLanguageModel

            return VisionLanguageModel.open(folder, name, **placed)
    raise ModelError(f"{name} holds a model of type {kind!r}; mu loads diffusion pipelines, CLIP and LLaVA")


def _pipeline(place: Path, name: str) -> Any:
    """A diffusers pipeline from a folder, or by its hub id."""
    import torch
    from diffusers import DiffusionPipeline

    from mu.models.hub import not_there, reason

    local = place.is_dir()
    # Every component in one type: transformers keeps the saved one, diffusers does not.
    options = {"torch_dtype": torch.float32, "safety_checker": None, "requires_safety_checker": False}
    try:
        return DiffusionPipeline.from_pretrained(str(place) if local else name, local_files_only=local, **options)
    except Exception as error:
        if local:
            raise ModelError(f"the model in {place} cannot be read ({reason(error)}): copy it again") from None
        raise not_there(name, error) from None


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the loading bars and the advice of diffusers and transformers (restored afterwards)."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    libraries = (diffusers_log, transformers_log)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


__all__ = ["EMBEDDED", "WEIGHTS", "is_single_file", "load", "load_diffusion", "quiet_libraries"]
