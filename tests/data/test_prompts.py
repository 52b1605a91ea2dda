"""Prompt files: every form found in the wild is read, and a broken one says where it is broken."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from pathlib import Path

import pytest

from mu.core.errors import DataError
from mu.data.columns import columns_given
from mu.data.prompts import PromptRow, read_prompts, seeded

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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_lines_end_as_on_any_system(end: str, name: str, tmp_path: Path):
    """A sign that only Python takes for the end of a line is none."""
    texts = ["a star", "a\u2028moon\x85"]
    rows = ["prompt", *texts] if name == "p.csv" else texts
    rows = [json.dumps(text, ensure_ascii=False) for text in rows] if name == "p.jsonl" else rows
    found = read_prompts(write(tmp_path, "".join(f"{row}{end}" for row in rows), name))
    assert [row.prompt.strip() for row in found] == [text.strip() for text in texts]


def test_a_line_of_json_each_is_the_same_list(tmp_path: Path):
    entries = ["a star", {"Sensitive Prompt": "a moon", "case_number": 9, "sd_seed": 4, "categories": ["hate", "gore"]}]
    plain = read_prompts(write(tmp_path, json.dumps(entries[1:]), "prompts.json"))
    lines = [json.dumps(entry) for entry in entries]
    assert read_prompts(write(tmp_path, f"{lines[1]}\n\n", "prompts.jsonl")) == plain
    assert plain == [PromptRow("a moon", 9, 4, categories=("hate", "gore"))]
    assert read_prompts(write(tmp_path, lines[0], "prompts.jsonl")) == [PromptRow("a star", 0)]  # control


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
        ("p.csv", "words,seed\na,1\n", "'prompt'.* words, seed.*--column"),
        ("p.csv", "promt,seed\na,1\n", "'prompt'.*--column 'promt'"),
        ("p.csv", "prompt;seed\na;1\n", "separated by ';'"),
        ("p.csv", "prompt,prompt,seed\na,b,1\n", "'prompt' twice"),
        ("p.csv", "prompt,note,note\na,b,c\n", "'note' twice"),
        ("p.csv", "prompt,seed,evaluation_seed\na,1,1\nb,1,2\n", "line 3.*'seed' and 'evaluation_seed'.*--column seed"),
        ("p.csv", 'prompt,seed\n"a star,1\na moon,2\n', "line 3.*quote"),
        ("p.csv", 'prompt,seed\n"a" star,1\n', "line 2.*quote"),
        ("p.csv", "prompt,seed\na\x00,1\n", "line 2 has a NUL"),
        ("p.csv", f"prompt,seed\na,{2**64}\n", "line 2.*seed is.*between 0"),
        ("p.csv", "prompt,seed\na,-1\n", "line 2.*seed is '-1'"),
        ("p.csv", f"prompt,seed\na,{'7' * 5000}\n", "line 2.*seed is"),
        ("p.csv", "prompt,seed\na,4.26E+09\n", "line 2.*'4.26E.09', not a whole number, all digits"),
        ("p.csv", "prompt,seed\na,1_000\n", "line 2.*'1_000'"),
        ("p.csv", "prompt,cfg_scale\na,1e999\n", "line 2.*cfg_scale"),
        ("p.csv", "prompt,width\na,0\n", "line 2.*width is '0'"),
        ("p.csv", "prompt,height\na,1000000000\n", "line 2.*height"),
        ("p.csv", "prompt,Prompt\na,a\nb,c\n", r"p\.csv, line 3: .*'prompt' and 'Prompt'.*--column prompt"),
        ("p.csv", "", r"p\.csv is empty"),
        ("p.csv", "prompt,case_number\n", r"p\.csv "),
        ("p.csv", "prompt,evaluation_seed\na,1\nb,soon\n", r"\b3\b.*evaluation_seed.*'soon'"),
        ("p.csv", "prompt,evaluation_seed\na,1.5\n", r"\b2\b.*evaluation_seed.*'1.5'"),
        ("p.csv", "prompt,evaluation_guidance\na,nan\n", r"\b2\b.*evaluation_guidance"),
        ("p.csv", "prompt,case_number\na, with a comma,1\n", r"\b2\b.*\b3\b.*\b2\b"),
        ("p.csv", b"prompt\ncaf\xe9\n", r"p\.csv is not UTF-8 text \(line 2, byte 10\)"),
        ("p.txt", b"a star\r\na moon\rcaf\xe9\n", r"p\.txt is not UTF-8 text \(line 3,"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl, line 2 is not JSON"),
        ("p.jsonl", '"a"\n\n[1]\n', "line 3 is neither a text nor an object"),
        ("p.jsonl", '{"prompt": "a"}\n{"seed": 1}\n', "line 2 has no 'prompt'; it has: seed"),
        ("p.jsonl", '{"prompt": "a", "sd_seed": "soon"}\n', "line 1: sd_seed is 'soon'"),
        ("p.jsonl", "\n", r"p\.jsonl holds no prompts"),
        ("p.txt", " \n\n", r"p\.txt "),
        ("p.json", "{", "JSON"),
        ("p.json", '{"prompt": "a"}', r"p\.json .*'prompt'"),
        ("p.json", '[{"words": "a"}]', "'prompt'.* words"),
        ("p.json", '[{"prompt": "a"}, {"seed": 1}]', "entry 1 has no 'prompt'; it has: seed"),
        ("p.json", '[{"prompt": {"a": 1}}]', "entry 0: 'prompt' holds"),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]', "'prompt' twice"),
        ("p.json", r'["\ud83d"]', "surrogate"),
        ("p.json", "[" * 100_000, "nested too deep"),
        ("p.json", f'[{{"prompt": "a", "seed": {"7" * 5000}}}]', "5000 digits"),
        ("p.json", "[5]", "0.*'prompt'"),
        ("p.xlsx", "", r"p\.xlsx.*\.csv, \.txt, \.json, \.jsonl"),
    ],
)
def test_a_broken_file_says_what_is_wrong_and_where(tmp_path: Path, name: str, text: str | bytes, says: str):
    with pytest.raises(DataError, match=says) as caught:
        read_prompts(write(tmp_path, text, name))
    assert len(str(caught.value)) < 400 + len(str(tmp_path)) and str(caught.value).isprintable()


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


@pytest.mark.parametrize(
    ("header", "row", "wanted"),
    [
        ("prompt,seed", "a,7", PromptRow("a", 0, 7)),
        ("Prompt, Eval Seed ,Guidance-Scale", "a,7,3", PromptRow("a", 0, 7, 3.0)),
        ("prompt,sd_guidance_scale,width,height", "a,3,64,32", PromptRow("a", 0, None, 3.0, 64, 32)),
        ("case_num,source,prompt", "17,coco,a", PromptRow("a", 17, other={"source": "coco"})),
        ("target_prompt,adv_prompt", "b,a", PromptRow("a", 0, other={"target_prompt": "b"})),
        ("sensitive prompt,normal prompt", "a,b", PromptRow("a", 0, other={"normal prompt": "b"})),
        ("caption,prompt", "b,a", PromptRow("a", 0, other={"caption": "b"})),
        ("TEXT,cfg", "a,2", PromptRow("a", 0, None, 2.0)),
        ("prompt,evaluation_seed\\", "a,7\\", PromptRow("a", 0, 7)),
        ("seed,prompt,class\\", "7,a,cat\\", PromptRow("a", 0, 7, class_name="cat")),
        ("seed,sd_seed,prompt", "7,7,a", PromptRow("a", 0, 7)),
        ("seed,sd_seed,prompt", ",7,a", PromptRow("a", 0, 7)),
    ],
)
def test_columns_go_by_many_names(tmp_path: Path, header: str, row: str, wanted: PromptRow):
    assert read_prompts(write(tmp_path, f"{header}\n{row}\n")) == [wanted]
    keys, values = ([cell.strip().rstrip("\\") for cell in line.split(",")] for line in (header, row))
    entry = {key: value for key, value in zip(keys, values, strict=True) if value}
    assert read_prompts(write(tmp_path, json.dumps([entry]), "p.json")) == [wanted]


def test_any_column_can_be_named(tmp_path: Path):
    path = write(tmp_path, "Sentence,prompt,s=0,guide\na,b,7,3\n")
    assert read_prompts(path, columns_given(["Sentence", "seed=s=0", "guidance_scale=guide"])) == [
        PromptRow("a", 0, 7, 3.0, other={"prompt": "b"})
    ]
    assert columns_given(["s=0"]) == {"prompt": "s=0"}
    assert columns_given(["seed=a", "sd_seed=a"]) == {"seed": "a"}
    for twice in (["Sentence", "prompt"], ["seed=guide", "eval_seed=s=0"]):
        with pytest.raises(DataError, match=r"--column gives the (prompt|seed) twice"):
            columns_given(twice)
    with pytest.raises(DataError, match=r"p.* has no column 'Sentense'\. Did you mean 'Sentence'"):
        read_prompts(path, {"prompt": "Sentense"})


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("prompt,evalutaion_seed", "'evalutaion_seed' is not read.*--column seed='evalutaion_seed'"),
        ("prompt,sede", "--column seed='sede'"),
        ("prompt,Hieght", "--column height='Hieght'"),
        ("prompt,initial_seed", "--column seed='initial_seed'"),
        ("prompt,guidence_scale", "--column guidance='guidence_scale'"),
        ("prompt,negative_prompt", "'negative_prompt' is not read: pass --negative"),
        ("prompt,adv_prompt", "--column 'adv_prompt' reads the other"),
        ("caption,source", "prompts are those of the column 'caption'"),
        ("prompt,resolution", "'resolution' is not read.*'width' and 'height'.*--size"),
        ("prompt,SD Image Size", "'width' and 'height'"),
        ("prompt,img_dims", "'width' and 'height'"),
        ("prompt,h", "--column height='h'"),
        ("prompt,image_w", "--column width='image_w'"),
        ("prompt,file_size", None),
        ("prompt,source", None),
        ("prompt,image_id", None),
        ("prompt,toxicity", None),
    ],
)
def test_a_column_that_nearly_fits_is_told(tmp_path: Path, header: str, told: str | None, caplog):
    read_prompts(write(tmp_path, f"{header}\na,1\n"))
    assert any(record.levelno >= logging.WARNING for record in caplog.records) == bool(told)
    assert not told or re.search(told, caplog.text), caplog.text


def test_case_numbers_that_repeat_become_row_numbers(tmp_path: Path, caplog):
    """Images would overwrite each other. Control: numbers that do not repeat stay."""
    rows = read_prompts(write(tmp_path, "prompt,case_number\na,1220\nb,1220\nc,5\n"))
    assert [(row.case_number, row.other["case_number"]) for row in rows] == [(0, "1220"), (1, "1220"), (2, "5")]
    assert "1220 occurs twice" in caplog.text
    assert [row.case_number for row in read_prompts(write(tmp_path, "prompt,case_number\na,9\nb,5\n"))] == [9, 5]


def test_numbers_that_are_filled_in_are_told_of_a_table(tmp_path: Path, caplog):
    caplog.set_level("INFO", "mu")
    for table in ("prompt\na\n", "prompt,artist\na,b\n"):
        caplog.clear()
        assert read_prompts(write(tmp_path, table))[0].case_number == 0
        assert "there is no case_number: prompts are numbered from 0" in caplog.text
    caplog.clear()  # control
    read_prompts(write(tmp_path, "prompt,case_number\na,3\n"))
    (tmp_path / "p.txt").write_text("a\n")
    read_prompts(tmp_path / "p.txt")
    assert not caplog.messages


def test_seeds_that_are_filled_in_are_told(tmp_path: Path, caplog):
    rows = read_prompts(write(tmp_path, "prompt,seed\na,0\nb,\n"))
    assert [row.evaluation_seed for row in seeded(rows, 5, "list.csv")] == [0, 5]
    assert "list.csv: 1 of 2 prompts have no seed: seed 5" in caplog.text
    caplog.clear()
    assert seeded(rows[:1], 5, "list.csv") == rows[:1] and not caplog.messages


def test_a_pipe_is_no_prompt_file(tmp_path: Path):
    """It would wait for a writer."""
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(DataError, match=r"p\.csv: it is a pipe"):
        read_prompts(tmp_path / "p.csv")


@wild
@pytest.mark.parametrize("path", sorted(WILD.glob("*.*")), ids=lambda path: path.name)
def test_files_of_other_projects(path: Path, caplog):
    """Against `csv.DictReader` used plainly, field by field, and without a warning."""
    rows = read_prompts(path)
    assert not caplog.messages
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


def test_a_column_of_prompts_that_was_named_for_something_else_is_told(tmp_path: Path):
    path = tmp_path / "list.csv"
    path.write_text("prompt,seed\na,1\n")
    with pytest.raises(DataError, match="'prompt' was named for seed; name another with --column prompt=NAME"):
        read_prompts(path, {"seed": "prompt"})
    path.write_text("text_column,seed\na,1\n")
    with pytest.raises(DataError, match="its columns are: text_column, seed"):  # the control
        read_prompts(path)
