"""A run's evidence: intact as it was made, and changed after any of its parts was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mu.core.errors import DataError
from mu.core.evidence import (
    CHANGED,
    INTACT,
    UNKNOWN,
    changed_images,
    changed_panels,
    describe,
    findings,
    note_files,
    note_panels,
    note_scores,
    note_search,
    read_evidence,
)
from mu.core.records import Prompt
from mu.core.run import RunDirectory
from mu.core.scores import Score


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose files were all noted when they were made."""
    run = RunDirectory(tmp_path / "neon")
    run.begin("concepts: [neon]\n", {"method": "spm", "model": "canvas", "concepts": ["neon"]})
    run.edit.write_bytes(b"weights")
    run.log.write_text("begun\nwarning: the loss diverged\n")
    run.metrics.write_text('{"step": 0, "loss": 1.0}\n')
    note_search(run, base="abc")
    for folder in (run.before, run.answers / "edited"):
        folder.mkdir(parents=True)
        (folder / "0_0.png").write_bytes(b"image")
    run.write_prompts([Prompt(case_number=0, prompt="a cat")])
    run.write_scores("canvas", {"edited": [Score("UA", 1, 8, "higher", "canvas/1", {"neon": 1})]})
    note_scores(run, "canvas", how={"seeds": [1, 2]})
    note_files(run, run.before, run.answers / "edited", run.prompts)
    return run


def changed(run: RunDirectory) -> set[str]:
    return {finding.part for finding in findings(run) if finding.state == CHANGED}


def test_an_untouched_run_is_intact(run):
    found = findings(run)
    assert {finding.state for finding in found} == {INTACT}
    assert [finding.part for finding in found] == [
        *("edit.safetensors", "config.yaml", "environment.json", "log.txt", "scores of canvas"),
        *("metrics.jsonl", "prompts.json"),
        *("before/", "answers/edited/"),
    ]


def swap_edit(run):
    run.edit.write_bytes(b"other weights")


def edit_score(run):
    content = json.loads(run.scores.read_text())
    content["suites"]["canvas"]["edited"][0]["value"] = 0.97
    run.scores.write_text(json.dumps(content))


def edit_item(run):
    content = json.loads(run.scores.read_text())
    content["suites"]["canvas"]["edited"][0]["per_item"]["neon"] = 0.5
    run.scores.write_text(json.dumps(content))


def drop_scores(run):
    run.write_scores("clip", {})
    content = json.loads(run.scores.read_text())
    del content["suites"]["canvas"]
    run.scores.write_text(json.dumps(content))


def swap_image(run):
    (run.answers / "edited" / "0_0.png").write_bytes(b"another image")


def rename_image(run):
    (run.before / "0_0.png").rename(run.before / "0_1.png")


def add_image(run):
    (run.before / "1_0.png").write_bytes(b"image")


def edit_settings(run):
    run.config.write_text("concepts: [star]\n")


def edit_environment(key, value):
    def edit(run):
        content = json.loads(run.environment.read_text())
        run.environment.write_text(json.dumps({**content, key: value}))

    return edit


def rename_concept(run):
    run.describe({"concepts": ["Van Gogh"]})


def swap_prompts(run):
    run.write_prompts([Prompt(case_number=0, prompt="a dog")])


def forge_curves(run):
    run.metrics.write_text('{"step": 0, "loss": 0.0}\n')


def edit_log(run):
    run.log.write_text(run.log.read_text().replace("diverged", "converged"))


def shorten_log(run):
    run.log.write_text("begun\n")


def make_pipe(run):
    """Reading it would never end."""
    (run.before / "0_0.png").unlink()
    os.mkfifo(run.before / "0_0.png")


def remove(name):
    return lambda run: (run.folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (swap_edit, {"edit.safetensors", "scores of canvas", "answers/edited/"}),
        (edit_score, {"scores of canvas"}),
        (edit_item, {"scores of canvas"}),
        (drop_scores, {"scores of canvas"}),
        (swap_image, {"answers/edited/"}),
        (rename_image, {"before/"}),
        (add_image, {"before/"}),
        (edit_settings, {"config.yaml"}),
        (rename_concept, {"environment.json"}),
        (edit_environment("seconds", 1.0), {"environment.json"}),
        (edit_environment("platform", "another machine"), {"environment.json"}),
        (edit_environment("citation", "@article{mine}"), {"environment.json"}),
        (edit_environment("anything", "else"), {"environment.json"}),
        (remove("environment.json"), {"environment.json"}),
        (swap_prompts, {"prompts.json"}),
        (remove("edit.safetensors"), {"edit.safetensors", "scores of canvas"}),
        (remove("config.yaml"), {"config.yaml"}),
        (forge_curves, {"metrics.jsonl"}),
        (edit_log, {"log.txt"}),
        (shorten_log, {"log.txt"}),
        (remove("log.txt"), {"log.txt"}),
        (make_pipe, {"before/"}),
        (remove("prompts.json"), {"prompts.json"}),
        (remove("before/0_0.png"), {"before/"}),
        (remove("answers/edited/0_0.png"), {"answers/edited/"}),
    ],
)
def test_every_change_is_found_and_nothing_else(run, change, parts):
    change(run)
    assert changed(run) == parts


