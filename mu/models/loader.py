"""Load models: by name, or from an object that the user has already loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mu.core.errors import ConfigError, ModelError, as_edit, nearest, quoted, titled
from mu.models.places import (
    EMBEDDED,
    GELUS,
    OPEN_CLIP,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    PIPELINE,
    PREDICTIONS,
    TRANSFORMERS_CONFIG,
    config_in,
    is_single_file,
)
from mu.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from mu.models.clip import ClipModel
    from mu.models.diffusion import DiffusionModel
    from mu.models.vision_language import VisionLanguageModel

KINDS = "diffusion pipelines (Stable Diffusion 1.x, 2.x, XL), CLIP and LLaVA"


def load(
    source: Any,
    *,
    device: Any = None,
    precision: str | None = None,
    clip_skip: int = 1,
    prediction_type: str | None = None,
    compat_gelu: str | None = None,
    processor: Any = None,
) -> DiffusionModel | ClipModel | VisionLanguageModel:
    """Load the model ``source``, ready for edits.

    ``source`` is a name or an object. Names are ``canvas``, ``canvas-clip``, a hub id, ``open_clip:ARCH/TAG``, a single
    file, or a diffusers, transformers or open_clip folder. Objects are a diffusers pipeline, a ``CLIPModel`` or a
    ``LlavaForConditionalGeneration``. An object is not copied. Its weights are frozen; it keeps its device and
    precision unless ``device`` or ``precision`` is given. ``processor`` belongs to a transformers model; by default it
    is loaded from this machine by the model's own ``name_or_path``.

    ``precision`` (default float32) is ``float32``, ``float16`` or ``bfloat16``. ``clip_skip`` and ``prediction_type``
    are for diffusion models. ``clip_skip`` selects the text encoder's hidden state, counted from the end.
    ``prediction_type`` (``epsilon``, ``v_prediction``, ``sample``) is what the UNet predicts; single SD 2.x files do
    not state it. A pipeline of yours keeps its own scheduler: only mu's calls read ``prediction_type``. ``compat_gelu``
    (``gelu``, ``quick_gelu``) is for models of open_clip: an activation other than the one they were trained with.

    Code from a model's folder is never run. Raises `ModelError` in one line for a model that is unknown,
    missing, corrupt, of another kind, or cannot be downloaded.
    """
    from mu.core import compute, threads

    if compat_gelu not in (None, *GELUS):
        raise ConfigError(f"compat_gelu cannot be {quoted(compat_gelu)}: choose {' or '.join(GELUS)}")
    if prediction_type not in (None, *PREDICTIONS):
        raise ConfigError(
            f"prediction_type cannot be {quoted(prediction_type)}.{nearest(prediction_type, PREDICTIONS)}"
        )
    options = _Options(clip_skip, prediction_type, compat_gelu)
    if not isinstance(source, str | Path):
        from mu.models.given import given
        from mu.models.parameters import check_finite

        options.refuse("compat_gelu", f"{type(source).__name__}")
        with quiet_libraries():
            model = given(
                source, device, precision, clip_skip=clip_skip, prediction_type=prediction_type, processor=processor
            )
        if model is not source:
            check_finite(model)
        return model
    with compute.loading_on(None if device is None else str(device)) as chosen:
        placed = {"device": chosen, "precision": compute.precision(precision or "float32")}
        with quiet_libraries():
            model = _named(source, placed, options)
    if chosen.type == "cpu":
        threads.fit(sum(p.numel() for part in model.components.values() for p in part.parameters()))
    return model


class _Options:
    """Options that each apply to one kind of model."""

    FOR = {
        "clip_skip": "diffusion models",
        "prediction_type": "diffusion models",
        "compat_gelu": "models of open_clip",
    }

    def __init__(self, clip_skip: int, prediction_type: str | None, compat_gelu: str | None):
        self.clip_skip, self.prediction_type, self.compat_gelu = clip_skip, prediction_type, compat_gelu

    def refuse(self, option: str, name: str) -> None:
        """Raise `ConfigError` if ``option`` was given."""
        if getattr(self, option) not in (None, 1):
            raise ConfigError(f"{option} is for {self.FOR[option]}, and {titled(name)} is not one: leave it out")


def _named(
    source: str | Path, placed: dict[str, Any], options: _Options
) -> DiffusionModel | ClipModel | VisionLanguageModel:
    name, place = str(source), EMBEDDED.get(str(source), Path(source))
    if not name.strip():
        raise ModelError("the model's name is empty: name 'canvas', a hub id, a folder or a file")
    tensors = None
    if is_single_file(source):
        from mu.models.formats.checkpoint import read_state_dict

        tensors = read_state_dict(place)
    elif not place.is_dir() and not name.startswith(OPEN_CLIP):
        from mu.models.hub import hub_folder

        place = hub_folder(name)
    from mu.models.parameters import check_finite

    model = _opened(name, place, tensors, placed, options)
    check_finite(model)
    model.source = place if place.exists() else None
    return model


def _opened(
    name: str, place: Path, tensors: dict[str, Tensor] | None, placed: dict[str, Any], options: _Options
) -> DiffusionModel | ClipModel | VisionLanguageModel:
    """Open ``place``, a folder or the file that held ``tensors``, as the kind of model that it is."""
    if name.startswith(OPEN_CLIP) or _holds_open_clip(place, tensors):
        options.refuse("clip_skip", name)
        options.refuse("prediction_type", name)
        return _open_clip(place, name, tensors, options.compat_gelu, placed)
    options.refuse("compat_gelu", name)
    if place.is_dir() and not (place / PIPELINE).exists():
        options.refuse("clip_skip", name)
        options.refuse("prediction_type", name)
        return _transformers(place, name, placed)

    from mu.models.diffusion import face

    return face(_pipeline(place, name, tensors, options), name, clip_skip=options.clip_skip, **placed)


def load_diffusion(source: Any, **options: Any) -> DiffusionModel:
    """Load a model that makes images, as `load` does. Raises `ModelError` for another kind of model."""
    from mu.models.diffusion import DiffusionModel

    model = load(source, **options)
    if not isinstance(model, DiffusionModel):
        raise ModelError(f"{titled(model.name)} does not make images: name a diffusion model, like 'canvas'")
    return model


def load_clip(name: str, needs: str, option: str, instead: str = "", **options: Any) -> ClipModel:
    """Load the CLIP that something else ``needs`` (which it names), as `load` does.

    Raises `ModelError` for another kind of model, and for one that is not on this machine and cannot be downloaded: it
    says with which ``option`` a folder is named, and what to choose ``instead``, if anything."""
    from mu.models.clip import ClipModel
    from mu.models.hub import NotThere

    try:
        found = load(name, **options)
    except NotThere as missing:
        advice = f"download it on a machine with network and pass {option}{instead and f', or {instead}'}"
        raise NotThere(name, missing.why, advice) from None
    if not isinstance(found, ClipModel):
        raise ModelError(f"{needs} needs a CLIP, and {titled(name)} is none: name one with {option}")
    return found


def _holds_open_clip(place: Path, tensors: Mapping[str, Tensor] | None) -> bool:
    """True if ``place`` is read as open_clip's. Published folders often hold the same model for transformers too."""
    if tensors is not None:
        return any(name.removeprefix("module.").startswith("visual.") for name in tensors)
    if not (place / OPEN_CLIP_CONFIG).exists():
        return False
    return not (place / TRANSFORMERS_CONFIG).exists() or any((place / file).exists() for file in OPEN_CLIP_WEIGHTS)


