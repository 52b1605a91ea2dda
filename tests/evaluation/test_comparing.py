"""What suites put beside their scores."""

from __future__ import annotations

from pathlib import Path

import torch

from mu.core.run import RunDirectory
from mu.diffusion.image_files import read_images, save_image
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import Found
from mu.evaluation.comparing import MOST_CHANGED, mean, put_most_changed
from mu.report.images import grids
from mu.report.measures import suite_scores
from mu.report.verdict import losses


def test_each_suite_has_its_own_panel_of_what_changed_most(tmp_path: Path):
    """A second suite leaves the images of the first as they are."""
    run, found = RunDirectory(tmp_path / "run"), Found(tmp_path / "edited", tmp_path / "base", torch.device("cpu"))
    run.folder.mkdir()
    rows = [ImageRow(f"{k}_seed1.png", f"prompt {k}", 1) for k in range(MOST_CHANGED + 1)]
    for k, row in enumerate(rows):
        save_image(torch.full((3, 2, 2), k / 10), found.edited / row.name)
        save_image(torch.zeros(3, 2, 2), tmp_path / "base" / row.name)
    change = torch.arange(len(rows), dtype=torch.float32)
    put_most_changed(run, found, rows, change, "concept")
    put_most_changed(run, found, rows, -change, "prompts")
    by_concept, by_prompts = grids(run)
    assert "(concept)" in by_concept.title and "(prompts)" in by_prompts.title
    for grid, first in ((by_concept, MOST_CHANGED), (by_prompts, 0)):
        label, (_, edited) = grid.rows[0]
        assert label == f"prompt {first}"
        assert torch.allclose(read_images([run.folder / edited.file])[0], torch.tensor(first / 10), atol=0.01)


def test_what_one_image_lost_is_not_told_from_chance():
    for values, after in (([0.5], [0.4]), ([0.5, 0.5], [0.4, 0.4])):
        table = {"base": [mean("CLIP score", values, "p")], "edited": [mean("CLIP score", after, "p", before=values)]}
        lost = losses([suite_scores("concept", table)])
        assert bool(lost.unsure) is (len(values) == 1) and bool(lost.fell) is (len(values) == 2)
