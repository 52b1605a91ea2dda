"""Edits in the formats of other tools. These formats have no gates, so edits have one strength for all prompts."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mu.core.errors import EditError, OutputError, quoted, titled
from mu.core.files import atomic_path, check_folder, check_writing, sweep_beside, write_json, writing
from mu.core.lock import locked_beside
from mu.edits.bank import Bank, together
from mu.edits.edit import shifted
from mu.edits.lora_files import edit_metadata, kohya_metadata, kohya_tensors, peft_tensors
from mu.edits.low_rank import LowRankEdit
from mu.edits.merged_folder import (
    ROUNDED_AWAY,
    TEXTS,
    Merged,
    cast_files,
    clean,
    folder_dtype,
    main_dtype,
    write_model,
    write_pipeline,
)
from mu.edits.own_folder import check_own, new_folder, recover
from mu.edits.tensor_file import write_tensors
from mu.edits.ungated import tell_lost_gates
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.formats.checkpoint import read_state_dict
from mu.models.formats.compvis import part_of
from mu.models.formats.statements import beside_file, is_written, write_yaml
from mu.models.formats.timm_towers import TimmTower
from mu.models.parameters import find_parameter
from mu.models.places import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, PIPELINE, TRANSFORMERS_CONFIG, config_in
from mu.models.quiet import quiet_libraries
from mu.models.vision_language import VisionLanguageModel

log = logging.getLogger("mu")


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
        factors[name] = together(parts)
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


def _diffusers(merged: Merged, path: Path) -> None:
    model: Any = merged.model
    with (
        quiet_libraries(),
        new_folder(path) as partial,
        _telling(model.pipeline.scheduler, model.prediction_type),
    ):
        if model.source is not None and model.source.is_dir():
            write_pipeline(merged, model.pipeline, model.components, model.source, partial)
            return
        model.pipeline.save_pretrained(partial)
        _like_source(merged, model.components.values(), model.source, partial)


@contextmanager
def _telling(scheduler: Any, prediction_type: str) -> Iterator[None]:
    """Make ``scheduler`` state inside the block what the model predicts; loading may have been told so."""
    before = scheduler.config.get("prediction_type", "epsilon")
    if before == prediction_type:
        yield
        return
    scheduler.register_to_config(prediction_type=prediction_type)
    try:
        yield
    finally:
        scheduler.register_to_config(prediction_type=before)


def _transformers(merged: Merged, path: Path) -> None:
    model: Any = merged.model
    with quiet_libraries(), new_folder(path) as partial:
        if model.source is not None and (model.source / TRANSFORMERS_CONFIG).exists() and not _is_open_clip(model):
            write_model(merged, model.model, model.source, partial)
            return
        for part in (model.model, model.tokenizer, model.processor):
            part.save_pretrained(partial)
        _like_source(merged, [model.model], model.source, partial)


def _open_clip(merged: Merged, path: Path) -> None:
    """Write a folder in open_clip's hub layout. Each tensor keeps the number type that it has in the source.

    Licence and card of a source folder are copied; its other files describe other copies of the weights, or nothing.
    """
    from mu.models.formats.open_clip import in_open_clip

    model: Any = merged.model
    tensors, config = in_open_clip(model)
    source, folder = _weights_of(model.source), model.source if model.source and model.source.is_dir() else None
    dtypes = {name.removeprefix("module."): tensor.dtype for name, tensor in source.items()}
    named = model.open_clip.names
    merged.count(model.model, {own: dtypes.get(named[own]) for own, _ in model.model.named_parameters()})
    with quiet_libraries(), new_folder(path) as partial:
        for file in sorted(folder.iterdir()) if folder else ():
            if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in TEXTS - {".json"}:
                shutil.copyfile(file, partial / file.name)
        model.tokenizer.save_pretrained(partial)
        kept = {name: _cast(tensor.cpu(), dtypes.get(name)) for name, tensor in tensors.items()}
        write_tensors(partial / OPEN_CLIP_WEIGHTS[0], kept, {"format": "pt"})
        write_json(partial / OPEN_CLIP_CONFIG, config)
        clean(partial)


def _weights_of(source: Path | None) -> Mapping[str, Tensor]:
    """The tensors that an open_clip model at ``source`` was loaded from; none without a source."""
    if source is not None and source.is_dir():
        source = next((source / name for name in OPEN_CLIP_WEIGHTS if (source / name).exists()), None)
    return read_state_dict(source) if source is not None else {}


def _is_open_clip(model: ClipModel | VisionLanguageModel) -> bool:
    """Whether the weights of the source are open_clip's and not transformers'."""
    return model.source is not None and any((model.source / name).exists() for name in OPEN_CLIP_WEIGHTS)


def _like_source(merged: Merged, modules: Iterable[nn.Module], source: Path | None, folder: Path) -> None:
    """Give a folder that a library wrote the number type of the ``source`` file, and no paths of this machine."""
    dtype = main_dtype(_weights_of(source))
    for module in modules:
        merged.count(module, _all(module, dtype))
    if dtype is not None:
        cast_files(folder, dtype)
    clean(folder)


def _unet(merged: Merged, path: Path) -> None:
    model: Any = merged.model
    dtype = _source_dtype(model, model.backbone_name)
    merged.count(model.backbone, _all(model.backbone, dtype))
    _state({name: _cast(tensor, dtype).cpu() for name, tensor in model.backbone.state_dict().items()}, path, {})


def _all(module: nn.Module, dtype: torch.dtype | None) -> dict[str, torch.dtype | None]:
    return {name: dtype for name, _ in module.named_parameters()}


def _compvis(merged: Merged, path: Path) -> None:
    """Write one file. That of an unpublished architecture describes itself, so that it opens again.

    If the source is one too, its other tensors, number types and metadata stay; EMA copies do not, because they hold
    what was erased. What the file cannot state is written to a ``.yaml`` beside it.
    """
    from mu.models.formats.single_file import described, description_of, names_in_file, read_single_file, to_compvis

    model: Any = merged.model
    source: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    if model.source is not None and model.source.is_file():
        source, metadata = read_single_file(model.source)
        parts = dict.fromkeys(model.components, main_dtype(source))
    else:
        parts = {part: _source_dtype(model, part) for part in model.components}

    def dtype(part: str, place: str) -> torch.dtype | None:
        return source[place].dtype if place in source else parts[part]

    for part, names in names_in_file(model.pipeline).items():
        merged.count(model.components[part], {name: dtype(part, place) for name, place in names.items()})
    tensors = {name: _cast(tensor, dtype(part_of(name), name)) for name, tensor in to_compvis(model.pipeline).items()}
    tensors = {name: tensor for name, tensor in source.items() if not name.startswith("model_ema.")} | tensors
    tensors, metadata, settings = described(tensors, metadata, model.pipeline, model.prediction_type, path)
    tensors |= description_of(model.pipeline)
    with _description(path, settings):
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        _state(tensors if path.suffix == ".safetensors" else {"state_dict": tensors}, path, metadata)


@contextmanager
def _description(path: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Write ``settings`` beside the single file ``path`` before the block does, so that it never stands alone.

    Without settings, an older description by `write_yaml` is deleted after the block.
    """
    file = beside_file(path)[0]
    before = file.read_bytes() if file.exists() else None
    if settings:
        write_yaml(file, settings)
    try:
        yield
    except BaseException:
        if settings and before is not None:
            with atomic_path(file) as partial:
                partial.write_bytes(before)
        elif settings:
            file.unlink(missing_ok=True)
        raise
    if not settings:
        file.unlink(missing_ok=True)


