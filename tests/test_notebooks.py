"""The notebooks run from top to bottom as they stand, on the embedded models, and say that the concept went and came
back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from mu.algorithms import method
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRESETS = {
    "experiment_stable_diffusion": ("canvas", "stable-diffusion"),
    "experiment_vision_language": ("canvas-vlm", "llava"),
}
"""Of the embedded model and of the real one."""
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def results(book: NotebookNode) -> list[NotebookNode]:
    """What the cells gave, without warnings and progress."""
    return [out for cell in book.cells for out in cell.get("outputs", []) if out.get("name") != "stderr"]


def pictures(book: NotebookNode) -> int:
    return sum("image/png" in out.get("data", {}) for out in results(book))


def printed(book: NotebookNode) -> dict[str, str]:
    """Lines ``when: what`` that the cells print."""
    text = "".join(out.text for out in results(book) if out.output_type == "stream")
    return dict(line.split(":", 1) for line in text.splitlines() if ": " in line)


def test_both_notebooks_of_the_documents_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*PRESETS]


@by_name
def test_the_concept_goes_the_others_stay_and_it_comes_back(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    book, committed = read(path), read(path)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = printed(book)
    (gone, *kept), (gone_after, *kept_after) = (
        [int(n) for n in re.findall(r"(\d+)%", told[when])] for when in ("before", "after")
    )
    assert gone > 80 and min(kept) > 80, "control: all were known"
    assert gone_after < 30 and min(kept_after) > 80
    again, restored = (next(told[key] for key in told if key.startswith(start)) for start in ("erased", "restored"))
    assert (again, restored) == (" True", " True")
    assert pictures(book) == pictures(committed) == 5 and printed(committed).keys() == told.keys()


@by_name
def test_it_is_committed_as_it_ran(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    assert path.stat().st_size < 1e6
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not any(out.output_type == "error" or out.get("name") == "stderr" for cell in code for out in cell.outputs)
    assert printed(book)["before"] != printed(book)["after"]


@by_name
def test_one_cell_names_the_model_and_for_a_real_one_the_published_settings_are_enough(path: Path) -> None:
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    assert [k for k, source in enumerate(code) if "canvas" in source or "Ada" in source] == [0]
    embedded, _, real = code[0].partition("# For ")
    lines = [line.removeprefix("# ") for line in real.splitlines() if " = " in line]
    spaces: list[dict[str, Any]] = [{}, {}]
    exec(embedded, {}, spaces[0])
    exec("\n".join(lines), {}, spaces[1])
    assert spaces[0].keys() == spaces[1].keys() and spaces[1]["SETTINGS"] == {}
    presets = method("slug").presets
    for preset, values in zip(PRESETS[path.stem], spaces, strict=True):
        assert presets[preset].model == values["MODEL"] and presets[preset].clip
