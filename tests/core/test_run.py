"""A run's folder: what it holds is typed, what is wrong in it is one line, and what an earlier run made goes with
it."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import DataError, OutputError
from mu.core.records import Origin, Panel, PanelRow, Prompt
from mu.core.run import RunDirectory, command
from mu.core.scores import Score, Table


def table(value: float, protocol: str = "canvas/1") -> Table:
    return {
        "base": [Score("UA", 0.0, 8, "higher", protocol)],
        "edited": [Score("UA", value, 8, "higher", protocol, {"neon": value})],
    }


# -- scores
# -----------------------------------------------------------------------------------------------------------------


def test_a_second_suite_adds_and_a_second_run_of_one_replaces_it_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_scores() == {}
    run.write_scores("canvas", table(0.5))
    run.write_scores("vlm", table(0.1, "vlm/1"))
    assert run.read_scores() == {"canvas": table(0.5), "vlm": table(0.1, "vlm/1")}
    run.write_scores("canvas", table(0.75))
    assert run.read_scores() == {"canvas": table(0.75), "vlm": table(0.1, "vlm/1")}
    told = json.loads(run.scores.read_text(encoding="utf-8"))
    assert told["format"] == 2 and told["suites"]["canvas"]["edited"][0]["value"] == 0.75


FIRST_FORMAT = """{
  "base": [{"name": "FA@1", "value": 1.0, "n": 6, "direction": "lower", "protocol": "clip/1, celeba", "per_item": {}}],
  "edited": [
    {"name": "FA@1", "value": 0.25, "n": 6, "direction": "lower", "protocol": "clip/1, celeba", "per_item": {"Ada": 0.25}},
    {"name": "UA", "value": 0.75, "n": 8, "direction": "higher", "protocol": "canvas/1", "per_item": {}}
  ]
}"""


def test_a_file_of_the_first_format_opens_and_its_suites_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(FIRST_FORMAT, encoding="utf-8")
    found = run.read_scores()
    assert {suite: list(columns) for suite, columns in found.items()} == {
        "clip": ["base", "edited"],
        "canvas": ["edited"],
    }
    assert found["clip"]["edited"] == [Score("FA@1", 0.25, 6, "lower", "clip/1, celeba", {"Ada": 0.25})]
    run.write_scores("vlm", table(0.1, "vlm/1"))
    assert run.read_scores() == {**found, "vlm": table(0.1, "vlm/1")}


def test_the_first_formats_lower_mia_is_read_towards_chance(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(FIRST_FORMAT.replace("FA@1", "MIA").replace('"UA"', '"odd"'), encoding="utf-8")
    found = run.read_scores()
    assert [score.direction for score in found["clip"]["base"]] == ["towards 0.5"]
    assert [score.direction for score in found["canvas"]["edited"]] == ["higher"], (
        "control: one of one's own keeps what it says"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"scores\.json is not JSON"),
        ("[]", r"scores\.json: expected names and values, not a list"),
        ('{"format": 3, "suites": {}}', r"scores\.json: format: Input should be 2"),
        ('{"format": 2}', r"scores\.json: suites: "),
        (
            '{"format": 2, "suites": {"clip": {"base": [{"name": "UA"}]}}}',
            r"scores\.json: suites\.clip\.base\.0\.value: it is missing",
        ),
        (FIRST_FORMAT.replace("higher", "up"), r"scores\.json: edited\.1: a direction is"),
        (FIRST_FORMAT.replace("0.75", '"much"'), r"scores\.json: edited\.1\.value: "),
    ],
)
def test_damaged_scores_are_one_line_and_are_not_written_over(tmp_path: Path, text: str, says: str) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(text, encoding="utf-8")
    for use in (run.read_scores, lambda: run.write_scores("canvas", table(0.5))):
        with pytest.raises(DataError, match=says) as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1
    assert run.scores.read_text(encoding="utf-8") == text


# -- prompts, panels and the other files
# ------------------------------------------------------------------------------------


def panel(title: str, *images: str | None) -> Panel:
    return Panel(
        title=title, columns=[str(k) for k in range(len(images))], rows=[PanelRow(label="l", images=list(images))]
    )


def test_prompts_and_panels_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_prompts() == run.read_panels() == [] and run.origin() == Origin()
    prompts = [
        Prompt(case_number=0, prompt="a", seed=1, role="target", gate=[0.5]),
        Prompt(case_number="x", prompt="b"),
    ]
    run.write_prompts(prompts)
    assert run.read_prompts() == prompts
    assert json.loads(run.prompts.read_text(encoding="utf-8"))[1] == {"case_number": "x", "prompt": "b"}
    run.write_panels([panel("one", "panels/a.png"), panel("two", None)])
    run.put_panel(panel("one", "panels/b.png", None))
    assert run.read_panels() == [panel("two", None), panel("one", "panels/b.png", None)]


READERS = {
    "scores.json": RunDirectory.read_scores,
    "prompts.json": RunDirectory.read_prompts,
    "panels.json": RunDirectory.read_panels,
    "metrics.jsonl": RunDirectory.read_metrics,
    "environment.json": RunDirectory.read_environment,
}
RIGHT = {
    "scores.json": FIRST_FORMAT,
    "prompts.json": '[{"case_number": 1, "prompt": "a"}]',
    "panels.json": '[{"title": "t", "columns": ["a"], "rows": [{"label": "l", "images": [null]}]}]',
    "metrics.jsonl": '{"step": 1, "loss": 2}\n{"step": 2, "lo',
    "environment.json": '{"method": "x", "concepts": "neon", "seconds": 1, "more": [1]}',
}


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("prompts.json", '{"case_number": 1}', ""),
        ("prompts.json", '[{"case_number": [1], "prompt": "a"}]', "0.case_number"),
        ("prompts.json", '[{"case_number": 1, "prompt": 2}]', "0.prompt"),
        ("panels.json", '[{"title": 1}]', "0.title"),
        ("panels.json", RIGHT["panels.json"].replace("[null]", "[]"), "0: row 'l' of 't' has 0 "),
        ("metrics.jsonl", '{"step": 1}\n[1]', "line 2"),
        ("metrics.jsonl", '{"step": "one"}', "line 1.step"),
        ("metrics.jsonl", '{"loss": 1}', "line 1.step"),
        ("environment.json", "[]", "expected names and values"),
        ("environment.json", '{"concepts": {"neon": 1}}', "concepts"),
        ("environment.json", '{"seconds": "long"}', "seconds"),
    ],
)
def test_wrong_content_is_one_line_that_names_file_and_key(tmp_path: Path, name: str, text: str, key: str) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / name).write_text(RIGHT[name], encoding="utf-8")
    assert READERS[name](run), "control"
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        READERS[name](run)
    assert str(caught.value).startswith(f"{tmp_path / name}: {key}") and "\n" not in str(caught.value)


NO_FILES = ("pipe", "folder", "device")


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_unopened(tmp_path: Path, name: str, kind: str) -> None:
    """Reading a pipe or /dev/zero would never end."""
    match kind:
        case "pipe":
            os.mkfifo(tmp_path / name)
        case "folder":
            (tmp_path / name).mkdir()
        case "device":
            (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        READERS[name](RunDirectory(tmp_path))


DEEP = "[" * 100_000 + "]" * 100_000
ODD = {"too deep": DEEP, "5,000 digits": "9" * 5000, "beyond 64 bits": str(2**70), "half a pair": '"\\ud83d"'}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", READERS)
def test_odd_values_are_one_short_line_that_names_the_file(tmp_path: Path, name: str, odd: str) -> None:
    run, key = RunDirectory(tmp_path), '"step": ' if name == "metrics.jsonl" else '"seconds": '
    whole = {"prompts.json": '[{"case_number": %s, "prompt": "a"}]', "panels.json": '[{"title": %s}]'}
    text = whole.get(name, "{" + key + "%s}") % ODD[odd]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        READERS[name](run)
    told = str(caught.value)
    assert told.startswith(str(tmp_path / name)) and told.isprintable() and len(told) < 400


def test_a_number_beyond_64_bits_is_named_by_its_place(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(FIRST_FORMAT.replace('"n": 8', f'"n": {2**64}'), encoding="utf-8")
    with pytest.raises(DataError, match=r"scores\.json: edited\.1\.n: the number is beyond 64 bits"):
        run.read_scores()
    run.scores.write_text(FIRST_FORMAT.replace('"n": 8', f'"n": {2**62}'), encoding="utf-8")
    assert run.read_scores()["canvas"]["edited"][0].n == 2**62, "control"


def test_a_folder_that_is_no_run_is_told_what_a_run_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    for name, told in {
        "none": "does not exist: name a folder that `mu erase` wrote",
        "empty": "is not a run: name a folder that `mu erase` wrote",
        "file": "is not a run",
        "begun": "holds an unfinished run: continue it with `mu erase --resume`",
    }.items():
        with pytest.raises(DataError, match=f"{tmp_path / name} {told}"):
            RunDirectory(tmp_path / name).require_edit()
    (tmp_path / "begun" / "edit.safetensors").touch()
    RunDirectory(tmp_path / "begun").require_edit()  # control


MADE = (
    "log.txt",
    "metrics.jsonl",
    "edit.safetensors",
    "scores.json",
    "prompts.json",
    "panels.json",
    "report.html",
    "report.md",
    "report.json",
    "report.pdf",
    "manifest.json",
    "evidence.json",
    "similarity.json",
    "similarity.png",
    "slug_Ada_[x].json",
    "pareto-vision-Ada_[x].png",
    "steps-Ada_[x].png",
    "checkpoints/training.pt",
    "checkpoints/concept_0.safetensors",
    "tensorboard/events.out.tfevents.1.host",
    "before/0_0.png",
    "after/0_0.png",
    "panels/0/1.png",
    "panels/similarity-base.png",
    "answers/base/neon_star_seed1.png",
    "answers/base/recipe.json",
    "answers/edited/a_picture_seed12.png",
    "answers/concept/prompts.json",
)
OWN = (
    "notes.txt",
    "steps-mine.png",
    "before/notes.txt",
    "before/favourite.png",
    "after/sub/0_0.png",
    "panels/figure 3.png",
    "answers/base/mine.png",
    "answers/other/a_seed1.png",
    "checkpoints/best.pt",
    "tensorboard/events.txt",
    "neon/edit.safetensors",
    "panels/own.svg",
    "comparison.html",
)


def test_overwriting_removes_what_an_earlier_run_made_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin("a: 1\n", {})
    for name in (*MADE, *OWN):
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    run.begin("a: 1\n", {}, resume=True)
    assert all((run.folder / name).exists() for name in (*MADE, *OWN)), "control: going on keeps all"
    run.begin("a: 2\n", {}, overwrite=True)
    run.finish()
    left = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert left == {*OWN, "config.yaml", "environment.json"}


@pytest.mark.parametrize("name", ["prompts.json", "report.html", "log.txt", "scores.json", "before", "answers"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(name: str, tmp_path: Path) -> None:
    """A folder where a file will be written, and a file where images will."""
    run = RunDirectory(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / name).mkdir() if "." in name else (run.folder / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        run.begin("a: 1\n", {})
    assert [path.name for path in run.folder.iterdir()] == [name]
    (run.folder / name).rmdir() if "." in name else (run.folder / name).unlink()
    run.begin("a: 1\n", {})  # control


def test_overwriting_leaves_linked_images_alone(tmp_path: Path) -> None:
    run, elsewhere = RunDirectory(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "base").mkdir()
    (elsewhere / "base/a_seed1.png").touch()
    run.begin("a: 1\n", {})
    run.answers.symlink_to(elsewhere)
    run.begin("a: 1\n", {}, overwrite=True)
    assert (elsewhere / "base/a_seed1.png").exists()


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin("a: 1\n", {"method": "spm"})
    run.edit.write_bytes(b"weights")
    return run


def test_an_overwrite_that_cannot_begin_leaves_the_earlier_run(finished, monkeypatch):
    before = tree(finished.folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mu.core.run.write_json", full)
    with pytest.raises(OutputError):
        RunDirectory(finished.folder).begin("a: 2\n", {}, overwrite=True)
    assert tree(finished.folder) == before


def test_a_run_that_was_being_overwritten_is_never_lost_without_a_word(finished):
    """A process that was killed while it moved the earlier run aside, or just after."""
    again = RunDirectory(finished.folder)
    again._set_aside()
    with pytest.raises(OutputError, match="earlier"):
        RunDirectory(finished.folder).begin("a: 1\n", {})
    (finished.earlier / "edit.safetensors").rename(finished.edit)
    with pytest.raises(OutputError, match="an edit"):
        RunDirectory(finished.folder).begin("a: 1\n", {})
    RunDirectory(finished.folder).begin("a: 1\n", {}, overwrite=True)  # control


def test_the_log_has_the_command_and_what_was_logged(tmp_path):
    run = RunDirectory(tmp_path)
    with run.logged():
        logging.getLogger("mu").info("halfway")
    text = run.log.read_text()
    assert "halfway" in text and len(text.splitlines()) == 3
    with pytest.raises(OSError), run.logged():
        raise OSError("a pipe broke")
    assert "a pipe broke" in run.log.read_text()


def test_refused_work_leaves_no_log(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(DataError), run.logged():
        raise DataError("refused")
    assert not run.log.exists()


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("/venv/bin/mu", "mu erase uce --concept 'Van Gogh'"),
        ("/a/mu/__main__.py", "python -m mu erase uce --concept 'Van Gogh'"),
    ],
)
def test_a_command_can_be_typed_again(program: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "erase", "uce", "--concept", "Van Gogh"])
    assert command() == told


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("UA", {"value": 1.7}, "'UA' is 1.7, and a share is from 0 to 1"),
        ("target shown", {"value": -0.2}, "is -0.2, and a share"),
        ("neighbours kept", {"per_item": {"star": 40.0}}, "item of 'neighbours kept' is 40"),
        ("unasked", {"interval": (0.1, 1.5)}, "interval of 'unasked' is 1.5"),
        ("CRA", {"change": (-1.5, 0.0)}, "changes by 1 at most"),
        ("CLIP score", {"value": 1.7}, ""),
        ("body parts", {"value": 40.0}, ""),
        ("UA", {"value": 1.0}, ""),
    ],
)
def test_a_share_that_nobody_can_have_measured_is_refused(name, change, said, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    score = {"name": name, "value": 0.5, "n": 8, "direction": "higher", "protocol": "x/1", **change}
    run.scores.write_text(json.dumps({"format": 2, "suites": {"x": {"edited": [score]}}}))
    if not said:
        assert run.read_scores()["x"]["edited"][0].name == name  # the control: no share, or a possible one
        return
    with pytest.raises(DataError, match=said) as told:
        run.read_scores()
    assert str(run.scores) in str(told.value)


def test_a_table_that_no_suite_writes_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    score = {"name": "UA", "value": 0.5, "n": 8, "direction": "higher", "protocol": "x/1"}

    def written(suite: str, *scores: dict[str, Any]) -> dict[str, Table]:
        run.scores.write_text(json.dumps({"format": 2, "suites": {suite: {"edited": list(scores)}}}))
        return run.read_scores()

    assert len(written("x", score, {**score, "protocol": "x/1, 3 steps"})["x"]["edited"]) == 2  # control
    with pytest.raises(DataError, match="suite x, edited: 'UA' stands there twice"):
        written("x", score, score)
    for name in ("../x", "", "a/b"):
        with pytest.raises(DataError, match="is no suite"):
            written(name, score)
