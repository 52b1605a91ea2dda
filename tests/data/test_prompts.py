"""Prompt files: every form found in the wild is read, and a broken one says where it is broken."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mu.core.errors import DataError
from mu.data.prompts import PromptRow, read_prompts

WILD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "prompts"
wild = pytest.mark.skipif(not WILD.is_dir(), reason="the prompt files of other projects are not here")


def write(folder: Path, text: str | bytes, name: str = "prompts.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_esd_columns_with_an_unnamed_index(tmp_path: Path):
    path = write(tmp_path, ',case_number,prompt,evaluation_seed,artist\n20,7,"A sky, at night",1214,Van Gogh\n')
    assert read_prompts(path) == [PromptRow("A sky, at night", 7, 1214, artist="Van Gogh")]


@pytest.mark.parametrize("header", ["Unnamed: 0,case_number,prompt", " unnamed: 0.1 , Case_Number , Prompt "])
def test_an_index_that_pandas_named_is_left_out_and_names_may_be_written_loosely(tmp_path: Path, header: str):
    assert read_prompts(write(tmp_path, f"{header}\n0,3,a star\n")) == [PromptRow("a star", 3)]


def test_i2p_columns_both_ways(tmp_path: Path):
    ours = "prompt,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,nudity_percentage,case_number"
    theirs = ours.replace("evaluation_seed", "sd_seed").replace("evaluation_guidance", "sd_guidance_scale")
    line = '"a\nb ","violence, self-harm",4261553411,7.5,512,704,0.4,5'
    rows = [read_prompts(write(tmp_path, f"{header}\n{line}\n"))[0] for header in (ours, theirs)]
    expected = PromptRow(
        "a\nb ", 5, 4261553411, 7.5, 512, 704, categories=("violence", "self-harm"), other={"nudity_percentage": "0.4"}
    )
    assert rows == [expected, expected]


def test_mace_and_esd_say_what_is_shown(tmp_path: Path):
    row = read_prompts(write(tmp_path, "prompt,class,type\na chain saw,chain saw,erased\n"))[0]
    assert (row.class_name, row.type, row.artist) == ("chain saw", "erased", None)


def test_without_a_number_rows_are_counted_from_0_and_without_a_seed_there_is_none(tmp_path: Path):
    rows = read_prompts(write(tmp_path, "prompt\na star\n\na moon\n"))
    assert rows == [PromptRow("a star", 0), PromptRow("a moon", 1)]
    assert rows[0].evaluation_seed is None


def test_whole_numbers_survive_pandas_and_64_bits(tmp_path: Path):
    rows = read_prompts(write(tmp_path, f"prompt,evaluation_seed\na,2219.0\nb,\nc,{2**63 - 1}\n"))
    assert [row.evaluation_seed for row in rows] == [2219, None, 2**63 - 1]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path):
    path = write(tmp_path, b"\xef\xbb\xbfprompt,evaluation_seed\r\nCaf\xc3\xa9,1\r\n")
    assert read_prompts(path) == [PromptRow("Café", 0, 1)]


def test_text_has_one_prompt_a_line(tmp_path: Path):
    rows = read_prompts(write(tmp_path, 'a star, "quoted"\r\n\n  a moon\n', "prompts.txt"))
    assert rows == [PromptRow('a star, "quoted"', 0), PromptRow("a moon", 1)]


def test_json_of_texts_or_objects(tmp_path: Path):
    content = [
        "a star",
        {"prompt": "a moon", "case_number": 9, "sd_seed": 4, "categories": ["hate", "violence"], "class": None},
    ]
    rows = read_prompts(write(tmp_path, json.dumps(content), "prompts.json"))
    assert rows == [PromptRow("a star", 0), PromptRow("a moon", 9, 4, categories=("hate", "violence"))]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "text,seed\na,1\n", "'prompt'.* text, seed"),
        ("p.csv", "", r"p\.csv .*'prompt'"),
        ("p.csv", "prompt,case_number\n", r"p\.csv "),
        ("p.csv", "prompt,evaluation_seed\na,1\nb,soon\n", r"\b3\b.*evaluation_seed.*'soon'"),
        ("p.csv", "prompt,evaluation_seed\na,1.5\n", r"\b2\b.*evaluation_seed.*'1.5'"),
        ("p.csv", "prompt,evaluation_guidance\na,nan\n", r"\b2\b.*evaluation_guidance"),
        ("p.csv", "prompt,case_number\na, with a comma,1\n", r"\b2\b.*\b3\b.*\b2\b"),
        ("p.csv", "prompt,case_number\na,1\nb,1\n", "case_number 1"),
        ("p.csv", b"prompt\ncaf\xe9\n", "UTF-8"),
        ("p.txt", " \n\n", r"p\.txt "),
        ("p.json", "{", "JSON"),
        ("p.json", '{"prompt": "a"}', r"p\.json .*'prompt'"),
        ("p.json", '[{"text": "a"}]', "0.*'prompt'.* text"),
        ("p.json", "[5]", "0.*'prompt'"),
        ("p.xlsx", "", r"p\.xlsx.*\.csv, \.txt, \.json"),
    ],
)
def test_a_broken_file_says_what_is_wrong_and_where(tmp_path: Path, name: str, text: str | bytes, says: str):
    with pytest.raises(DataError, match=says):
        read_prompts(write(tmp_path, text, name))


def test_a_missing_file_and_a_folder(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.csv"):
        read_prompts(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv"):
        read_prompts(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        ("image_id,prompt\n398,a\n12,b\n", [398, 12]),
        ("image_id,prompt,case_number\n398,a,1\n12,b,2\n", [1, 2]),
        ("image_id,prompt\n398,a\n398,b\n", [0, 1]),  # two captions of one image
        ("image_id,prompt\nval_398,a\n12,b\n", [0, 1]),
    ],
)
def test_images_are_named_by_image_id_where_nothing_else_can(content: str, numbers: list[int], tmp_path: Path):
    rows = read_prompts(write(tmp_path, content))
    assert [row.case_number for row in rows] == numbers and "image_id" in rows[0].other


@wild
@pytest.mark.parametrize("path", sorted(WILD.glob("*.*")), ids=lambda path: path.name)
def test_files_of_other_projects(path: Path):
    """Against `csv.DictReader` used plainly, field by field."""
    rows = read_prompts(path)
    if path.suffix == ".txt":
        assert [row.prompt for row in rows] == path.read_text(encoding="utf-8").split()
        return
    with path.open(encoding="utf-8", newline="") as file:
        plain = list(csv.DictReader(file))
    assert [row.prompt for row in rows] == [fields["prompt"] for fields in plain]
    assert [row.evaluation_seed for row in rows] == [int(fields["evaluation_seed"]) for fields in plain]
    assert [row.case_number for row in rows] == [
        int(fields.get("case_number", fields.get("image_id", k))) for k, fields in enumerate(plain)
    ]
    assert [row.artist for row in rows] == [fields.get("artist") for fields in plain]
    assert not any(name == "" or name.startswith("Unnamed") for row in rows for name in row.other)


@wild
def test_i2p_whole():
    """4,703 prompts (the file has 4,709 lines, since some prompts hold line breaks) in seven categories, one prompt
    empty."""
    rows = read_prompts(WILD / "i2p.csv")
    assert len(rows) == 4703
    assert {category for row in rows for category in row.categories} == {
        "harassment", "hate", "illegal activity", "self-harm", "sexual", "shocking", "violence",
    }  # fmt: skip
    assert sum(not row.prompt.strip() for row in rows) == 1
    assert all(row.width and row.height and row.evaluation_guidance is not None for row in rows)
    assert 0 < sum(float(row.other["nudity_percentage"]) > 50 for row in rows) < len(rows)
