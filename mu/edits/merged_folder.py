"""Write a merged model's folder: the source's own files, with the changed tensors alone replaced.

Components that an edit does not touch are copied byte for byte, also those that mu does not load (a safety checker).
A changed tensor keeps the number type of the file. Weights in a form that cannot be changed in place (pickles, copies
for other frameworks) are left out, because they would still hold what was erased.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mu.core.errors import EditError, ModelError
from mu.core.records import read_json
from mu.models.formats.checkpoint import SUFFIXES, read_state_dict
from mu.models.formats.folder import loaded_weights, parts_of
from mu.models.formats.parameter_names import spellings
from mu.models.parameters import BEFORE_EDITS, EditableModel, comparable, find_parameter
from mu.models.places import PIPELINE

WEIGHTS = SUFFIXES | {".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf", ".xml", ".tflite", ".ot"}
"""Endings of files that hold weights."""
TEXTS = {"", ".md", ".txt", ".json"}
"""Endings of the files of a pipeline's own folder that are copied: its licence and its card."""
ROUNDED_AWAY = 0.1
"""A warning names the share of an edit that the number type of the file rounds away, from this share on."""

log = logging.getLogger("mu")


@dataclass
class Rounding:
    """Squared norms of the deltas, and of what is lost of them."""

    lost: float = 0.0
    whole: float = 0.0

    def add(self, wanted: Tensor, found: Tensor, shift: Tensor) -> None:
        """Raises `EditError` if a number is not finite in the file's number type, as mu reads none of those."""
        if not comparable(found).isfinite().all():
            raise EditError(f"merged at this strength, weights are not finite in {found.dtype}: lower the strength")
        self.lost += float((wanted - found.float()).square().sum())
        self.whole += float(shift.square().sum())

    @property
    def share(self) -> float:
        return (self.lost / self.whole) ** 0.5 if self.whole else 0.0


@dataclass
class Merged:
    """A model with its edits applied, their deltas by parameter, and its module of each component."""

    model: EditableModel
    deltas: Mapping[str, Tensor]
    rounding: Rounding = field(default_factory=Rounding)

    def __post_init__(self) -> None:
        self.shifts = {id(find_parameter(self.model, name)): shift for name, shift in self.deltas.items()}

    def changes(self, module: nn.Module) -> bool:
        return any(id(parameter) in self.shifts for parameter in module.parameters())

    def count(self, module: nn.Module, dtypes: Mapping[str, torch.dtype | None]) -> None:
        """Count what is lost of the deltas if the parameters of ``module`` are cast to ``dtypes``, given by name.

        None, or no entry, is the parameter's own number type.
        """
        for name, parameter in module.named_parameters():
            shift = self.shifts.get(id(parameter))
            if shift is None:
                continue
            now, base = parameter.detach(), getattr(parameter, BEFORE_EDITS, parameter).detach().to(parameter.device)
            wanted, shift = now.float(), shift.to(now.device).reshape(now.shape)
            if torch.equal(base + shift.to(now.dtype), now):  # else others changed it too
                wanted = base.float() + shift.float()
            self.rounding.add(wanted, now.to(dtypes.get(name) or now.dtype), shift)

    def value(self, source: Tensor, parameter: Tensor, counted: bool = True) -> Tensor | None:
        """What replaces ``source``, a tensor of the file of which ``parameter`` was loaded; None if it is unchanged.

        Rounding is ``counted``, except for files that hold the same weights again.
        """
        now = parameter.detach().cpu().reshape(source.shape)
        loaded = source.to(now.dtype)
        if torch.equal(now, loaded):
            return None
        shift, base = self.shifts.get(id(parameter)), getattr(parameter, BEFORE_EDITS, parameter)
        if shift is None or not torch.equal(base.detach().cpu().reshape(source.shape), loaded):
            return now.to(source.dtype)  # it was also changed by others than the edits
        shift = shift.float().cpu().reshape(source.shape)
        wanted = source.float() + shift
        if counted:
            self.rounding.add(wanted, wanted.to(source.dtype), shift)
        return wanted.to(source.dtype)


def write_pipeline(merged: Merged, pipeline: Any, modules: Mapping[str, nn.Module], source: Path, target: Path) -> None:
    """Write the merged diffusers folder ``target``; ``source`` is the folder that the model was loaded from.

    Raises `ModelError` if ``source`` lacks a component that its index lists, or it lies in another folder.
    """
    index = read_json(source / PIPELINE, error=ModelError)
    for part in [name for name, (_, kind) in parts_of(index, source / PIPELINE).items() if kind is not None]:
        if not (source / part).is_dir():
            raise ModelError(
                f"{source} lacks the {part} that its {PIPELINE} lists: copy it too, or set it there to [null, null]"
            )
        if part in modules:
            _write_part(merged, modules[part], source / part, target / part)
        else:
            _copy(source / part, target / part)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in TEXTS:
            shutil.copyfile(file, target / file.name)
    _write_scheduler(pipeline.scheduler, source, target)
    clean(target)


def write_model(merged: Merged, module: nn.Module, source: Path, target: Path) -> None:
    """Write the merged transformers folder ``target``, as `write_pipeline` does for a pipeline."""
    _write_part(merged, module, source, target)
    clean(target)


