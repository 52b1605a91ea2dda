"""Typed, nested settings; overrides make a copy. An unknown name raises an error that suggests the nearest."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler
from typing_extensions import Self

from mu.core.documents import DEEPEST, check_settings, parse_yaml, parse_yaml_written
from mu.core.errors import ConfigError, nearest, quoted, titled
from mu.core.files import read_text


class BaseConfig(BaseModel):
    """Base of every method's settings. Each field has a description with its consequence and unit."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), use_attribute_docstrings=True,
        allow_inf_nan=False,
    )  # fmt: skip

    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of settings, mapped to their present ones, so that old files and scripts still work."""

    @model_validator(mode="before")
    @classmethod
    def _by_present_names(cls, values: Any) -> Any:
        return _under_present_names(cls, values) if isinstance(values, Mapping) else values

    @classmethod
    def parse(cls, values: Mapping[str, Any], *overrides: Mapping[str, Any]) -> Self:
        """Validate plain values with nested or dotted overrides on top.

        Raises `ConfigError`, one line that names the key."""
        values = _under_present_names(cls, values)
        for layer in overrides:
            values = cls.put(values, _under_present_names(cls, _merge({}, layer)))
        check_settings(values, lambda place, trouble: ConfigError(f"{place or cls.__name__}: {trouble}"))
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(_one_line(cls, error)) from None

    @classmethod
    def load(cls, path: Path | str, *overrides: Mapping[str, Any]) -> Self:
        """Read a YAML file. ``1e-4``, which YAML reads as a string, becomes a number; see also `as_written`."""
        return cls.parse(read_settings(path, cls), *overrides)

    @classmethod
    def put(cls, values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``layer`` (nested or dotted keys) over plain ``values``, without validation."""
        return _merge(values, layer)

    def merged(self, *overrides: Mapping[str, Any]) -> Self:
        """Return a validated copy with nested or dotted overrides on top; ``self`` is unchanged.

        Only values set here or in the overrides count as set in the copy, so derived defaults stay derived.
        """
        return type(self).parse(values_set(self), *overrides)

    def to_yaml(self, comments: bool = True) -> str:
        """All settings as YAML; with ``comments``, each below its description."""
        return "\n".join(_yaml_lines(self, comments, 0)) + "\n"

    def idle(self) -> Mapping[str, str]:
        """Settings, by dotted name from here, that the other values leave without effect, each with the reason.

        Whether they were given does not matter here: `unused` leaves out those at their default."""
        return {}

    def unused(self) -> dict[str, str]:
        """The settings, here and below, that were given and have no effect: the reason of each, by dotted name."""
        found: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            value, why = getattr(self, name), _why_unused(field)
            if isinstance(value, BaseConfig):
                found |= {f"{name}.{below}": told for below, told in value.unused().items()}
            elif why and name in self.model_fields_set:
                found |= {f"{name}.{key}" if key else name: why for key in (value if isinstance(value, dict) else [""])}
        return found | self.departing(self.idle())

    def departing(self, idle: Mapping[str, str]) -> dict[str, str]:
        """What of ``idle``, settings by dotted name from here, was given and not as its default."""
        return {name: why for name, why in idle.items() if _departs(self, name)}

    def idle_below(self) -> dict[str, str]:
        """`idle` of these settings and of all sections below, by dotted name from here."""
        sections = [
            (name, value) for name in type(self).model_fields if isinstance(value := getattr(self, name), BaseConfig)
        ]
        below = {f"{name}.{key}": why for name, section in sections for key, why in section.idle_below().items()}
        return below | dict(self.idle())

    def notes(self) -> list[str]:
        """`unused` for people: one line for each reason."""
        return without_effect(self.unused())


def without_effect(unused: Mapping[str, str]) -> list[str]:
    """One line for each reason of settings without effect, given as the reason of each name."""
    names: dict[str, list[str]] = {}
    for name, why in unused.items():
        names.setdefault(why, []).append(name)
    return [
        f"{', '.join(found)} {'has' if len(found) == 1 else 'have'} no effect: {why}" for why, found in names.items()
    ]


def unused(default: Any, why: str, **bounds: Any) -> Any:
    """Declare a setting that is accepted and has no effect. ``why`` is its description, and what is told who sets it.

    For a setting that only some values of others leave without effect, see `BaseConfig.idle`."""
    return Field(default, description=f"No effect: {why}.", json_schema_extra={"unused": why}, **bounds)


def _why_unused(field: FieldInfo) -> str:
    return str(field.json_schema_extra.get("unused", "")) if isinstance(field.json_schema_extra, dict) else ""


def _departs(config: BaseModel, name: str) -> bool:
    """Whether the setting of this dotted name was given, and not as its default."""
    head, _, rest = name.partition(".")
    value = getattr(config, head)
    if isinstance(value, BaseModel):
        return _departs(value, rest) if rest else bool(values_set(value))
    default = type(config).model_fields[head].get_default(call_default_factory=True)
    return head in config.model_fields_set and value != default


