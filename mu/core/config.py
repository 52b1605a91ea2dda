"""Settings: typed, nested, never changed in place. Unknown names are refused with the nearest known one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from mu.core.errors import ConfigError, nearest


class BaseConfig(BaseModel):
    """Base of every method's settings. Each field has a description that says its consequence and unit."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate plain values; raises `ConfigError` in one line that names the key."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(_one_line(cls, error)) from None

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a YAML file. Numbers written like ``1e-4`` (strings to YAML) are numbers here."""
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ConfigError(f"config file {path} must hold keys and values, not a {type(values).__name__}")
        return cls.parse(values)

    def merged(self, *overrides: Mapping[str, Any]) -> Self:
        """A copy with nested or dotted overrides on top, validated; ``self`` stays as it is.

        Only what was set, here or in the overrides, counts as set in the copy: derived defaults stay derived.
        """
        values = values_set(self)
        for layer in overrides:
            values = _merge(values, layer)
        return type(self).parse(values)

    def to_yaml(self, comments: bool = True) -> str:
        """All settings as YAML; with ``comments``, each under what it does."""
        return "\n".join(_yaml_lines(self, comments, 0)) + "\n"


def _with_a_place(templates: list[str]) -> list[str]:
    if any(template.count("{}") != 1 for template in templates):
        raise ValueError("each template needs exactly one {}")
    return templates


Templates = Annotated[list[str], AfterValidator(_with_a_place)]
"""Type of a setting that holds prompts around a concept, whose place in each is ``{}``."""


def read_yaml(path: Path | str) -> Any:
    """What a YAML file holds; an empty file is ``{}``. `ConfigError` where it is missing or no YAML."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path} is no text in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror or error}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        raise ConfigError(f"config file {path} is not YAML{f' (line {where.line + 1})' if where else ''}") from None
    return {} if values is None else values


def values_set(config: BaseModel) -> dict[str, Any]:
    """What was set, nested. A section that was only edited by attribute (``config.train.lr = 1e-3``) counts: pydantic's own
    ``exclude_unset`` drops it with its defaulted parent."""
    values: dict[str, Any] = {}
    dumped = config.model_dump(include=config.model_fields_set, exclude_unset=True)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            below = values_set(value)
            if below or name in config.model_fields_set:
                values[name] = below
        elif name in dumped:
            values[name] = dumped[name]
    return values


def _merge(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in layer.items():
        key, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, BaseModel):
            value = values_set(value)
        if isinstance(value, Mapping):
            below = merged.get(key)
            value = _merge(below if isinstance(below, Mapping) else {}, value)
        merged[key] = value
    return merged


def _section(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The settings class that holds the last name of ``location``."""
    for name in location[:-1]:
        field = cls.model_fields.get(str(name)) if isinstance(name, str) else None
        inner = _models(field.annotation) if field else []
        if field and not inner:
            return None
        cls = inner[0] if inner else cls
    return cls


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in an annotation: itself, or inside ``X | None``, ``list[X] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _one_line(cls: type[BaseModel], error: ValidationError) -> str:
    first, *others = error.errors()
    name = ".".join(str(part) for part in first["loc"]) or cls.__name__
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        section = _section(cls, first["loc"])
        return f"unknown setting {name!r}.{nearest(str(first['loc'][-1]), section.model_fields if section else ())}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("value_error", "missing"):
        return f"{name}: {message}{more}"
    return f"{name}: {message}, got {first['input']!r}{more}"


def _yaml_lines(config: BaseModel, comments: bool, depth: int) -> list[str]:
    indent, lines = "  " * depth, []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if comments and field.description:
            lines += textwrap.wrap(" ".join(field.description.split()), 110 - len(indent), initial_indent=indent + "# ", subsequent_indent=indent + "# ")  # fmt: skip
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_yaml_lines(value, comments, depth + 1)]
        else:
            plain = config.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump({name: plain}, sort_keys=False, allow_unicode=True, width=10_000).rstrip()
            lines += [indent + line for line in text.split("\n")]
    return lines
