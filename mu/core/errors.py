"""The errors that users see.

Each message is one line that says what is wrong and what to do:

    MuError                exit code 2 on the command line
      ConfigError          unknown key, wrong type, settings that contradict each other
      ModelError           unknown, missing, corrupt or truncated model
      EditError            a file that is not an edit, or an edit that does not fit the model
        SelectionError     a parameter pattern that matches nothing
      DataError            missing columns, unreadable images, empty concepts
      OutputError          existing results, read-only or full disk
      MissingDependency    an optional package that is not installed
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST = 400
"""Characters of the longest message."""


def one_line(text: str, longest: int = LONGEST) -> str:
    """``text`` as one line of at most ``longest`` characters that a terminal shows as they are.

    Control characters, line breaks, lone surrogates and the like are escaped. The middle of a longer text is left out,
    so that the line still says what is wrong and what to do.
    """
    ends = text if len(text) <= 2 * longest else text[:longest] + text[-longest:]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in ends)
    if len(shown) <= longest:
        return shown
    gap, tail = " ... ", longest // 3
    return shown[: longest - tail - len(gap)] + gap + shown[-tail:]


class MuError(Exception):
    """Base of all errors caused by the input and not by a defect of this package. Its text is one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(MuError): ...


class ModelError(MuError): ...


class EditError(MuError): ...


class SelectionError(EditError): ...


class DataError(MuError): ...


class OutputError(MuError): ...


class MissingDependency(MuError):
    def __init__(self, package: str, extra: str, need: str):
        super().__init__(f"{need} needs the package {package!r}: pip install 'mu-unlearning[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` if a similar name is known, else the known names."""
    known = list(known)
    close = difflib.get_close_matches(name[:200], known, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}." if known else ""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 40


def quoted(value: object) -> str:
    """``repr(value)`` for a message: its middle is left out if it is long, and control characters are escaped."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"  # more than 4,300 digits have no repr
    try:
        text = _SHORT.repr(value)
    except ValueError:
        return f"a {type(value).__name__}"
    return text if len(text) <= 160 else f"{text[:150]}..."
