"""Gradients of a CLIP's losses as files: one ``.safetensors`` that says of what it is the gradient, and with which sign.

The pickles of SLUG's released programs (``forget_grads.pt``, name -> tensor) say neither; they are read, never run, where the
settings tell their sign.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mu.core.concept import folded
from mu.core.errors import DataError, EditError, OutputError
from mu.core.files import check_writing
from mu.core.run import versions
from mu.edits.edit import described, is_base
from mu.edits.tensor_file import write_tensors
from mu.models.formats.checkpoint import PICKLES, SUFFIXES, read_state_dict
from mu.models.formats.open_clip_names import from_clip
from mu.models.parameters import EditableModel, find_parameter

FORMAT = 1
Kind = Literal["forget", "retain"]
Sign = Literal["+", "-"]


@dataclass(frozen=True)
class GradientInfo:
    """What a file holds the gradient of: the mean ``loss`` of ``pairs`` pairs. ``concept`` is that of a forget gradient.

    ``batch_size`` is the number of pairs that stand against each other, None for a loss of single pairs. ``sign`` is always
    that of the gradient itself, so that a step along it makes the loss larger.
    """

    kind: Kind
    loss: str
    pairs: int
    batch_size: int | None = None
    captions: str = "own"
    concept: str = ""
    model: str = ""
    fingerprint: str = ""
    sign: str = "+grad"
    versions: Mapping[str, str] = field(default_factory=versions)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_gradient_file(source: str) -> bool:
    """Whether a source of pairs is named as a file of gradients is."""
    return Path(source).suffix.lower() in SUFFIXES


def described_model(model: EditableModel, names: Iterable[str]) -> dict[str, Any]:
    """``model`` and ``fingerprint`` for a `GradientInfo` of gradients of the tensors ``names``."""
    base = described(model, list(names))
    return {"model": base["base"], "fingerprint": base["fingerprint"]}


def refuse(path: Path | str, *, overwrite: bool = False) -> None:
    """`OutputError` where `write_gradients` would not write: to be asked before the hours that gradients may take."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: gradients are saved as .safetensors")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or pass --overwrite")
    check_writing(path)


def write_gradients(path: Path | str, gradients: Mapping[str, Tensor], info: GradientInfo, *, overwrite: bool = False) -> None:
    """Atomically, in float32. `OutputError` where the file exists, or cannot be written; `DataError` for gradients that are not finite."""
    refuse(path, overwrite=overwrite)
    for name, tensor in gradients.items():
        check_finite(name, tensor)
    facts = {f"mu.{key}": json.dumps(value) for key, value in info.to_json().items()}
    write_tensors(path, {name: tensor.float() for name, tensor in gradients.items()}, facts)


def check_finite(name: str, gradient: Tensor) -> None:
    """`DataError` where a number is not."""
    if not gradient.isfinite().all():
        raise DataError(f"the gradient of {name} is not finite: compute in float32, and look for broken weights or pictures")


def open_gradients(path: Path | str) -> tuple[GradientInfo | None, dict[str, Tensor]]:
    """The tensors of a file and what it says of them: None where it says nothing, as files made elsewhere.

    Raises `DataError` for a file that is missing, truncated or holds something else, and as `read_state_dict` does for a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"the gradient file {path} does not exist: make it with mu gradients")
    if path.suffix.lower() in PICKLES:
        return None, read_state_dict(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is damaged or no safetensors file ({error}): make or copy it again") from None
    if not any(key.startswith("mu.") for key in metadata):
        return None, tensors
    try:
        facts = {key.removeprefix("mu."): json.loads(value) for key, value in metadata.items() if key.startswith("mu.")}
        if facts["kind"] not in ("forget", "retain"):
            raise DataError(f"{path} holds no gradients but an edit: make it with mu gradients")
        if facts["format"] > FORMAT:
            raise DataError(f"{path} has format {facts['format']}, newer than this version of mu knows ({FORMAT}): upgrade mu")
        info = GradientInfo(**facts)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the metadata of {path} is not that of gradients ({error})") from None
    if info.sign != "+grad":
        raise DataError(f"{path} holds {info.sign!r}, and mu writes '+grad' only: make it again with mu gradients")
    return info, tensors


def read_gradients(
    path: Path | str, model: EditableModel, names: Collection[str], sign: Sign | None = None, **wanted: object
) -> dict[str, Tensor]:
    """+grad of the loss with regard to each of ``names``, on ``model``'s device.

    ``wanted`` are facts of `GradientInfo` that must be so (``kind="forget"``). A file that says nothing of itself is read only
    with ``sign``: ``-`` for the negated loss, as of the released open_clip programs; its names may be open_clip's or transformers'. Raises
    `DataError` for another loss, concept or model than wanted, and for a file without one of ``names``.
    """
    info, tensors = open_gradients(path)
    if info is None:
        if sign is None:
            raise DataError(
                f"{path} does not say whether it holds the gradient or its negative: set gradients.grad_sign to + or - "
                "(- for a file of SLUG's open_clip programs), or make one with mu gradients"
            )
        tensors = from_clip(tensors)
    else:
        _agree(path, info, sign, wanted)
    found = {}
    for name in tensors if info else names:
        if name not in tensors:
            raise DataError(f"{path} holds no gradient of {name}: it was made for other layers or another model")
        try:
            parameter = find_parameter(model, name)
        except EditError:
            raise DataError(f"{path} holds a gradient of {name}, which {model.name!r} has not: it is another model's") from None
        if parameter.shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(parameter.shape)
            raise DataError(f"{name} is {shapes[0]} in {path} and {shapes[1]} in {model.name!r}: the file is another model's")
        found[name] = tensors[name].float().to(parameter.device)
    if info and not is_base(model, list(tensors), info.fingerprint):
        raise DataError(
            f"{path} was made on other weights ({info.model!r}) than those of {model.name!r}: make it again with mu gradients"
        )
    if lost := [name for name in names if name not in found]:
        raise DataError(f"{path} holds no gradient of {lost[0]}: make it again with mu gradients and the same layers.exclude")
    return {name: -found[name] if sign == "-" else found[name] for name in names}


def _agree(path: Path | str, info: GradientInfo, sign: Sign | None, wanted: Mapping[str, object]) -> None:
    if sign == "-":
        raise DataError(f"{path} says that it holds the gradient itself: leave gradients.grad_sign out")
    for fact, value in wanted.items():
        known = getattr(info, fact)
        same = folded(known) == folded(str(value)) if fact == "concept" else known == value
        if not same:
            what = fact.replace("_", " ")
            raise DataError(
                f"{path} was made with {what} {known!r}, and the settings say {value!r}: give another file or change them"
            )
