"""What the command line says of an error: one short line that a terminal shows as it is."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

import pytest

import mu
from mu.algorithms import method
from mu.core.compute import precision
from mu.core.errors import LONGEST, ConfigError, DataError, one_line, quoted, titled
from mu.core.program import guarded
from mu.core.tracking import tracker


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Größe 絵 ☃", "Größe 絵 ☃"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("\x1b[2Jgone\x07\0", r"\x1b[2Jgone\x07\x00"),
        ("half \ud83d", r"half \ud83d"),
        ("back\u202ewards\u2028next", r"back\u202ewards\u2028next"),
    ],
)
def test_a_text_is_one_line_that_a_terminal_shows(text: str, shown: str) -> None:
    assert one_line(text) == shown and shown.isprintable()


@pytest.mark.parametrize("text", ["می\u200cخواهم", "\U0001f469\u200d\U0001f467", "全角\u3000空白.csv", "1\u00a0000"])
def test_joiners_and_blanks_of_other_scripts_stay(text: str) -> None:
    assert one_line(text) == text and not text.isprintable()
    assert one_line(f"{text}\u200f\u2069\n") == text + r"\u200f\u2069\n", "control: bidi signs and line ends do not"


@pytest.mark.parametrize("text", ["x" * (LONGEST + 1), "x" * 10**7, "\x00" * LONGEST])
def test_a_long_text_keeps_both_ends(text: str) -> None:
    told = one_line(f"file{text}: make it again")
    assert len(told) <= LONGEST and told.startswith("file") and told.endswith(": make it again") and " ... " in told
    assert " ... " not in one_line("x" * LONGEST), "control"


def test_an_errors_text_is_one_line_too() -> None:
    assert str(DataError("a\nb")) == r"a\nb" and len(str(DataError("y" * 10**6))) <= LONGEST


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("x\ty"), r"error: x\ty"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a\nb"), r"No such file or directory: a\nb"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: writing"),
        (OSError("a library's own words"), "a library's own words"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
        (MemoryError(), "not enough memory"),
        (OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 GB"), "not enough memory"),
    ],
)
def test_what_the_surroundings_cause_is_one_line(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> NoReturn:
        raise error

    assert guarded(work) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1 and line.startswith("error: ") and told in line


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("y")])
def test_control_a_defect_keeps_its_traceback(error: Exception) -> None:
    def work() -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        guarded(work)


def _caused(error: BaseException, *causes: BaseException) -> BaseException:
    for inner, outer in zip(causes, (error, *causes), strict=False):
        outer.__cause__ = inner
    return error


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        _caused(ImportError("numpy.core.multiarray failed to import"), KeyboardInterrupt()),
        _caused(ModuleNotFoundError("pipelines"), ImportError("initialization failed"), KeyboardInterrupt()),
    ],
)
def test_an_interrupt_is_told_as_one_even_inside_an_import(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> NoReturn:
        raise error

    assert guarded(work) == 130
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--resume" in line


def test_an_interrupt_is_told_as_one_where_a_library_counts_as_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """Control: one that is missing without Ctrl-C, and a full disk while the work so far was kept."""

    def missing(error: ImportError) -> Callable[[], NoReturn]:
        def work() -> NoReturn:
            try:
                raise error
            except ImportError:
                raise DataError("pip install it") from None

        return work

    def full() -> NoReturn:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert guarded(missing(cast(ImportError, _caused(ImportError("no module"), KeyboardInterrupt())))) == 130
    assert "pip" not in capsys.readouterr().err
    assert guarded(missing(ImportError("no module"))) == 2 and guarded(full) == 2
    told = capsys.readouterr().err
    assert "pip" in told and "No space" in told and "interrupted" not in told


def test_control_a_library_that_does_not_import_keeps_its_traceback() -> None:
    missing = ImportError("no such library")
    missing.__cause__ = missing

    def work() -> NoReturn:
        raise missing

    with pytest.raises(ImportError):
        guarded(work)


def test_no_message_shows_a_text_as_python_does() -> None:
    """`repr` takes joiners and blanks of other scripts apart, and knows no end; `quoted` and `titled` do neither."""
    package = Path(mu.__file__).parent
    found = [
        f"{file.relative_to(package)}:{value.lineno}"
        for file in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise | ast.Assign | ast.Return | ast.Expr) and "AttributeError" not in ast.dump(node)
        for value in ast.walk(node)
        if isinstance(value, ast.FormattedValue) and value.conversion == ord("r")
    ]
    assert not found
    (control,) = (v for v in ast.walk(ast.parse('f"{x!r}"')) if isinstance(v, ast.FormattedValue))
    assert control.conversion == ord("r")


@pytest.mark.parametrize("text", ["می\u200cخواهم", "\U0001f469\u200d\U0001f467", "plain"])
def test_a_text_that_a_user_typed_is_shown_as_it_is(text: str) -> None:
    for look_up in (method, tracker, precision):
        with pytest.raises(ConfigError, match=f"'{text}'"):
            look_up(text)
    assert r"\u202e" in quoted("a\u202eb") and titled("x" * 400).count("x") < 310, "control"
