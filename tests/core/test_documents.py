"""JSON and YAML that Python's parsers accept or choke on: one short line each, in no time."""

from __future__ import annotations

import cProfile
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mu.core.documents import DEEPEST, check_settings, check_values, parse_json, parse_yaml
from mu.core.errors import ConfigError, DataError, quoted
from mu.core.files import atomic_path, read_bytes, read_text


def bomb(levels: int, merged: bool = False) -> str:
    """Each of ``levels`` lines stands for ten of the line before."""
    inner = "{{<<: [{}]}}" if merged else "[{}]"
    first = "{x: 1}" if merged else "[1]"
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{k}: &a{k} {inner.format(', '.join([f'*a{k - 1}'] * 10))}" for k in range(1, levels + 1)]
    return "\n".join(lines)


JSON = {
    "not JSON": ("[1,\n{", "line 2"),
    "nested beyond Python's stack": ("[" * 200_000, "nested too deep"),
    "nested beyond use": ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested too deep"),
    "number of 5,000 digits": ('{"seed": ' + "7" * 5000 + "}", "5000 digits"),
    "a key twice": ('{"prompt": "a", "seed": 1, "prompt": "b"}', "'prompt' twice"),
    "half a surrogate pair": (r'[{"prompt": "a \ud83d star"}]', "0.prompt.*surrogate"),
    "half a surrogate pair in a key": (r'{"\udc00": 1}', "surrogate"),
}
YAML = {
    "not YAML": ("a: 1\nb: [", "line 2"),
    "nested beyond Python's stack": ("[" * 50_000, "nested too deep"),
    "nested beyond use": ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested too deep"),
    "alias bomb": (bomb(9), "aliases"),
    "alias bomb of merges": (bomb(9, merged=True), "aliases"),
    "refers to itself": ("a: &a [*a]", "refers to itself"),
    "number of 5,000 digits": ("seed: " + "7" * 5000, "5000 digits"),
    "date that is none": ("made: 2001-02-31", "quotes"),
    "tag that does not fit": ("a: !!int many", "quotes"),
    "unknown tag": ("a: !!python/object/apply:os.getcwd []", "line 1"),
    "a key twice": ("train:\n  lr: 1\n  lr: 2\n", "'lr' twice.*line 2"),
    "control character": ("a: \x01", "not YAML"),
    "half a surrogate pair": ("a: \udcff", "not YAML"),
}


@pytest.mark.parametrize(
    ("parse", "error", "text", "said"),
    [
        pytest.param(parse, error, *row, id=f"{parse.__name__}: {name}")
        for parse, error, table in ((parse_json, DataError, JSON), (parse_yaml, ConfigError, YAML))
        for name, row in table.items()
    ],
)
def test_what_parsers_choke_on_is_one_short_line(
    parse: Callable[..., Any], error: type[Exception], text: str, said: str
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=f"^the file.*{said}") as caught:
        parse(text, "the file")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.monotonic() - began < 10


def test_control_usual_documents_are_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"], "b": 1e999}', "it")["a"] == [
        1,
        2.5,
        None,
        "\N{GRINNING FACE}",
    ]
    assert parse_yaml(bomb(3), "it")["a3"][9][0][0] == [1] and parse_yaml("", "it") is None
    assert parse_yaml("base: &b {x: 1}\nmore: {<<: *b, y: 2}", "it")["more"] == {"x": 1, "y": 2}
    assert parse_yaml("1: a\n'1': b", "it") == {1: "a", "1": "b"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"iterations": 2**64}}, r"train\.iterations: \d+ is beyond 64 bits"),
        ({"train": {"iterations": -(10**5000)}}, r"train\.iterations: a number of \d+ bits is beyond"),
        ({"out": "a\x00b"}, r"out: 'a\\x00b'.*'\\x00'"),
        ({"concepts": ["a", "b\x1b[31m"]}, r"concepts\.1: .*x1b"),
        ({"concepts": ["\udcff"]}, r"concepts\.0: .*surrogate"),
        ({"a\x07": 1}, "x07"),
    ],
)
def test_settings_hold_numbers_of_64_bits_and_text(values: dict[str, Any], said: str) -> None:
    def trouble(place: str, message: str) -> ConfigError:
        return ConfigError(f"{place}: {message}")

    with pytest.raises(ConfigError, match=said) as caught:
        check_settings(values, trouble)
    assert str(caught.value).isprintable()
    check_settings({"seed": 2**64 - 1, "text": "two\n\tlines", "names": ["\N{GRINNING FACE}"]}, trouble)


