"""The one idea of this package: every method returns an edit, and an edit knows nothing of how it was found."""

from __future__ import annotations

import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mu.core.errors import EditError
from mu.core.run import versions
from mu.edits.gates import OPEN, Gate, gate_from_json, gate_to_json
from mu.edits.tensor_file import write_tensors
from mu.models.parameters import BEFORE_EDITS, EditableModel, find_parameter, fingerprint

FORMAT = 1

log = logging.getLogger("mu")


@dataclass(frozen=True)
class EditInfo:
    """Where an edit comes from; all of it is in its file."""

    method: str
    concepts: tuple[str, ...]
    base: str = ""
    fingerprint: str = ""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """How a diffusion model was loaded: see `mu.models.load_options`."""
    gate: Gate = OPEN
    """How much of it passes for a prompt."""
    config: Mapping[str, Any] = field(default_factory=dict)
    protects: tuple[str, ...] = ()
    """Prompts that it leaves exactly as they are."""
    spares: tuple[str, ...] = ()
    """Prompts that it leaves alone up to a leak."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What its search came to, as the method tells it."""
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    citation: str = ""
    format: int = FORMAT

    @property
    def promises(self) -> tuple[str, ...]:
        """All prompts that it leaves alone, exactly or up to a leak."""
        return (*self.protects, *self.spares)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gate": gate_to_json(self.gate)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> EditInfo:
        """The inverse of `to_json`. Raises `TypeError` for names that are unknown and `ConfigError` for such a gate."""
        several = {name: tuple(facts.get(name, ())) for name in ("concepts", "protects", "spares")}
        return cls(**{**facts, **several, "gate": gate_from_json(facts.get("gate") or {})})


class Edit(ABC):
    """A change of some parameters that can be put on, taken off, scaled, added to others and kept in a file.

    Laws, tested for every kind: taking an edit off restores the kept tensors bit for bit, also after an exception;
    ``strength=0`` changes nothing; a low-rank edit equals its dense twin.
    """

    info: EditInfo
    kind: ClassVar[str]
    """What its file calls this kind of edit."""

    @property
    @abstractmethod
    def parameters(self) -> list[str]:
        """Full names of the parameters it changes: ``unet.mid_block....weight``."""

    @abstractmethod
    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter with its dense shift at strength 1, one at a time."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What its file holds."""

    @abstractmethod
    def check(self, model: EditableModel) -> None:
        """Raise `EditError` where ``model`` lacks a parameter or has another shape."""

    @abstractmethod
    def put_on(self, model: EditableModel, strength: float) -> AbstractContextManager[Any]:
        """The edit is on inside the block, and nothing is left of it after; ``model`` was checked."""

    @contextmanager
    def applied(self, model: EditableModel, strength: float = 1.0) -> Iterator[Any]:
        """``with edit.applied(model): ...``: the edit is on inside the block, whoever runs the model there.

        A gate belongs to the edit: our sampler, a loop of your own and the stock pipeline meet the same gated edit. Raises
        `EditError` for an edit that does not fit the model.
        """
        self.check(model)
        check_strength(strength)
        warn_of_other_base(self, model)
        with self.put_on(model, strength) if strength else nullcontext() as on:
            yield on

    def save(self, path: Path | str) -> None:
        """Write one ``.safetensors`` file, atomically. Raises `EditError` for values that are not finite."""
        tensors = self.tensors()
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise EditError(
                    f"the edit of {self.concept()!r} is not finite in {name}: its search diverged, lower the learning rate"
                )
        facts = {"kind": self.kind, **self.info.to_json()}
        write_tensors(path, tensors, {f"mu.{key}": json.dumps(value) for key, value in facts.items()})

    def concept(self) -> str:
        """Its concepts as one line."""
        return ", ".join(self.info.concepts)


def check_strength(strength: float) -> None:
    """Raise `EditError` for a ``strength`` that is no finite number."""
    if not math.isfinite(strength):
        raise EditError(f"an edit's strength must be a number, not {strength}")


@contextmanager
def shifted(model: EditableModel, shifts: Mapping[str, Tensor]) -> Iterator[None]:
    """Add ``shifts`` to the named parameters; afterwards copy the kept originals back (never subtract)."""
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, shift in shifts.items():
                parameter = find_parameter(model, name)
                kept[name] = parameter.detach().clone()
                if not hasattr(parameter, BEFORE_EDITS):
                    setattr(parameter, BEFORE_EDITS, kept[name])
                parameter.copy_(kept[name] + shift.to(parameter.device, parameter.dtype).reshape(parameter.shape))
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

    The fingerprint is of about 4096 values of each tensor: it tells checkpoints apart, and is no proof that two are equal.
    """
    prints = " ".join(_fingerprints(model, parameters))
    return {"base": model.name, "fingerprint": prints, "loading": getattr(model, "loading", {})}


def warn_of_other_base(edit: Edit, model: EditableModel) -> None:
    """Transfer is a feature; that it happens is said. Edits made elsewhere know no base and are not compared.

    Inside other edits the base is the model with them, where the edit was found so, or without.
    """
    if not is_found_on(edit, model):
        half = any(find_parameter(model, name).dtype != torch.float32 for name in edit.parameters)
        log.warning(
            "the edit of %r was found on other weights (%r) than those of %r%s", edit.concept(), edit.info.base, model.name,
            ", or on the same in another half precision" if half else "",
        )  # fmt: skip
    for option, found in getattr(model, "loading", {}).items():
        if edit.info.loading.get(option, found) != found:
            log.warning(
                "the edit of %r was found with %s %s, and %r is loaded with %s", edit.concept(), option, edit.info.loading[option],
                model.name, found,
            )  # fmt: skip


def is_found_on(edit: Edit, model: EditableModel) -> bool:
    """Whether ``edit`` is of the weights of ``model``, as far as it tells: one made elsewhere does not."""
    return not edit.info.fingerprint or is_base(model, edit.parameters, edit.info.fingerprint)


def is_base(model: EditableModel, parameters: list[str], known: str) -> bool:
    """Whether ``known``, the fingerprint of `described`, is that of ``model``, with or without the edits that are on it."""
    for before in (False, True):
        found = _fingerprints(model, parameters, before_edits=before)
        if any(a == b for a, b in zip(known.split(), found, strict=False)):  # older files hold the first one only
            return True
    return False


def _fingerprints(model: EditableModel, parameters: list[str], *, before_edits: bool = False) -> list[str]:
    """In float16 and in bfloat16: of one model loaded in two precisions, float32 among them, one of them is equal.

    Between float16 and bfloat16 none is: neither holds what the other has left of the weights.
    """
    halves = (torch.float16, torch.bfloat16)
    return [fingerprint(model, parameters, _SAMPLED, precision=half, before_edits=before_edits) for half in halves]


_SAMPLED = 4096
