"""The one idea of this package: every method returns an edit, and an edit does not depend on how it was found."""

from __future__ import annotations

import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor
from typing_extensions import Self

from mu.core.errors import EditError, quoted
from mu.core.run import versions
from mu.edits.gates import OPEN, Gate, gate_from_json, gate_to_json
from mu.edits.tensor_file import write_tensors
from mu.models.mapped import Keeper
from mu.models.parameters import BEFORE_EDITS, EditableModel, find_parameter, fingerprint, select

FORMAT = 1

log = logging.getLogger("mu")


@dataclass(frozen=True)
class EditInfo:
    """The origin of an edit. The edit's file holds every field."""

    method: str
    concepts: tuple[str, ...]
    base: str = ""
    fingerprint: str = ""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """The options that a diffusion model was loaded with: see `mu.models.load_options`."""
    gate: Gate = OPEN
    """How much of the edit passes for a prompt."""
    config: Mapping[str, Any] = field(default_factory=dict)
    protects: tuple[str, ...] = ()
    """Prompts that the edit leaves exactly unchanged."""
    spares: tuple[str, ...] = ()
    """Prompts that the edit leaves unchanged up to a leak."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """Results of the search, in the method's own terms."""
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    citation: str = ""
    format: int = FORMAT

    @property
    def promises(self) -> tuple[str, ...]:
        """All prompts that the edit leaves unchanged, exactly or up to a leak."""
        return (*self.protects, *self.spares)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gate": gate_to_json(self.gate)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> EditInfo:
        """The inverse of `to_json`.

        Raises `TypeError` for an unknown name, `ConfigError` for an unknown gate, and pydantic's `ValidationError` for
        a value of another type.
        """
        several = {name: facts.get(name, ()) for name in ("concepts", "protects", "spares")}
        given = cls(**{**facts, **several, "gate": gate_from_json(facts.get("gate") or {})})
        return _INFO.validate_python({each.name: getattr(given, each.name) for each in fields(given)})


_INFO = TypeAdapter(EditInfo)


class Edit(ABC):
    """A change of some parameters. It can be applied, taken off, scaled, added to other edits and saved to a file.

    Three laws are tested for every kind. Taking an edit off restores the original tensors bit for bit, also after an
    exception. ``strength=0`` changes nothing. A low-rank edit equals its dense delta.
    """

    info: EditInfo
    kind: ClassVar[str]
    """The name of this kind of edit in its file."""

    @property
    def gate(self) -> Gate:
        """The gate that the edit runs with: dense edits have none, whatever their file states."""
        return OPEN

    @property
    @abstractmethod
    def parameters(self) -> list[str]:
        """Full names of the parameters that the edit changes: ``unet.mid_block....weight``."""

    @abstractmethod
    def delta(self, parameter: str) -> Tensor:
        """The dense delta of one of `parameters` at strength 1."""

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and its dense delta at strength 1, one at a time."""
        return ((name, self.delta(name)) for name in self.parameters)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the edit's file holds."""

    @abstractmethod
    def check(self, model: EditableModel) -> None:
        """Raise `EditError` if ``model`` lacks a parameter or has it in another shape."""

    @abstractmethod
    def put_on(self, model: EditableModel, strength: float) -> AbstractContextManager[Any]:
        """Apply the edit inside the block and remove it completely after. ``model`` was checked."""

    @contextmanager
    def applied(self, model: EditableModel, strength: float = 1.0) -> Iterator[Any]:
        """Apply the edit inside the block, whoever runs the model: ``with edit.applied(model): ...``.

        The gate belongs to the edit. mu's sampler, your own loop and the stock pipeline all run the same gated edit.
        Raises `EditError` for an edit that does not fit the model.
        """
        self.check(model)
        check_strength(strength)
        warn_of_other_base(self, model)
        with self.put_on(model, strength) if strength else nullcontext() as on:
            yield on

    @abstractmethod
    def scaled(self, strength: float) -> Self:
        """This edit times ``strength``, as an edit of its own."""

    def save(self, path: Path | str) -> None:
        """Write one ``.safetensors`` file, atomically. Raises `EditError` for values that are not finite."""
        tensors = self.tensors()
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise EditError(
                    f"the edit of {quoted(self.concept())} is not finite in {name}, so its search diverged: "
                    "lower the learning rate"
                )
        facts = {"kind": self.kind, **self.info.to_json()}
        write_tensors(path, tensors, {f"mu.{key}": json.dumps(value) for key, value in facts.items()})

    def concept(self) -> str:
        """The edit's concepts as one line; for an edit of another tool that names none, its file's name."""
        return ", ".join(self.info.concepts) or str(self.info.config.get("file", ""))


