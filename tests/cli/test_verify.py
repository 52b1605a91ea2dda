"""``mu verify`` and the formats of ``mu report``, on a run whose images are swapped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mu.core.evidence import note_files, note_scores
from mu.core.run import RunDirectory
from mu.core.scores import Score
from tests.conftest import searched


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = searched(tmp_path / "neon")
    edited = run.answers / "concept" / "edited"
    edited.mkdir(parents=True)
    (edited / "target_neon_0_seed1.png").write_bytes(b"image")
    table = {
        column: [Score("target shown", value, 40, "lower", "concept/1", interval=interval)]
        for column, value, interval in (("base", 0.925, (0.801, 0.974)), ("edited", 0.0, (0.0, 0.088)))
    }
    run.write_scores("concept", table)
    note_scores(run, "concept")
    note_files(run, edited)
    return run


@pytest.mark.parametrize("format", ["html", "md", "json", "pdf"])
def test_each_report_comes_with_a_manifest_that_tells_a_swapped_image(run: RunDirectory, cli: Any, format: str) -> None:
    done = cli("report", run.folder, "--format", format)
    assert (done.exit_code, done.stdout) == (0, f"{run.folder / 'report'}.{format}\n")
    told = 'Of 40 images that ask for "neon", 0.0% [0.0, 8.8] show it; the base shows it in 92.5% [80.1, 97.4].'
    assert json.loads(run.manifest.read_text())["verdict"][0] == told
    assert cli("verify", run.folder).exit_code == 0  # control
    copy = Path(shutil.copy(run.manifest, run.folder.parent / "filed.json"))
    (run.answers / "concept/edited/target_neon_0_seed1.png").write_bytes(b"another")
    done = cli("verify", run.folder, "--manifest", copy, "--json")
    states = {each["part"]: each["state"] for each in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert states[str(copy)] == states["answers/concept/edited/"] == "changed" != states["edit.safetensors"]


def test_bad_input_is_one_line(run: RunDirectory, cli: Any) -> None:
    run.manifest.write_text("{}", encoding="utf-8")
    for arguments, message in (
        (["verify", run.folder], "not a manifest"),
        (["verify", run.folder, "--manifest", run.folder / "none.json"], "does not exist"),
        (["report", run.folder], "manifest.json"),
        (["report", run.folder, "--format", "docx"], "docx"),
        (["report", run.folder, run.folder, "--format", "pdf"], "comparison"),
        (["report", run.folder, "--format", "json", "--out", run.scores], "scores.json"),
    ):
        done = cli(*arguments)
        assert done.exit_code == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not list(run.folder.glob("report.*"))
