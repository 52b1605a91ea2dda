"""Read JSON, YAML and CSV text into plain values. Whatever the text, the result is bounded or one clear error.

Python's parsers accept what later steps cannot bear: nesting without end, a YAML alias that stands for millions of
values, numbers of any length, keys that occur twice, text that no file can hold. These are refused here.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml

from mu.core.errors import ConfigError, DataError, MuError, quoted

DEEPEST = 64
"""Levels of lists and mappings inside each other."""
MOST = 100_000
"""Values of a YAML text, with each alias counted as what it stands for."""
LONGEST_NUMBER = 400
"""Digits; the largest floating-point number has 309."""


def parse_json(text: str, what: str, *, error: type[MuError] = DataError) -> Any:
    """The content of a JSON ``text``. ``what`` names it in errors.

    Raises ``error`` for text that is not JSON, a key that occurs twice in an object, nesting beyond `DEEPEST`, a number
    beyond `LONGEST_NUMBER` and half a surrogate pair.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = _most_common(name for name, _ in pairs)
            raise error(f"{what} has the key {quoted(twice)} twice: remove one")
        return found

    def whole(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise error(f"{what} has a number of {len(digits)} digits")
        return int(digits)

    try:
        long = re.search(rf"[0-9]{{{LONGEST_NUMBER + 1}}}", text)  # in a text or in a number
        value = json.loads(text, object_pairs_hook=once, parse_int=whole if long else None)
    except json.JSONDecodeError as trouble:
        raise error(f"{what} is not JSON (line {trouble.lineno})") from None
    except RecursionError:
        raise error(f"{what} is nested too deep: at most {DEEPEST} levels") from None
    if not _is_plain(value):
        check_values(value, lambda place, trouble: error(f"{what}{f', {place}' if place else ''}: {trouble}"))
    return value


def parse_yaml(text: str, what: str, *, error: type[MuError] = ConfigError) -> Any:
    """The content of a YAML ``text``; None if it is empty. ``what`` names it in errors.

    Raises ``error`` for text that is not YAML, a key that occurs twice in a mapping, nesting beyond `DEEPEST`, more
    than `MOST` values and a value that does not exist, such as the date 2001-02-31.
    """
    return _parsed(text, what, yaml.SafeLoader, error)


def parse_yaml_written(text: str, what: str, *, error: type[MuError] = ConfigError) -> Any:
    """`parse_yaml`, with each scalar as it is written: ``012``, ``yes`` and ``2001-02-03`` stay those texts."""
    return _parsed(text, what, _Written, error)


class _Written(yaml.SafeLoader):
    """Knows of the kinds of plain scalars only ``<<``, which merges mappings."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}


def _parsed(text: str, what: str, kind: type[yaml.SafeLoader], error: type[MuError]) -> Any:
    try:
        loader = kind(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node, lambda trouble: error(f"{what} {trouble}"))
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as trouble:
        mark = getattr(trouble, "problem_mark", None)
        raise error(f"{what} is not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    except RecursionError:
        raise error(f"{what} is nested too deep: at most {DEEPEST} levels") from None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError):  # PyYAML on odd dates, numbers and tags
        raise error(f"{what} has a date, number or tag that YAML cannot read: put it in quotes") from None


def parse_csv(
    text: str, what: str, *, error: type[MuError] = DataError
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The column names of a CSV ``text``, and its rows with the number of their last line; blank rows are left out.

    A row may have more or fewer cells than there are columns. Raises ``error`` for a quote that is not closed or not
    doubled, and for a name that occurs twice; index columns, which have none, may.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, [])
        rows = [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]
    except csv.Error as trouble:
        advice = "is a quote not closed, or not doubled?"
        raise error(f"{what}, line {lines.line_num}: {trouble}: {advice}") from None
    names = Counter(name.strip() for name in header if not is_index(name))
    if twice := [name for name, count in names.items() if count > 1]:
        raise error(f"{what} has the column {quoted(twice[0])} twice: rename or remove one")
    return header, rows


def is_index(name: str) -> bool:
    """True for the name of an index column written by pandas."""
    return not name.strip() or name.strip().lower().startswith("unnamed:")


def check_values(value: Any, trouble: Callable[[str, str], MuError]) -> None:
    """Check the plain ``value``: nesting up to `DEEPEST`, and text that a UTF-8 file can hold.

    Raises what ``trouble(place, message)`` makes. A place is dotted, like ``train.lr``; it is empty for the whole.
    """
    for place, each, depth in _inside(value):
        if depth > DEEPEST:
            raise trouble(_named(place), f"is nested too deep: at most {DEEPEST} levels")
        if isinstance(each, str) and not is_unicode(each):
            raise trouble(_named(place), f"{quoted(each)} is not Unicode text: it has half a surrogate pair")


def check_settings(values: Mapping[str, Any], trouble: Callable[[str, str], MuError]) -> None:
    """`check_values`, and numbers within 64 bits, and text without control characters except tabs and line ends."""
    check_values(values, trouble)
    for place, each, _ in _inside(values):
        if isinstance(each, int) and not -(2**63) <= each < 2**64:
            raise trouble(_named(place), f"{quoted(each)} is beyond 64 bits: give a smaller number")
        if isinstance(each, str) and (wrong := control_character(each)):
            raise trouble(_named(place), f"{quoted(each)} has the control character {quoted(wrong)}: remove it")


def is_unicode(text: str) -> bool:
    """False if ``text`` has half a surrogate pair: the command line and JSON can give one, and no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def control_character(text: str) -> str:
    """The first control character of ``text`` other than tabs and line ends, or an empty text."""
    found = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    return found[0] if found else ""


def _most_common(names: Iterable[Any]) -> Any:
    return Counter(names).most_common(1)[0][0]


def _is_plain(value: Any) -> bool:
    """Whether `check_values` finds nothing in ``value``, of JSON. It keeps no places, and so is many times as fast."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, str):
                if not (each.isascii() or is_unicode(each)):
                    return False
            elif isinstance(each, dict):
                inner += each
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        if not inner:
            return True
        level = inner
    return False


_Place = tuple[Any, Any] | None
"""The place of a value: that of the list or mapping it is in, and its key there; None for the whole."""


def _inside(value: Any) -> Iterator[tuple[_Place, Any, int]]:
    """``value`` and all keys and values inside, each with its place and depth. Nothing below `DEEPEST` is entered."""
    todo: list[tuple[_Place, Any, int]] = [(None, value, 0)]
    while todo:
        place, each, depth = todo.pop()
        yield place, each, depth
        if depth > DEEPEST:
            continue
        if isinstance(each, Mapping):
            for key, inner in each.items():
                if isinstance(key, str):
                    yield place, key, depth
                todo.append(((place, key), inner, depth + 1))
        elif isinstance(each, list | tuple):
            todo += (((place, k), inner, depth + 1) for k, inner in enumerate(each))


def _named(place: _Place) -> str:
    """``place`` as dotted text of at most 60 characters."""
    keys = []
    while place is not None:
        place, key = place
        keys.append(quoted(key)[1:-1] if isinstance(key, str) else quoted(key))
    return ".".join(reversed(keys))[:60]


def _check_nodes(root: yaml.Node, trouble: Callable[[str], MuError]) -> None:
    """Check nodes before values are made of them: making the values of nested merges (``<<``) takes them all apart."""
    todo, count = [(root, 0)], 0
    while todo:
        node, depth = todo.pop()
        count += 1
        if depth > DEEPEST:
            raise trouble(f"is nested too deep, or refers to itself: at most {DEEPEST} levels")
        if count > MOST:
            raise trouble(f"stands for more than {MOST:,} values: use fewer aliases")
        if isinstance(node, yaml.MappingNode):
            scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            names = [(key.tag, key.value) for key in scalars]
            if len(set(names)) < len(names):
                _, twice = _most_common(names)
                raise trouble(f"has the key {quoted(twice)} twice (line {node.start_mark.line + 1} on): remove one")
            todo += ((each, depth + 1) for pair in node.value for each in pair)
        elif isinstance(node, yaml.SequenceNode):
            todo += ((each, depth + 1) for each in node.value)
        elif isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_NUMBER and node.tag.endswith(":int"):
            raise trouble(f"has a number of {len(node.value)} digits (line {node.start_mark.line + 1})")
