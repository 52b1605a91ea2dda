"""Open folders of diffusers and transformers. Every tensor of a model must be in its files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mu.core.errors import ModelError, quoted
from mu.core.records import read_json
from mu.models.formats.checkpoint import SUFFIXES, first_of_types
from mu.models.places import PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

log = logging.getLogger("mu")

LIBRARIES = ("diffusers", "transformers")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_PLAIN = re.compile(rf"({'|'.join(STEMS)})(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_VARIANT = re.compile(
    rf"({'|'.join(STEMS)})\.([\w-]+?)(-\d+-of-\d+)?\.(safetensors|bin)|"
    rf"({'|'.join(STEMS)})\.(safetensors|bin)\.index\.([\w-]+)\.json"
)


def variant_of(files: Iterable[str], where: str) -> str | None:
    """The variant (``fp16``, ``ema``, ...) of the weights among the names ``files``; None if plain ones are there.

    Raises `ModelError` for several variants without plain weights.
    """
    names = list(files)
    if any(_PLAIN.fullmatch(name) for name in names):
        return None
    found = sorted({match[2] or match[7] for name in names if (match := _VARIANT.fullmatch(name))})
    if len(found) > 1:
        raise ModelError(
            f"{where} has the weights of several variants ({', '.join(found)}): keep one of them in its folder"
        )
    return found[0] if found else None


def parts_of(index: Mapping[str, Any], file: Path) -> dict[str, tuple[Any, Any]]:
    """Name -> (library, class) of each part that ``index``, the content of a pipeline's index ``file``, lists.

    Raises `ModelError` for a name that may lead out of the pipeline's folder.
    """
    parts = {}
    for name, kind in index.items():
        if isinstance(kind, list | tuple) and len(kind) == 2:
            if not re.fullmatch(r"\w+", name):
                raise ModelError(
                    f"{file} lists the part {quoted(name)}, and a part is a folder beside it, named in letters, digits "
                    "and _: use another copy of the model"
                )
            parts[name] = (kind[0], kind[1])
    return parts


def loaded_weights(folder: Path) -> list[Path]:
    """The files of ``folder`` that its model is loaded from: those of its `variant_of`, safetensors before pickles.

    Files with names of their own, if there are no usual ones. The shards of a model are several files.
    """
    found = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    variant = variant_of((file.name for file in found), str(folder))
    form = rf"(?:{'|'.join(STEMS)}){'' if variant is None else re.escape(f'.{variant}')}(-\d+-of-\d+)?\.(\w+)"
    usual = [file for file in found if re.fullmatch(form, file.name)]
    safe = [file for file in usual if file.suffix.lower() == ".safetensors"]
    return safe or usual or found


def open_pipeline(folder: Path) -> DiffusionPipeline:
    """Open the diffusers folder ``folder`` in float32, without its safety checker.

    Raises `ModelError` for a part that lacks a tensor or lies in another folder. Other errors are those of
    diffusers and transformers.
    """
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(str(folder), local_files_only=True)
    parts: dict[str, Any] = {"safety_checker": None}
    listed = parts_of(index, folder / PIPELINE)
    if listed.get("text_encoder") == (None, None) and None not in listed.get("text_encoder_2", (None,)):
        raise ModelError(f"{folder} is the SDXL refiner, which needs more than text: name the SDXL base model")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if None in listed.get(part, (None,)):
            raise ModelError(f"{folder / PIPELINE} does not say what its {part} is: copy it again")
    for part, (library, name) in listed.items():
        if library not in LIBRARIES or name is None:
            continue
        if part in ("unet", "vae") or part.startswith("text_encoder"):
            parts[part] = open_part(_model_class(library, name, part, folder), folder / part)
        elif str(name).startswith("Auto") and _names_code(folder / part):
            raise ModelError(f"the {part} in {folder} names code of its own, which mu does not run: use another copy")
    _check_sizes(folder / "scheduler" / "scheduler_config.json", LONGEST)
    return DiffusionPipeline.from_pretrained(
        str(folder), local_files_only=True, torch_dtype=torch.float32, requires_safety_checker=False, **parts
    )


def _model_class(library: str, name: Any, part: str, folder: Path) -> Any:
    """The class ``name`` of diffusers or transformers. Raises `ModelError` unless it is one architecture: the classes
    Auto... run the code that a folder's config names."""
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    kind = getattr(import_module(library), str(name), None)
    if not isinstance(kind, type) or not issubclass(kind, ModelMixin | PreTrainedModel):
        raise ModelError(
            f"{folder / PIPELINE} lists {quoted(str(name))} as its {part}, and {library} has no such architecture: "
            "use another copy of the model"
        )
    return kind