def _source_dtype(model: Any, part: str) -> torch.dtype | None:
    """The number type of ``part`` in the folder or file that the model was loaded from; None if there is none."""
    if model.source is None:
        return None
    return main_dtype(read_state_dict(model.source)) if model.source.is_file() else folder_dtype(model.source / part)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _state(content: Mapping, path: Path, metadata: Mapping[str, str]) -> None:
    if path.suffix == ".safetensors":
        write_tensors(path, content, {"format": "pt", **metadata})
    elif path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        with atomic_path(path) as partial, partial.open("wb") as file:
            torch.save(dict(content), file)  # given a path, it would store the partial file's random name inside
    else:
        raise OutputError(f"{path} has an unknown suffix: use .safetensors, .pt, .pth, .bin or .ckpt")


_LORA: dict[str, Callable[[LowRankEdit, Any, Path], None]] = {"kohya": _kohya, "peft": _peft}
_MERGED: dict[str, Callable[[Merged, Path], None]] = {
    "diffusers": _diffusers,
    "unet": _unet,
    "compvis": _compvis,
    "transformers": _transformers,
    "open_clip": _open_clip,
}
FORMATS = (*_LORA, *_MERGED)
_FOLDERS = {"diffusers": PIPELINE, "transformers": TRANSFORMERS_CONFIG, "open_clip": OPEN_CLIP_CONFIG}
"""Formats that are folders, and the file that identifies each."""