def _open_clip(
    place: Path, name: str, tensors: Mapping[str, Tensor] | None, compat_gelu: str | None, placed: dict[str, Any]
) -> ClipModel:
    from mu.models.formats import open_clip

    if name.startswith(OPEN_CLIP):
        return open_clip.from_tag(name, compat_gelu=compat_gelu, **placed)
    if tensors is None:
        return open_clip.from_folder(place, name, compat_gelu=compat_gelu, **placed)
    return open_clip.from_file(place, tensors, name, compat_gelu=compat_gelu, **placed)


def _transformers(folder: Path, name: str, placed: dict[str, Any]) -> ClipModel | VisionLanguageModel:
    config = config_in(folder / TRANSFORMERS_CONFIG)
    if config is None:
        raise ModelError(
            f"{name} holds neither {PIPELINE} (diffusers) nor {TRANSFORMERS_CONFIG} (transformers): mu loads {KINDS}"
        )
    match config.get("model_type"):
        case "clip":
            from mu.models.clip import ClipModel

            return ClipModel.open(folder, name, **placed)
        case "llava":
            from mu.models.vision_language import VisionLanguageModel

            return VisionLanguageModel.open(folder, name, **placed)
    kind = config.get("model_type") or config.get("_class_name") or "an unknown type"
    if "_class_name" in config or kind == "clip_text_model":
        whole = f"name the folder that holds its {PIPELINE}"
        raise ModelError(
            f"{name} holds a {kind}, a part of a pipeline: {whole}; if its weights are edited, {as_edit(name)}"
        )
    raise ModelError(f"{name} holds a model of type {quoted(kind)}; mu loads {KINDS}")


def _pipeline(place: Path, name: str, tensors: dict[str, Tensor] | None, options: _Options) -> Any:
    """Load a diffusers pipeline from a file or from a folder."""
    if tensors is not None:
        from mu.models.formats.checkpoint import read_metadata
        from mu.models.formats.single_file import load_single_file
        from mu.models.formats.statements import tell_layer

        tell_layer(read_metadata(place), place, options.clip_skip)
        return load_single_file(place, prediction_type=options.prediction_type, tensors=tensors)
    pipeline = _from_folder(place, name)
    if options.prediction_type is not None:
        pipeline.scheduler.register_to_config(prediction_type=options.prediction_type)
    return pipeline


def _from_folder(folder: Path, name: str) -> Any:
    from mu.models.diffusion.border import check_family
    from mu.models.formats.folder import open_pipeline
    from mu.models.hub import reason

    try:
        check_family((config_in(folder / PIPELINE) or {}).get("_class_name"), name)
        return open_pipeline(folder)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the model in {folder} cannot be read ({reason(error)}): copy it again") from None
