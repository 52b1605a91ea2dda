"""Gradient files: gradients of a CLIP's losses in a ``.safetensors`` file that states the loss and the sign.

The pickles of SLUG's released programs (``forget_grads.pt``, name -> tensor) state neither. They are read, never
executed, if the settings give their sign.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mu.core.concept import folded
from mu.core.documents import parse_json
from mu.core.errors import DataError, EditError, OutputError, quoted, titled
from mu.core.files import check_writing
from mu.core.records import wrong
from mu.core.run import versions
from mu.edits.edit import described, is_base
from mu.edits.tensor_file import write_tensors
from mu.models.formats.checkpoint import PICKLES, read_state_dict
from mu.models.formats.open_clip_names import from_clip
from mu.models.parameters import EditableModel, find_parameter

FORMAT = 1
Kind = Literal["forget", "retain"]
Sign = Literal["+", "-"]


@dataclass(frozen=True)
class GradientInfo:
    """Describes a gradient file: the gradient of the mean ``loss`` of ``pairs`` pairs.

    ``concept`` is empty in a retain gradient. ``batch_size`` is the number of pairs that the loss compares with each
    other, None for a loss of single pairs. ``sign`` is always that of the gradient: a step along it increases the loss.
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


_INFO = TypeAdapter(GradientInfo)


def described_model(model: EditableModel, names: Iterable[str]) -> dict[str, Any]:
    """Return ``model`` and ``fingerprint`` for the `GradientInfo` of the tensors ``names``."""
    base = described(model, list(names))
    return {"model": base["base"], "fingerprint": base["fingerprint"]}


def refuse(path: Path | str, *, overwrite: bool = False) -> None:
    """Raise `OutputError` if `write_gradients` could not write. Call it first: gradients may take hours."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: gradients are saved as .safetensors")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or pass --overwrite")
    check_writing(path)


def write_gradients(
    path: Path | str, gradients: Mapping[str, Tensor], info: GradientInfo, *, overwrite: bool = False
) -> None:
    """Write a gradient file atomically, in float32.

    Raises `OutputError` if the file exists or cannot be written, `DataError` if a gradient is not finite.
    """
    refuse(path, overwrite=overwrite)
    for name, tensor in gradients.items():
        check_finite(name, tensor)
    facts = {f"mu.{key}": json.dumps(value) for key, value in info.to_json().items()}
    write_tensors(path, {name: tensor.float() for name, tensor in gradients.items()}, facts)


def check_finite(name: str, gradient: Tensor) -> None:
    """Raise `DataError` if a value of ``gradient`` is not finite."""
    if not gradient.isfinite().all():
        raise DataError(f"the gradient of {name} is not finite: compute in float32, and check the weights and images")


def open_gradients(path: Path | str) -> tuple[GradientInfo | None, dict[str, Tensor]]:
    """Return a file's `GradientInfo` and its tensors. The info is None if the file has none, as when made elsewhere.

    Raises `DataError` for a file that is missing, truncated or holds something else. For a pickle, raises what
    `read_state_dict` raises.
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
        raise DataError(f"{path} is damaged or not a safetensors file ({error}): make or copy it again") from None
    if not any(key.startswith("mu.") for key in metadata):
        return None, tensors
    try:
        facts = {
            key.removeprefix("mu."): parse_json(value, f"{path}, {key}")
            for key, value in metadata.items()
            if key.startswith("mu.")
        }
        if facts["kind"] not in ("forget", "retain"):
            raise DataError(f"{path} holds an edit, not gradients: make a file with mu gradients")
        if facts["format"] > FORMAT:
            raise DataError(
                f"{path} has format {facts['format']}, newer than this version of mu reads ({FORMAT}): upgrade mu"
            )
        info = _INFO.validate_python(vars(GradientInfo(**facts)))
    except ValidationError as error:
        place, what = wrong(error)
        raise DataError(f"{path}, mu.{place}: {what}: make it again with mu gradients") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has no valid gradient metadata ({error}): make it again with mu gradients") from None
    if info.sign != "+grad":
        raise DataError(
            f"{path} has sign {quoted(info.sign)}, but mu reads only '+grad': make it again with mu gradients"
        )
    return info, tensors


def read_gradients(
    path: Path | str, model: EditableModel, names: Collection[str], sign: Sign | None = None, **wanted: object
) -> dict[str, Tensor]:
    """Return +grad of the loss for each of ``names``, on ``model``'s device.

    ``wanted`` are required values of `GradientInfo` (``kind="forget"``). A file without a `GradientInfo` is read only
    with ``sign``: ``-`` for the negated loss, as in files of the released open_clip programs. Its names may be those of
    open_clip or transformers. Raises `DataError` for another loss, concept or model than wanted, and for a file without
    one of ``names``.
    """
    info, tensors = open_gradients(path)
    if info is None:
        if sign is None:
            raise DataError(
                f"{path} does not state whether it holds the gradient or its negative: set "
                "gradients.grad_sign to + or - "
                "(- for a file of SLUG's open_clip programs), or make one with mu gradients"
            )
        tensors = from_clip(tensors)
    else:
        _agree(path, info, sign, wanted)
    found = {}
    for name in tensors if info else names:
        if name not in tensors:
            raise DataError(f"{path} holds no gradient of {name}: use a file made for these layers and this model")
        try:
            parameter = find_parameter(model, name)
        except EditError:
            raise DataError(
                f"{path} holds a gradient of {name}, which {titled(model.name)} lacks: use a file made for this model"
            ) from None
        if parameter.shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(parameter.shape)
            raise DataError(
                f"{name} is {shapes[0]} in {path} and {shapes[1]} in {titled(model.name)}: use a file made for "
                "this model"
            )
        found[name] = tensors[name].float().to(parameter.device)
    if info and not is_base(model, list(tensors), info.fingerprint):
        raise DataError(
            f"{path} was made on other weights ({titled(info.model)}) than those of {titled(model.name)}: make it "
            "again with mu gradients"
        )
    if lost := [name for name in names if name not in found]:
        raise DataError(
            f"{path} holds no gradient of {lost[0]}: make it again with mu gradients and the same layers.exclude"
        )
    return {name: -found[name] if sign == "-" else found[name] for name in names}


def _agree(path: Path | str, info: GradientInfo, sign: Sign | None, wanted: Mapping[str, object]) -> None:
    if sign == "-":
        raise DataError(f"{path} states that it holds the gradient itself: leave gradients.grad_sign out")
    for fact, value in wanted.items():
        known = getattr(info, fact)
        same = folded(known) == folded(str(value)) if fact == "concept" else known == value
        if not same:
            what = fact.replace("_", " ")
            raise DataError(
                f"{path} was made with {what} {quoted(known)}, but the settings say {quoted(value)}: give another file "
                "or change them"
            )
