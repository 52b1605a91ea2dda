"""The errors that users see.

Each message is one line that says what is wrong and what to do:

    MuError                exit code 2 on the command line
      ConfigError          unknown key, wrong type, settings that contradict each other
        ConfigErrors       several of them at once
      ModelError           unknown, missing, corrupt or truncated model
      EditError            a file that is not an edit, or an edit that does not fit the model
        SelectionError     a parameter pattern that matches nothing
      DataError            missing columns, unreadable images, empty concepts
      OutputError          existing results, read-only or full disk
      MissingDependency    an optional package that is not installed
"""

from __future__ import annotations

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

LONGEST = 400
"""Characters of the longest message."""
JOINERS = "\u200c\u200d"
"""ZWNJ and ZWJ, which words of Persian and many emoji are spelt with."""


def is_readable(character: str) -> bool:
    """Whether a terminal shows ``character`` as it is: letters, signs and all kinds of blanks that stay on the line."""
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"


def one_line(text: str, longest: int = LONGEST) -> str:
    """``text`` as one line of at most ``longest`` characters that a terminal shows as they are.

    Control characters, line breaks, signs that turn the direction of writing, lone surrogates and the like are
    escaped. The middle of a longer text is left out,
    so that the line still says what is wrong and what to do.
    """
    ends = text if len(text) <= 2 * longest else text[:longest] + text[-longest:]
    shown = "".join(c if is_readable(c) else c.encode("unicode_escape").decode("ascii") for c in ends)
    if len(shown) <= longest:
        return shown
    gap, tail = " ... ", longest // 3
    return shown[: longest - tail - len(gap)] + gap + shown[-tail:]


class MuError(Exception):
    """Base of all errors caused by the input and not by a defect of this package. Its text is one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(MuError): ...


class ConfigErrors(ConfigError):
    """All errors of one file at once. ``each`` holds the lines; the command line prints them all."""

    def __init__(self, each: Iterable[str]):
        self.each = tuple(each)
        super().__init__("; ".join(self.each))


class ModelError(MuError): ...


class EditError(MuError): ...


class SelectionError(EditError): ...


class DataError(MuError): ...


class OutputError(MuError): ...


class BusyError(OutputError):
    """Another process works in the folder."""


class MissingDependency(MuError):
    def __init__(self, package: str, extra: str, need: str):
        super().__init__(
            f"{need} needs the package {quoted(package)}: pip install {package} (the extra {quoted(extra)} brings it)"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` if a similar name is known, else the known names."""
    known = list(known)
    close = difflib.get_close_matches(name[:200], known, n=1)
    if close:
        return f" Did you mean {quoted(close[0])}?"
    return f" Known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}." if known else ""


def as_edit(place: object) -> str:
    """Advice for who names weights at the path ``place`` where a model or an edit is wanted."""
    name = PurePath(str(place)).name
    return f"`mu import {name} --model BASE --out edit.safetensors` makes an edit of them"


class _Short(reprlib.Repr):
    """``repr`` of at most ``longest`` characters of a text. What `is_readable` is not escaped."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.maxstring = self.maxother = longest
        self.maxlong = 40

    def repr_str(self, x: str, level: int) -> str:
        if (room := self.maxstring - 2) < len(x):
            head = (room - len("...")) // 2
            x = f"{x[:head]}...{x[head + len('...') - room :]}"
        return re.sub(r"\\\\|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}", _unescaped, repr(x))


def _unescaped(match: re.Match[str]) -> str:
    """The character that an escape in a ``repr`` stands for, if it `is_readable`."""
    escape: Any = match[0]
    if escape == "\\\\":
        return escape
    character = chr(int(escape[2:], 16))
    return character if is_readable(character) else escape


_SHORT, _WHOLE = _Short(60), _Short(300)


def quoted(value: object) -> str:
    """``repr(value)`` for a message: its middle is left out if it is long, and control characters are escaped."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"  # more than 4,300 digits have no repr
    try:
        text = _SHORT.repr(value)
    except ValueError:
        return f"a {type(value).__name__}"
    return text if len(text) <= 160 else f"{text[:150]}..."


def titled(name: object) -> str:
    """`quoted` for a path or the name of a model, of which up to 300 characters are shown: its ends tell it apart."""
    return _WHOLE.repr(name)