def _names_code(folder: Path) -> bool:
    """Whether a file in ``folder`` names classes in code of its own (``auto_map``)."""
    files = [file for file in sorted(folder.glob("*config.json")) if file.is_file()]
    return any("auto_map" in found for file in files if isinstance(found := read_json(file, error=ModelError), dict))


LARGEST, DEEPEST, LONGEST = 10**8, 1000, 10**6
"""Largest whole number and number of layers in the config of a model, and timesteps of a scheduler: more exhaust the
memory."""


def _check_sizes(file: Path, largest: int = LARGEST) -> None:
    """Raise `ModelError` if the config ``file`` asks for what no machine holds. A missing file is left."""
    if not file.exists():
        return
    left: list[tuple[str, Any]] = [("", read_json(file, error=ModelError))]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner) for inner in value]
        elif isinstance(value, int) and abs(value) > (DEEPEST if "layers" in key else largest):
            raise ModelError(f"{file} has {key[:60]} = {str(value)[:40]}, which no machine holds: copy it again")


def _check_shards(index: Path) -> None:
    """Raise `ModelError` if the ``index`` of weights names a file in another folder. What is no index is left."""
    content = read_json(index, error=ModelError)
    try:
        files = set(content["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        return
    for name in files:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ModelError(
                f"{index} names the weights {quoted(name)}, and they must lie beside it: use another copy of the model"
            )


def _check_numbers(folder: Path) -> None:
    """Raise `ModelError` if the weights in ``folder`` hold 8-bit whole numbers, and its config does not say of which
    quantisation: the libraries take them for the weights themselves. Pickles are not looked at."""
    if (folder / "config.json").exists() and "quantization_config" in read_json(
        folder / "config.json", error=ModelError
    ):
        return
    for file in loaded_weights(folder):
        if file.suffix.lower() == ".safetensors" and (name := first_of_types(file, ("I8", "U8"))):
            raise ModelError(f"{file} holds {name} in 8-bit whole numbers, without the scale: use a copy in float16")


def open_part(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Open a model of the class ``kind``, diffusers' or transformers', with the weights in ``folder``.

    Raises `ModelError` if a tensor is missing or has another shape: the libraries fill it with random numbers. Raises
    it too if the weights lie in another folder. Tensors that the model does not have are passed over, as by the
    libraries, with a warning.
    """
    _check_sizes(folder / "config.json")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        if ".index." in name and name.endswith(".json"):
            _check_shards(folder / name)
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    options["variant"] = variant_of(names, str(folder))
    if not any(".safetensors" in name for name in names) and any(name.endswith(".bin") for name in names):
        options["use_safetensors"] = False  # else diffusers prints an error before it takes the pickle
    named = "dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"
    if names:
        _check_numbers(folder)
    module, told = kind.from_pretrained(str(folder), **{named: dtype}, **options)
    missing = sorted(told["missing_keys"])
    other = sorted(str(each[0] if isinstance(each, tuple) else each) for each in told["mismatched_keys"])
    for names, what in ((missing, "lacks"), (other, "has another shape than its config states in")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"the model in {folder} {what} the tensor {names[0]}{more}: copy it again")
    if unused := sorted(name for name in told["unexpected_keys"] if not name.endswith("position_ids")):
        log.warning(
            "%d tensors in %s are not in the model that its config describes, such as %s: they are not used",
            len(unused), folder, quoted(unused[0]),
        )  # fmt: skip
    return module