def check_strength(strength: float) -> None:
    """Raise `EditError` if ``strength`` is not a finite number."""
    if not math.isfinite(strength):
        raise EditError(f"an edit's strength must be a number, not {strength}")


@contextmanager
def shifted(model: EditableModel, shifts: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """Add the deltas ``shifts`` to the named parameters; afterwards copy the originals back (never subtract).

    Pairs are taken one at a time, each name once. Many originals wait in files: see `mu.models.mapped.Keeper`.
    """
    kept: dict[str, Tensor] = {}
    keeper = Keeper()
    try:
        with torch.no_grad():
            for name, shift in shifts.items() if isinstance(shifts, Mapping) else shifts:
                parameter = find_parameter(model, name)
                kept[name] = keeper.copy(parameter)
                if not hasattr(parameter, BEFORE_EDITS):
                    setattr(parameter, BEFORE_EDITS, kept[name])
                parameter.add_(shift.to(parameter.device, parameter.dtype).reshape(parameter.shape))
        yield
    finally:
        with torch.no_grad():
            for name, original in kept.items():
                parameter = find_parameter(model, name)
                parameter.copy_(original)
                if getattr(parameter, BEFORE_EDITS, None) is original:
                    delattr(parameter, BEFORE_EDITS)


def described(model: EditableModel, parameters: list[str]) -> dict[str, Any]:
    """``base``, ``fingerprint`` and ``loading`` for an `EditInfo` of an edit found on ``model``.

    The fingerprint samples about 4096 values of each tensor. It distinguishes checkpoints, but does not prove that two
    are equal.
    """
    prints = " ".join(_fingerprints(model, parameters))
    return {"base": model.name, "fingerprint": prints, "loading": getattr(model, "loading", {})}


def base_fingerprint(model: EditableModel) -> str:
    """The fingerprint of all weights of ``model``, sampled as by `described`: what a run notes of its base."""
    return str(described(model, list(select(model, "*")))["fingerprint"])


def warn_of_other_base(edit: Edit, model: EditableModel) -> None:
    """Warn if ``edit`` was found on other weights or with other load options than those of ``model``.

    Transfer is allowed. Edits from other tools state no base and are not compared. With other edits applied, either
    the edited or the original weights may match.
    """
    if not is_found_on(edit, model):
        half = any(find_parameter(model, name).dtype != torch.float32 for name in edit.parameters)
        log.warning(
            "the edit of %r was found on other weights (%r) than those of %r%s",
            edit.concept(),
            edit.info.base,
            model.name,
            ", or on the same weights in the other half precision" if half else "",
        )
    for option, found in getattr(model, "loading", {}).items():
        if edit.info.loading.get(option, found) != found:
            log.warning(
                "the edit of %r was found with %s %s, but %r is loaded with %s",
                edit.concept(),
                option,
                edit.info.loading[option],
                model.name,
                found,
            )


def is_found_on(edit: Edit, model: EditableModel) -> bool:
    """Whether ``edit`` was found on the weights of ``model``. True if it has no fingerprint (made by another tool)."""
    return not edit.info.fingerprint or is_base(model, edit.parameters, edit.info.fingerprint)


def is_base(model: EditableModel, parameters: list[str], known: str) -> bool:
    """Whether the fingerprint ``known`` (see `described`) is that of ``model``, with or without its applied edits."""
    for before in (False, True):
        found = _fingerprints(model, parameters, before_edits=before)
        if any(a == b for a, b in zip(known.split(), found, strict=False)):  # older files hold the first one only
            return True
    return False


def _fingerprints(model: EditableModel, parameters: list[str], *, before_edits: bool = False) -> list[str]:
    """The fingerprints in float16 and in bfloat16.

    One of the two is equal for a model loaded in float32 and in one half precision. None is equal between float16 and
    bfloat16, because each rounds away bits that the other keeps.
    """
    halves = (torch.float16, torch.bfloat16)
    return [fingerprint(model, parameters, _SAMPLED, precision=half, before_edits=before_edits) for half in halves]


_SAMPLED = 4096
