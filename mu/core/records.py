"""Typed content of a run's files. Errors name the file and the key."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from mu.core.documents import parse_json
from mu.core.errors import DataError, MuError, quoted, titled
from mu.core.files import read_text

T = TypeVar("T")

Finite = Annotated[float, Field(allow_inf_nan=False)]


def _inside(name: str) -> str:
    parts = PureWindowsPath(name)
    if parts.anchor or ".." in parts.parts or "\0" in name:
        raise ValueError(f"the path {titled(name)} leaves the run folder")
    return name


PathInRun = Annotated[str, AfterValidator(_inside)]
"""The path of a file or folder in a run's folder."""


class Origin(BaseModel):
    """``environment.json``: the origin of the run's edit. Other keys are allowed."""

    model_config = ConfigDict(coerce_numbers_to_str=True, protected_namespaces=())

    method: str = ""
    model: str | None = None
    concepts: list[str] | str = []
    seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    mended: dict[str, Finite] = {}
    """The share of its effect that each older edit of the bank kept when it was changed for this run's concepts."""
    citation: str = ""
    platform: str = ""
    versions: dict[str, str] = {}

    def concept_names(self) -> list[str]:
        return [self.concepts] if isinstance(self.concepts, str) else self.concepts


class MetricsRow(BaseModel):
    """A line of ``metrics.jsonl``: the step and its logged values, which need not be finite."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    step: float = Field(ge=0, le=2**53)


class Prompt(BaseModel):
    """An entry of ``prompts.json``; its image k is ``<case_number>_<k>.png``."""

    case_number: int | str
    prompt: str
    seed: int | None = None
    """The seed of image 0."""
    role: str = ""
    """``target`` for a prompt of the concept to erase, ``retain`` for one to retain."""
    gate: list[float] | None = None
    """The gate of each edit for this prompt."""


class PanelRow(BaseModel):
    label: str
    images: list[str | None]
    """Paths in the run folder, one per column; None leaves a gap."""


class Panel(BaseModel):
    """An entry of ``panels.json``: a grid of images."""

    title: str
    columns: list[str]
    rows: list[PanelRow]

    @model_validator(mode="after")
    def _filled(self) -> Self:
        for row in self.rows:
            if len(row.images) != len(self.columns):
                found = f"row {quoted(row.label)} of {quoted(self.title)} has {len(row.images)} images"
                raise ValueError(f"{found} for {len(self.columns)} columns")
        return self


def read_json(path: Path, *, error: type[MuError] = DataError) -> Any:
    """The JSON content of ``path``. Raises ``error`` as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, error=error), str(path), error=error)


def checked(path: Path | str, content: Any, kind: Any, key: str = "") -> Any:
    """Validate ``content`` of ``path`` as ``kind``, any type pydantic accepts; ``key`` is its place in the file.

    Raises `DataError` that names the file and the first wrong key.
    """
    found = _unsound(content)
    if found is None:
        try:
            return _adapter(kind).validate_python(content)
        except ValidationError as error:
            found = wrong(error)
    place = ".".join(filter(None, [key, found[0]]))
    raise DataError(f"{path}: {f'{place}: ' if place else ''}{found[1]}: repair it or make it again")


def _unsound(content: Any) -> tuple[str, str] | None:
    """The place of a number beyond 64 bits, which no setting means, and what is wrong with it; None without one."""
    left: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while left:
        place, value = left.pop()
        match value:
            case dict():
                left += [((place, key), below) for key, below in value.items()]
            case list():
                left += [((place, k), below) for k, below in enumerate(value)]
            case int() if not -(2**63) <= value < 2**64:
                parts: list[str] = []
                while place:
                    place, part = place
                    parts.append(str(part))
                return ".".join(reversed(parts)), "the number is beyond 64 bits"
    return None


def wrong(error: ValidationError) -> tuple[str, str]:
    """The place of the first error, with points between its parts, and what is wrong there."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    wanted = _WANTED.get(first["type"].removesuffix("_type").removesuffix("_parsing"))
    if first["type"] == "missing":
        return where, "it is missing"
    if wanted:
        return where, f"expected {wanted}, not {_KINDS.get(type(first['input']), type(first['input']).__name__)}"
    return where, first["msg"].removeprefix("Value error, ")


_WANTED = {
    "float": "a number",
    "finite_number": "a finite number",
    "int": "a whole number",
    "int_from_float": "a whole number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "names and values",
    "mapping": "names and values",
    "model": "names and values",
    "dataclass": "names and values",
}
"""What a value must be, by the type of pydantic's error without its ending."""

_KINDS = {str: "text", list: "a list", dict: "names and values", int: "a number", float: "a number", type(None): "null"}
"""What a value is instead."""


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_record(path: Path, kind: type[T]) -> T:
    """The content of ``path`` as ``kind``. Raises `DataError` as `read_json` and `checked` do."""
    return checked(path, read_json(path), kind)
