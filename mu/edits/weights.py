"""Dense edits: a delta for each named weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor
from typing_extensions import Self

from mu.core.errors import EditError, SelectionError, titled
from mu.edits.edit import Edit, EditInfo, shifted
from mu.models.parameters import EditableModel, find_parameter


class WeightEdit(Edit):
    """``W + strength * delta`` for each named weight; ``shifts`` holds the deltas."""

    kind: ClassVar[str] = "weights"

    def __init__(self, shifts: Mapping[str, Tensor], info: EditInfo):
        if not shifts:
            raise SelectionError("an edit must change at least one parameter")
        self.shifts = {name: shift.detach() for name, shift in shifts.items()}
        self.info = info

    @property
    def parameters(self) -> list[str]:
        return list(self.shifts)

    def delta(self, parameter: str) -> Tensor:
        return self.shifts[parameter]

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}.shift": shift for name, shift in self.shifts.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], info: EditInfo) -> WeightEdit:
        """The inverse of `tensors`."""
        return cls({name.removesuffix(".shift"): value for name, value in tensors.items()}, info)

    def scaled(self, strength: float) -> Self:
        return type(self)({name: shift * strength for name, shift in self.shifts.items()}, self.info)

    @contextmanager
    def put_on(self, model: EditableModel, strength: float) -> Iterator[None]:
        with shifted(model, ((name, shift.float() * strength) for name, shift in self.shifts.items())):
            yield

    def check(self, model: EditableModel) -> None:
        for name, shift in self.shifts.items():
            there, here = tuple(find_parameter(model, name).shape), tuple(shift.shape)
            if there != here:
                raise EditError(
                    f"{name} is {there} in {titled(model.name)} but {here} in the edit: use a model of the "
                    "edit's architecture"
                )
