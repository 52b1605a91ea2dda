"""A manifest tells whether a run is still the one that was filed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import DataError
from mu.core.evidence import CHANGED, INTACT, note_files, read_evidence
from mu.core.manifest import commands, is_gone, manifest_finding, read_manifest, write_manifest
from mu.core.run import RunDirectory
from tests.conftest import searched


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = searched(tmp_path / "neon")
    edited = run.answers / "concept" / "edited"
    edited.mkdir(parents=True)
    for k in range(5):
        (edited / f"target_{k}_seed1.png").write_bytes(bytes([k]))
    note_files(run, edited)
    run.report.write_text("<html>", encoding="utf-8")
    write_manifest(run, ["It is gone."], [])
    return run


def swap_image(run: RunDirectory) -> None:
    (run.answers / "concept/edited/target_3_seed1.png").write_bytes(b"another")


def swap_edit(run: RunDirectory) -> None:
    run.edit.write_bytes(b"others")


def edit_report(run: RunDirectory) -> None:
    run.report.write_text("<html>!", encoding="utf-8")


def remove_settings(run: RunDirectory) -> None:
    run.config.unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [(swap_image, "target_3_seed1.png"), (swap_edit, "edit.safetensors"), (edit_report, "report.html"),
     (remove_settings, "config.yaml")],
)  # fmt: skip
def test_what_is_not_as_filed_is_named(run: RunDirectory, change: Any, named: str) -> None:
    before = manifest_finding(run)
    assert before and before.state == INTACT and "10 files" in before.text  # control
    change(run)
    after = manifest_finding(run)
    assert after and after.state == CHANGED and named in after.text and "more" not in after.text


def test_of_many_changes_some_are_named(run: RunDirectory) -> None:
    for path in (run.answers / "concept/edited").glob("*.png"):
        path.unlink()
    found = manifest_finding(run)
    assert found and found.text.count("_seed1.png") == 3 and found.text.endswith("and 2 more")


def test_a_copy_elsewhere_shows_a_run_that_was_filed_anew(run: RunDirectory, tmp_path: Path) -> None:
    """Who swaps an image and writes evidence and manifest again deceives the folder, and not the copy."""
    copy = tmp_path / "filed.json"
    shutil.copy(run.manifest, copy)
    assert manifest_finding(run, copy) == (str(copy), INTACT, manifest_finding(run).text)
    swap_image(run)
    note_files(run, run.answers / "concept/edited")
    write_manifest(run, ["It is gone."], [])
    assert manifest_finding(run).state == INTACT
    found = manifest_finding(run, copy)
    assert (found.part, found.state) == (str(copy), CHANGED) and "target_3_seed1.png" in found.text


def test_new_evidence_takes_the_old_manifest_away(run: RunDirectory) -> None:
    note_files(run, run.metrics)
    assert not run.manifest.exists() and manifest_finding(run) is None


def test_it_states_what_an_engineer_files(run: RunDirectory) -> None:
    filed = read_manifest(run.manifest)
    assert (filed.concepts, filed.method, filed.model, filed.verdict) == (["neon"], "spm", "canvas", ["It is gone."])
    assert filed.commands == commands(read_evidence(run)) and len(filed.commands) == 1
    assert "python" in filed.versions and filed.when and "evidence.json" in filed.files


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"edits": []}', "not a manifest"),
        ('{"kind": "mu manifest", "format": 2}', "upgrade mu"),
        ('{"kind": "mu manifest", "format": 1, "files": {"../secret": "0"}}', "leaves the run folder"),
        ('{"kind": "mu manifest", "format": 1, "files": {"/etc/passwd": "0"}}', "leaves the run folder"),
        ("{", "not JSON"),
    ],
)
def test_other_files_are_refused(run: RunDirectory, content: str, told: str) -> None:
    run.manifest.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        manifest_finding(run)


def test_a_manifest_is_not_filed_anew_without_the_evidence_that_it_lists(tmp_path, caplog):
    """Else deleting the evidence and reporting again would look intact."""
    run = RunDirectory(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "evidence.json").write_text("{}")
    write_manifest(run, ["a verdict"], [])
    assert not is_gone(run, run.evidence)
    run.evidence.unlink()
    assert is_gone(run, run.evidence) and not is_gone(run, run.similarity)