def clean(folder: Path) -> None:
    """Take paths of this machine out of the JSON files of ``folder``."""
    for file in folder.rglob("*.json"):
        try:
            content = read_json(file, error=ModelError)
        except ModelError:
            continue
        if (kept := _without_places(content)) != content:
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cast_files(folder: Path, dtype: torch.dtype) -> None:
    """Cast the floating-point tensors of every safetensors file in ``folder``."""
    for file in folder.rglob("*.safetensors"):
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()
        }
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        save_file(tensors, file, metadata)


def main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """The number type of most numbers in ``tensors``; None if none is a floating-point number."""
    return _most(tensors.values())


def folder_dtype(folder: Path) -> torch.dtype | None:
    """`main_dtype` of the weights that the model in ``folder`` is loaded from."""
    return _most(tensor for file in loaded_weights(folder) for tensor in read_state_dict(file).values())


def _most(tensors: Iterable[Tensor]) -> torch.dtype | None:
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def _without_places(content: Any) -> Any:
    """``content`` of a JSON file without names of models that are paths of this machine."""
    if isinstance(content, list):
        return [_without_places(each) for each in content]
    if not isinstance(content, dict):
        return content
    names = ("_name_or_path", "name_or_path")
    return {key: _without_places(value) for key, value in content.items() if not (key in names and _is_place(value))}


def _is_place(name: Any) -> bool:
    """Whether ``name`` is a path and not a hub id, which has one ``/`` at most."""
    if not isinstance(name, str) or not name:
        return False
    begins = name.startswith(("/", "~", ".")) or name[1:2] == ":"
    return begins or name.count("/") > 1 or "\\" in name or Path(name).exists()


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a folder, without hidden ones; the content of links, not the links."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.name.startswith("."):
            continue
        if file.is_dir():
            _copy(file, target / file.name)
        else:
            shutil.copyfile(file, target / file.name)


def _write_part(merged: Merged, module: nn.Module, source: Path, target: Path) -> None:
    """Write the folder of one model. A model without changes is copied."""
    target.mkdir(parents=True, exist_ok=True)
    found, again, loaded = _Names(module), _Names(module), loaded_weights(source)
    files = [file for file in sorted(source.iterdir()) if file.is_file() and not file.name.startswith(".")]
    replaced = {
        file: _replaced(merged, file, found if file in loaded else again, counted=file in loaded)
        for file in files
        if file.suffix.lower() == ".safetensors"
    }
    if not any(replaced.values()) and not merged.changes(module):
        _copy(source, target)
        return
    whole = found.seen >= {id(parameter) for parameter in module.parameters() if id(parameter) in merged.shifts}
    for file in files:
        if file.suffix.lower() not in WEIGHTS:
            if whole or not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)
        elif whole and replaced.get(file) is not None:
            _write_changed(file, target / file.name, replaced[file] or {})
    if not whole:
        _write_anew(merged, module, folder_dtype(source), target)


class _Names:
    """The parameters of a module by the names in files, which differ between versions of the libraries."""

    def __init__(self, module: nn.Module):
        self.parameters: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self.seen: set[int] = set()
        """Ids of the parameters that were found in a file."""

    def find(self, name: str, shape: torch.Size) -> Tensor | None:
        parameter = next((self.parameters[each] for each in spellings(name) if each in self.parameters), None)
        if parameter is None or parameter.numel() != shape.numel():
            return None
        self.seen.add(id(parameter))
        return parameter


def _replaced(merged: Merged, file: Path, names: _Names, counted: bool) -> dict[str, Tensor] | None:
    """The changed tensors of ``file`` by name; None if it holds none of the model's."""
    changed, known = {}, False
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            source = opened.get_tensor(name)
            parameter = names.find(name, source.shape)
            if parameter is None:
                continue
            known = True
            if (value := merged.value(source, parameter, counted)) is not None:
                changed[name] = value
    return changed if known else None


def _write_changed(source: Path, target: Path, changed: Mapping[str, Tensor]) -> None:
    """Copy a safetensors file and put the tensors ``changed`` in their places; all other bytes are the same."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, value in changed.items():
            start, end = header[name]["data_offsets"]
            content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert len(content) == end - start, "the same number type and shape"
            file.seek(8 + size + start)
            file.write(content)


def _write_anew(merged: Merged, module: Any, dtype: torch.dtype | None, target: Path) -> None:
    """Write the weights with the module's own library, in the number type ``dtype`` of its files."""
    merged.count(module, dict.fromkeys(dict(module.named_parameters()), dtype))
    copied = copy.deepcopy(module)
    copied.to(dtype or next(module.parameters()).dtype).save_pretrained(target)


def _write_scheduler(scheduler: Any, source: Path, target: Path) -> None:
    """Write the scheduler if it is not the source's: its class or a setting was changed after loading."""
    original = type(scheduler).from_pretrained(source, subfolder="scheduler", local_files_only=True)
    index = read_json(source / PIPELINE, error=ModelError)
    own = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    changed = {key: value for key, value in own.items() if original.config.get(key) != value}
    file = target / "scheduler" / "scheduler_config.json"
    if index["scheduler"][1] != type(scheduler).__name__:
        scheduler.save_pretrained(target / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (target / PIPELINE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    elif changed:
        content = read_json(file, error=ModelError) | changed
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