def check_place(path: Path | str, form: str, *, overwrite: bool = False, inputs: Iterable[Path | str] = ()) -> None:
    """Raise `OutputError` if ``path`` cannot be written in the format ``form``, before the work.

    That is so if it exists without ``overwrite``, is a folder that no such model is in or that holds what mu did not
    write, a link or file where a folder is written, or holds or is one of ``inputs``, of which the result is made.
    """
    path = Path(path)
    if form not in FORMATS:
        raise OutputError(f"unknown format {quoted(form)}; choose {', '.join(FORMATS)}")
    for each in map(Path, inputs):
        if each.resolve() == path.resolve():
            raise OutputError(f"{path} is what the result is made of, and is not replaced: choose another path")
        if each.resolve().is_relative_to(path.resolve()):
            raise OutputError(f"{path} holds {each}, of which the result is made: choose another path")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists already: choose another path or pass --overwrite")
    if path.is_symlink() and (form in _FOLDERS or path.is_dir()):
        raise OutputError(f"{path} is a link, and is not replaced: name the folder that it leads to")
    if path.is_dir() and not (form in _FOLDERS and _holds(path, _FOLDERS[form])):
        raise OutputError(f"{path} is a folder without a {form} model and is not replaced: choose another path")
    if path.is_dir():
        check_own(path)
    if path.exists() and not path.is_dir() and form in _FOLDERS:
        raise OutputError(f"{path} is a file, and the format {form} is a folder: choose another path")
    if form == "compvis":
        for file in filter(os.path.lexists, beside_file(path)):
            if not is_written(file) or file.is_symlink():
                raise OutputError(f"{file} would be read as the description of {path}: choose another path")
            if not overwrite:
                raise OutputError(f"{file} exists already: choose another path or pass --overwrite")
    if form in _FOLDERS:
        check_folder(path.parent)
    else:
        check_writing(path)


def _holds(folder: Path, name: str) -> bool:
    """Whether ``folder`` holds a model that the JSON file ``name`` describes, as libraries write it."""
    return bool({"_class_name", "model_type", "architectures", "model_cfg"} & (config_in(folder / name) or {}).keys())


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise EditError(f"merged at this strength, {name} is not finite: lower the strength")


def export(
    bank: Bank,
    path: Path | str,
    form: str,
    *,
    strengths: Sequence[float] | None = None,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
) -> Path:
    """Write the edits of ``bank`` that are on, in one of `FORMATS`, each at its strength (default: its own).

    ``kohya``, ``peft``: one LoRA ``.safetensors``. ``diffusers``: a folder with the merged model, loaded by
    ``DiffusionPipeline.from_pretrained`` alone. ``unet``: the merged UNet's state dict. ``compvis``: one merged file,
    with a ``.yaml`` beside it if the noise schedule or the scaling of latents is unusual.
    ``transformers``, for a CLIP or a LLaVA: a folder with the merged model, loaded by transformers alone.
    ``open_clip``, for a CLIP of open_clip: a folder in its hub's layout, loaded by open_clip alone. To write a merged
    model, the edits are applied to the base model itself and then taken off; the model is not copied.
    ``inputs`` are files and folders that must stay: of the edits, their bank or runs. The base model's always do.
    Raises `OutputError` for a ``path`` that `check_place` refuses. Raises `EditError` for a format that does not
    fit the kind of model.
    """
    path, model = Path(path), bank.model
    source = getattr(model, "source", None)
    if source is not None and source.resolve().is_relative_to(path.resolve()):
        raise OutputError(f"{path} holds the base model itself, which is not replaced: choose another path")
    if source is not None and path.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"{path} is inside the base model, which is not changed: choose another path")
    with locked_beside(path):
        sweep_beside(path)
        recover(path)
        check_place(path, form, overwrite=overwrite, inputs=inputs)
        return _exported(bank, path, form, strengths)


def _unfit(model: Any, form: str) -> str:
    """What ``model`` is that the format cannot hold, and which format can; empty if it fits."""
    if isinstance(model, DiffusionModel):
        return "a diffusion model: choose diffusers" if form in ("transformers", "open_clip") else ""
    foreign = isinstance(model, ClipModel) and isinstance(model.components["vision_model"], TimmTower)
    own = "open_clip" if foreign else "transformers"
    if form not in ("transformers", "open_clip"):
        return f"not a diffusion model: choose {own}"
    if form == "transformers" and foreign:
        return f"a CLIP with an image tower of timm: choose {own}"
    if form == "open_clip" and getattr(model, "open_clip", None) is None:
        return f"not from open_clip: choose {own}"
    return ""


def _exported(bank: Bank, path: Path, form: str, strengths: Sequence[float] | None) -> Path:
    """`export`, alone on ``path``, which may be written."""
    model = bank.model
    if what := _unfit(model, form):
        raise EditError(f"format {form} cannot hold {titled(model.name)}, which is {what}")
    with writing(path):
        tell_lost_gates(bank, bank.strengths(strengths))
        sizes = bank.merged_strengths(strengths)
        if form in _LORA:
            edit = joined(bank, sizes)
            _check_finite(edit.tensors())
            _LORA[form](edit, model, path)
        else:
            deltas = bank.deltas(sizes)
            with shifted(model, deltas):
                _check_finite({name: find_parameter(model, name) for name in deltas})
                merged = Merged(model, deltas)
                _MERGED[form](merged, path)
            if merged.rounding.share >= ROUNDED_AWAY:
                log.warning(
                    "the number type of the base model's files rounds away %.0f%% of the edit: merge into a float32 "
                    "copy of the base to keep it",
                    100 * merged.rounding.share,
                )
    return path