class OldKeys(BaseConfig):
    """Obsolete keys of one section of the settings."""

    def check(self, live: Any) -> None:
        """Raise `ConfigError` if the old keys contradict the ``live`` settings of the same section."""


class Renewed(BaseConfig):
    """Settings that still accept the obsolete keys of ``legacy`` and keep them separately in ``old``."""

    legacy: ClassVar[type[OldKeys]] = OldKeys
    _old: OldKeys | None = PrivateAttr(None)

    @property
    def old(self) -> Any:
        """The obsolete keys, as they were set."""
        return self._old or self.legacy()

    def unused(self) -> dict[str, str]:
        return super().unused() | (self._old.unused() if self._old else {})

    @model_validator(mode="wrap")
    @classmethod
    def _without_old_keys(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, Mapping):
            return validate(values)
        known = cls.legacy.model_fields
        config = validate({key: value for key, value in values.items() if key not in known})
        if given := {key: value for key, value in values.items() if key in known}:
            config._old = cls.legacy.parse(given)
            config._old.check(config)
        return config


def fields_of(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of one section by name, obsolete keys last."""
    old = config.legacy.model_fields if issubclass(config, Renewed) else {}
    return {**config.model_fields, **old}


def _with_a_place(template: str) -> str:
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise ValueError("a template needs exactly one {} and no other braces")
    return template


Template = Annotated[str, AfterValidator(_with_a_place)]
Templates = list[Template]
"""Type of a setting that holds prompt templates, each with one ``{}`` for the concept; see `filled`."""


def filled(template: str, text: str) -> str:
    """``template`` with ``text`` for its ``{}``. Nothing else in it has a meaning, and ``text`` is taken as it is."""
    return template.replace("{}", text)


def phrased(template: str, text: str) -> str:
    """``template`` filled with ``text``, and single blanks; an empty ``text`` leaves no gap."""
    return " ".join(filled(template, text).split())


def _listed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return str(value) if isinstance(value, int) else value


MOST = 1_000_000
"""Images, pairs or prompts of one search: more is a slip of the pen, and memory would end first."""

Devices = Annotated[str, BeforeValidator(_listed)]
"""Type of a setting that names devices; numbers and lists become text."""


LARGEST_SETTINGS = 2**20
"""Bytes of a settings file: 1 MiB. All settings of a method have 20 KiB."""


def read_settings(path: Path | str, kind: type[BaseModel] | None = None) -> dict[str, Any]:
    """The keys and values of a YAML file of settings, not validated; see `as_written` for ``kind``.

    Raises `ConfigError` if it holds anything else, or nothing.
    """
    values = read_yaml(path, kind)
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} must hold keys and values, not a {type(values).__name__}")
    if not values:
        raise ConfigError(f"config file {path} is empty: write settings to it, such as those that `mu config` prints")
    return values


def read_yaml(path: Path | str, kind: Any = None) -> Any:
    """The content of a YAML file; an empty file is ``{}``. ``kind`` is the type that it will have; see `as_written`.

    Raises `ConfigError` if the file is missing or not YAML.
    """
    text, what = read_text(path, "config file", largest=LARGEST_SETTINGS, error=ConfigError), f"config file {path}"
    values = parse_yaml(text, what)
    if kind is not None and values is not None:
        values = as_written(kind, values, parse_yaml_written(text, what))
    return {} if values is None else values


def as_written(kind: Any, value: Any, written: Any) -> Any:
    """``value``, read from YAML, with the text that is ``written`` there wherever the type ``kind`` asks for text.

    YAML reads ``012`` as 10, ``yes`` as true and ``1_000`` as 1000; a concept may have such a name. Both ``value`` and
    ``written`` are of one document, by `parse_yaml` and `parse_yaml_written`.
    """
    kinds = _alternatives(kind)
    if isinstance(value, dict) and isinstance(written, dict) and len(value) == len(written):
        below = _kinds_below(kinds)
        pairs = zip(value.items(), written.values(), strict=True)
        return {key: as_written(below(str(key)), inner, text) for (key, inner), text in pairs}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        item = next((get_args(each)[0] for each in kinds if get_origin(each) in (list, tuple) and get_args(each)), Any)
        return [as_written(item, inner, text) for inner, text in zip(value, written, strict=True)]
    if not isinstance(written, str) or isinstance(value, str):
        return value
    if value is None and (type(None) in kinds or written in ("", "~")):
        return None
    takes = any(isinstance(each, type) and not issubclass(each, str) and isinstance(value, each) for each in kinds)
    is_text = any((isinstance(each, type) and issubclass(each, str)) or written in get_args(each) for each in kinds)
    return written if is_text and not takes else value


def kind_of(config: type[BaseModel], name: str) -> Any:
    """The type of the setting of this dotted name; `Any` if there is none."""
    kind: Any = config
    for part in name.split("."):
        kind = _kinds_below(_alternatives(kind))(part)
    return kind


def _kinds_below(kinds: Sequence[Any]) -> Callable[[str], Any]:
    """The type of the value of a key, in a mapping of one of the types ``kinds``."""
    fields: dict[str, Any] = {}
    other: Any = Any
    for each in kinds:
        if isinstance(each, type) and issubclass(each, BaseModel):
            known = {name: field.annotation for name, field in fields_of(each).items()}
            renamed = each.renamed if issubclass(each, BaseConfig) else {}
            fields |= known | {old: known.get(new, Any) for old, new in renamed.items()}
        elif get_origin(each) is dict:
            other = get_args(each)[1]
    return lambda key: fields.get(key, other)


def _alternatives(kind: Any) -> list[Any]:
    """The types of a value of type ``kind``: ``str`` and ``None`` in ``Annotated[str, ...] | None``; none of `Any`."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [each for part in get_args(kind) for each in _alternatives(part)]
    return [] if kind is Any else [kind]


def values_set(config: BaseModel, *, old: bool = True) -> dict[str, Any]:
    """The values that were set, nested; with ``old``, obsolete keys too.

    Includes a section that was changed only by attribute (``config.train.lr = 1e-3``); pydantic's own ``exclude_unset``
    drops it if its parent is a default.
    """
    values: dict[str, Any] = values_set(config._old) if old and isinstance(config, Renewed) and config._old else {}
    dumped = config.model_dump(include=config.model_fields_set, exclude_unset=True)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            below = values_set(value, old=old)
            if below or name in config.model_fields_set:
                values[name] = below
        elif name in dumped:
            values[name] = dumped[name]
    return values


def _merge(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in layer.items():
        key = str(key)
        if key.count(".") > DEEPEST:
            raise ConfigError(f"unknown setting {quoted(key)}: it has more than {DEEPEST} parts")
        key, _, rest = key.partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, BaseModel):
            value = values_set(value)
        if isinstance(value, Mapping):
            below = merged.get(key)
            value = _merge(below if isinstance(below, Mapping) else {}, value)
        merged[key] = value
    return merged


def _under_present_names(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with former names replaced, here and in all sections.

    Raises `ConfigError` if a setting is given under both names."""
    renamed = cls.renamed if issubclass(cls, BaseConfig) else {}
    for old, new in renamed.items():
        if old in values and new in values:
            raise ConfigError(
                f"{quoted(old)} is the former name of {quoted(new)}, and both are given: remove {quoted(old)}"
            )
    present: dict[str, Any] = {}
    for name, value in values.items():
        name = renamed.get(name, name)
        field = cls.model_fields.get(name)
        inner = field.annotation if field else None
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = _under_present_names(inner, value)
        present[name] = value
    return present


def refuse_twice(
    config: type[BaseModel], settings: Mapping[str, Any], options: Mapping[str, Iterable[str]], flag: str = "--set"
) -> None:
    """Raise `ConfigError` if ``settings``, nested or dotted, hold one of the settings that ``options`` give too.

    ``options`` has the dotted names by option. Former names count as the present ones.
    """
    given = dict(_leaves(_under_present_names(config, _merge({}, settings))))
    for option, names in options.items():
        for name in names:
            twice = next((each for each in given if f"{each}.".startswith(f"{name}.")), None)
            if twice:
                told = f"{option} and {flag} {twice}={quoted(given[twice])}"
                raise ConfigError(f"{told} give the same setting: leave one of the two out")


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All values that are not mappings, with their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{below}", inner) for below, inner in _leaves(value))
        else:
            yield name, value


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
    """The settings classes in an annotation: ``X`` in ``X``, ``X | None`` or ``list[X] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def faults(cls: type[BaseModel], values: Any) -> list[str]:
    """All that is wrong with ``values`` as settings of ``cls``, one line each; none if they are right."""
    try:
        cls.model_validate(values)
    except ValidationError as error:
        return list(dict.fromkeys(_line(cls, each) for each in error.errors()))
    return []


def _one_line(cls: type[BaseModel], error: ValidationError) -> str:
    first, *others = error.errors()
    return _line(cls, first) + (f" (and {len(others)} more)" if others else "")


def _line(cls: type[BaseModel], error: Any) -> str:
    """One entry of pydantic's list of errors, for people."""
    name = _shortened(".".join(str(part) for part in error["loc"])) or cls.__name__
    if error["type"] == "extra_forbidden":
        section = _section(cls, error["loc"])
        return (
            f"unknown setting {titled(name)}.{nearest(str(error['loc'][-1]), section.model_fields if section else ())}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{name}: {message}"
    return f"{name}: {message}, got {quoted(error['input'])}"


def _shortened(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:80]}..."


def _yaml_lines(config: BaseModel, comments: bool, depth: int) -> list[str]:
    indent, lines = "  " * depth, []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if comments and field.description:
            lines += textwrap.wrap(
                " ".join(field.description.split()),
                110 - len(indent),
                initial_indent=indent + "# ",
                subsequent_indent=indent + "# ",
            )
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_yaml_lines(value, comments, depth + 1)]
        else:
            plain = config.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump({name: plain}, sort_keys=False, allow_unicode=True, width=10_000).rstrip()
            lines += [indent + line for line in text.split("\n")]
    return lines
