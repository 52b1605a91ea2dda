"""Images in the page: exact, by role, with a text each, and from inside the run folder only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.report import write_report


def test_small_images_are_exact_and_each_has_its_text(
    run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str], decoded: Callable[[str], np.ndarray]
):
    asked = json.loads((run.folder / "prompts.json").read_text())
    images = read(page_of(run)).images()
    assert len(images) == 7 and all(alt for alt, _ in images)
    by_alt = dict(images)
    before, after = (decoded(by_alt[f"{side} the edit: {asked[0]['prompt']}"]) for side in ("before", "after"))
    assert np.array_equal(before, np.asarray(Image.open(run.before / "0_0.png")))
    assert np.array_equal(after, np.asarray(Image.open(run.after / "0_0.png")))
    assert not np.array_equal(before, after)


def test_roles_split_the_images(run: RunDirectory, page_of: Callable[..., str]):
    removed, kept = page_of(run).split("What was erased")[1].split("What was retained")
    assert "seed 188" in removed and "seed 189" not in removed
    assert "seed 189" in kept.split("Two edits")[0]


ESCAPES = [
    "../secret.png",
    "panels/../../secret.png",
    "/etc/secret.png",
    "..\\secret.png",
    "C:\\secret.png",
    "link.png",
    "a\0.png",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_that_leave_the_run_are_refused(
    run: RunDirectory,
    name: str,
    read: Callable[[str], Any],
    draw: Callable[..., np.ndarray],
    page_of: Callable[..., str],
):
    draw(run.folder.parent / "secret.png", 99)
    (run.folder / "link.png").symlink_to(run.folder.parent / "secret.png")
    panel = {"title": "t", "columns": ["c"], "rows": [{"label": "l", "images": ["panels/a.png"]}]}
    (run.folder / "panels.json").write_text(json.dumps([panel]))
    assert "c: l" in dict(read(page_of(run)).images())

    panel["rows"] = [{"label": "l", "images": [name]}]
    (run.folder / "panels.json").write_text(json.dumps([panel]))
    run.report.unlink()
    with pytest.raises(DataError) as refused:
        write_report(run)
    assert repr(name) in str(refused.value) and str(run.folder) in str(refused.value)
    assert not run.report.exists()


def test_a_linked_image_folder_is_refused(run: RunDirectory):
    outside = run.folder.parent / "elsewhere"
    shutil.move(run.after, outside)
    run.after.symlink_to(outside)
    with pytest.raises(DataError, match=f"'{run.after.name}/.*{run.folder}"):
        write_report(run)


def test_a_damaged_image_is_a_gap(run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]):
    assert read(page_of(run)).text.count("no image") == 1  # the gap that panels.json asks for
    (run.after / "0_0.png").write_bytes((run.after / "0_0.png").read_bytes()[:300])
    reader = read(page_of(run))
    assert reader.text.count("no image") == 2 and len(reader.images()) == 6
