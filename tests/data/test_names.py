"""Files of names: what is read, and the one line that says where a bad one is bad."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mu.core.errors import ConfigError, DataError
from mu.data.names import check_apart, read_concepts, read_names, read_retained


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_lines_and_a_column_are_the_same_names(tmp_path: Path) -> None:
    lines = written(tmp_path, "names.txt", "Adam Driver\r\n\n  Amy   Adams \nZoë\n")
    table = written(tmp_path, "names.csv", ',Concept\n0,Adam Driver\n1,"Amy Adams"\n2,Zoë\n3,\n')
    assert list(read_names(lines, "it")) == list(read_names(table, "it")) == ["Adam Driver", "Amy Adams", "Zoë"]
    assert read_names(lines, "it")["Amy Adams"] == 3
    assert read_concepts(lines) == ["Adam Driver", "Amy Adams", "Zoë"]


def test_duplicates_are_told_once_and_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = read_concepts(written(tmp_path, "n.txt", "".join(f"name {k % 8}\nNAME_{k % 8}\n" for k in range(8))))
        assert names == [f"name {k}" for k in range(8)]
        assert len(caplog.records) == 1 and "3 more" in caplog.text and "lines 1 and 2" in caplog.text
        caplog.clear()
        read_concepts(written(tmp_path, "n.txt", "a\nb\n"))
        assert not caplog.records  # control


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("n.txt", "fine\nAdam Driver, Amy Adams\n", r"n\.txt, line 2: .*comma"),
        ("n.csv", 'concept\nfine\n"Downey, Robert"\n', r"n\.csv, line 3: .*comma"),
        ("n.txt", "fine\n\n" + "x" * 500 + "\n", "line 3: .*letters"),
        ("n.txt", "\n \n", "no names"),
        ("n.csv", "concept\n\n", "no names"),
        ("n.csv", "name\nAdam\n", "column 'concept'"),
        ("n.csv", "concept,Concept \na,b\n", None),
    ],
)
def test_a_bad_file_says_where(tmp_path: Path, name: str, text: str, said: str | None) -> None:
    file = written(tmp_path, name, text)
    if said is None:
        assert read_concepts(file) == ["a"]
        return
    with pytest.raises(DataError, match=said) as refused:
        read_concepts(file)
    assert "\n" not in str(refused.value)


def test_what_is_retained_may_hold_commas_and_is_not_erased(tmp_path: Path) -> None:
    kept = written(tmp_path, "kept.txt", "a street, in rain\nAmy Adams\n")
    texts = read_retained(kept)
    assert list(texts) == ["a street, in rain", "Amy Adams"]
    check_apart(texts, kept, ["Adam Driver", "Amy"])
    with pytest.raises(ConfigError, match=r"kept\.txt .*'Amy Adams' \(line 2\)"):
        check_apart(texts, kept, ["amy_adams"])