def test_further_facts_do_not_bless_an_edited_environment(run):
    edit_environment("seconds", 1.0)(run)
    describe(run, {"mended": {"star": 0.5}})
    assert changed(run) == {"environment.json"}


def test_a_run_whose_environment_was_not_noted_as_a_whole_is_known_by_its_names(run):
    content = json.loads(run.evidence.read_text())
    del content["found"]["environment"]
    run.evidence.write_text(json.dumps(content))
    edit_environment("seconds", 1.0)(run)
    assert not changed(run)
    rename_concept(run)
    assert changed(run) == {"environment.json"}  # control


def test_lines_added_to_the_log_are_no_change_and_are_bound_next_time(run):
    for line in ("measured\n", "measured again\n"):
        with run.log.open("a") as log:
            log.write(line)
        assert not changed(run)
        note_scores(run, "canvas")
    edit_log(run)
    note_scores(run, "canvas")
    assert changed(run) == {"log.txt"}, "the next command does not bless it"
    run.log.write_text("begun\nwarning: the loss diverged\nmeasured\nforged\n")
    assert changed(run) == {"log.txt"}


def test_refused_work_that_wrote_evidence_keeps_its_log(run):
    for write, kept in ((True, True), (False, False)):
        run.log.unlink()
        note_search(run)
        with pytest.raises(DataError), run.logged():
            if write:
                note_scores(run, "canvas")
            raise DataError("refused")
        assert run.log.exists() == kept and not changed(run)
        run.log.touch()


def test_the_layout_of_the_scores_file_is_no_change(run):
    run.scores.write_text(json.dumps(json.loads(run.scores.read_text())))
    assert not changed(run)


def test_further_facts_and_further_answers_are_no_change(run):
    describe(run, {"seconds": 3.5})
    assert run.origin().seconds == 3.5
    (run.answers / "edited" / "1_0.png").write_bytes(b"of a measurement that was interrupted")
    assert not changed(run)


def test_measuring_again_does_not_bless_images_of_others(run):
    swap_image(run)
    (run.before / "0_0.png").write_bytes(b"another image")
    assert [path.name for path in changed_images(run, run.answers / "edited")] == ["0_0.png"]
    note_files(run, run.answers / "edited")  # as a suite that has made them again
    assert changed(run) == {"before/"} and not changed_images(run, run.answers / "edited")


def test_the_next_suite_does_not_bless_panels_that_others_changed(run):
    run.panel_images.mkdir()
    for name in ("changed-concept-1-base.png", "changed-prompts-1-base.png"):
        (run.panel_images / name).write_bytes(b"image")
    run.panels.write_text("[]")
    note_panels(run, changed_panels(run))
    assert not changed(run)
    (run.panel_images / "changed-concept-1-base.png").write_bytes(b"of somebody")
    (run.panel_images / "changed-prompts-1-base.png").write_bytes(b"of somebody else")
    (run.panel_images / "more.png").write_bytes(b"added")
    run.panels.write_text("[ ]")
    before = changed_panels(run)
    assert len(before) == 4
    (run.panel_images / "changed-prompts-1-base.png").write_bytes(b"made again by its suite")
    note_panels(run, before)
    assert changed(run) == {"panels/", "panels.json"} and set(changed_panels(run)) == {
        "panels/changed-concept-1-base.png", "panels/more.png", "panels.json",
    }  # fmt: skip
    note_panels(run, {})  # the control: who does not look blesses all
    assert not changed(run)


def test_evidence_of_a_later_mu_asks_for_an_upgrade(run):
    content = json.loads(run.evidence.read_text())
    run.evidence.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(DataError, match="upgrade"):
        findings(run)


def test_scores_measured_again_belong_to_the_new_edit(run):
    swap_edit(run)
    note_search(run)
    note_scores(run, "canvas")
    assert not changed(run)


def test_a_run_from_before_evidence_is_unknown_and_not_intact(run):
    run.evidence.unlink()
    assert {finding.state for finding in findings(run)} == {UNKNOWN}


def test_evidence_says_how_a_result_was_made(run):
    made = read_evidence(run).scores["canvas"]
    assert made.when.endswith("+00:00") and made.command and made.versions and made.how == {"seeds": [1, 2]}
    assert len(made.edit) == len(made.content) == 64


def test_damaged_evidence_is_refused(run):
    run.evidence.write_text('{"format": 1, "scores": {"canvas": 3}}')
    with pytest.raises(DataError, match=r"evidence\.json"):
        findings(run)