def test_a_long_document_is_read_without_a_place_for_each_value() -> None:
    """Counted in calls of functions, which no other process on the machine changes."""
    rows = [{"prompt": f"a photo of {k}", "seed": k, "case": k} for k in range(1000)]
    text = json.dumps(rows)

    def calls_a_row(work: Callable[[], Any]) -> float:
        profile = cProfile.Profile()
        profile.runcall(work)
        return sum(row.callcount for row in profile.getstats()) / len(rows)  # type: ignore[attr-defined]

    assert calls_a_row(lambda: parse_json(text, "it")) < 30
    assert calls_a_row(lambda: check_values(rows, lambda *_: DataError("wrong"))) > 40, "control: with places"


@pytest.mark.parametrize("broken", ["\\udc00", "[" * DEEPEST + "]" * DEEPEST])
def test_one_wrong_value_in_a_long_document_is_named_with_its_place(broken: str) -> None:
    """Beside right ones, in a list in a mapping, and behind digits that are no number."""
    value = broken if broken.startswith("[") else f'"{broken}"'
    rows = [f'{{"prompt": "{"7" * 500}", "inner": [{k}, "é"]}}' for k in range(1000)]
    assert len(parse_json(f"[{','.join(rows)}]", "it")) == 1000, "control"
    rows[700] = f'{{"prompt": "a", "inner": [1, {value}]}}'
    with pytest.raises(DataError, match=r"^it, 700\.inner\.1"):
        parse_json(f"[{','.join(rows)}]", "it")


def test_a_value_that_holds_itself_ends_soon() -> None:
    ring: list[Any] = []
    ring += [ring] * 10
    with pytest.raises(ConfigError, match="nested too deep"):
        check_settings({"ring": ring}, lambda place, message: ConfigError(f"{place}: {message}"))


def test_quoted_values_are_short_and_printable() -> None:
    for value in (
        "x" * 10**6,
        ["y" * 500] * 500,
        10**5000,
        {"k": [10**5000]},
        "\x1b\udcff",
        {k: k for k in range(999)},
    ):
        assert len(quoted(value)) < 400 and quoted(value).isprintable()
    assert quoted("soon") == "'soon'" and quoted(1.5) == "1.5"


PERSIAN, FAMILY = "می\u200cخواهم", "\U0001f469\u200d\U0001f467"


def test_quoted_text_of_any_language_is_readable() -> None:
    """Joiners and wide blanks are parts of words and names; what moves the cursor or turns the line is not."""
    for text in (PERSIAN, FAMILY, "全角\u3000空白", "1\u00a0000", "\u2009thin"):
        assert (
            quoted(text) == f"'{text}'" and quoted([text]) == f"['{text}']" and quoted({text: 1}) == f"{{'{text}': 1}}"
        )
    assert quoted("\u200e\u202e\u2066\u2028\x85\ufeff") == r"'\u200e\u202e\u2066\u2028\x85\ufeff'"
    assert quoted(r"a \u200c b \x20") == repr(r"a \u200c b \x20"), "a text that spells an escape stays as it is"
    assert quoted("it's") == '"it\'s"' and quoted("x" * 99) == "'" + "x" * 27 + "..." + "x" * 28 + "'"


def test_a_file_is_checked_before_it_is_opened(tmp_path: Path) -> None:
    """Opening a FIFO would wait for a writer, and reading a device would never end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"a" * 11)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "nul").write_bytes(b"a\nb\x00")
    refused = {
        tmp_path / "fifo": "pipe",
        Path("/dev/zero"): "device",
        tmp_path: "folder",
        tmp_path / "none": "does not exist",
        tmp_path / "large": "11 bytes",
        tmp_path / "latin": "UTF-8",
        tmp_path / "nul": "line 2 has a NUL",
        Path("a\x00b"): "not a file name",
        tmp_path / ("n" * 300): "cannot read",
        tmp_path / "large" / "x": "cannot read",
    }
    for place, said in refused.items():
        with pytest.raises(ConfigError, match=said):
            read_text(place, largest=10, error=ConfigError)
    (tmp_path / "good").write_bytes("\ufeffcafé\r\n".encode())
    assert read_text(tmp_path / "good") == "café\r\n" and read_bytes(tmp_path / "large", largest=11) == b"a" * 11


def test_a_failed_write_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_path(tmp_path / "new" / "deep" / "file") as partial:
        partial.write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "own").mkdir()
    with pytest.raises(KeyError), atomic_path(tmp_path / "own" / "file"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["own"], "a folder of the user stays"
    with atomic_path(tmp_path / "new" / "deep" / "file") as partial:
        partial.write_text("whole")
    assert (tmp_path / "new" / "deep" / "file").read_text() == "whole"
