"""Images of one colour, and a judge that tells them apart: what enters a number can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.diffusion.image_files import save_image
from mu.diffusion.image_folder import ImageRow
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.answers import Answers
from mu.evaluation.judges import Seen
from mu.evaluation.suites import ImageSuite
from mu.models.diffusion import DiffusionModel

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "": (1.0, 1.0, 1.0)}
Shows = Callable[[str, ImageRow], str]
"""The colour of an image, from its column and row."""


class Colours:
    """Answers with the colour; its features are the mean over pixels."""

    name = "colours"

    def known(self, concept: str) -> str:
        if concept not in COLOURS:
            raise DataError(f"the judge colours has no class for {concept!r}")
        return concept

    def rivals(self, concept: str) -> list[str]:
        return [name for name in COLOURS if name not in ("", concept)]

    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        means = images.mean(dim=(2, 3))
        known = torch.tensor(list(COLOURS.values()))
        return Seen([list(COLOURS)[k] for k in torch.cdist(means, known).argmin(dim=1).tolist()], means)

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        return {"judge": self.name}


@pytest.fixture
def bank(tiny: DiffusionModel) -> Callable[..., Bank]:
    """``bank("red")``: an edit of these concepts that changes nothing."""
    return lambda *concepts: Bank(
        tiny, [WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("test", concepts))]
    )


@pytest.fixture
def scored(tmp_path: Path) -> Callable[[ImageSuite, Bank, Shows], Mapping[str, Any]]:
    """The scores of images of which ``shows`` tells the colour, by column and name; ``how`` they were measured."""

    def of(plan: ImageSuite, bank: Bank, shows: Shows) -> dict[str, Any]:
        answers = Answers(bank, tmp_path / "base", tmp_path / "edited", plan.steps, plan.guidance)
        for column in ("base", "edited"):
            for row in plan.rows:
                height, width = (side or 4 for side in row.size)
                colour = torch.tensor(COLOURS[shows(column, row)]).view(3, 1, 1)
                save_image(colour.expand(3, height, width), tmp_path / column / row.name)
        table, how = plan.score(RunDirectory(tmp_path), answers)
        named: dict[str, dict[str, Score]] = {column: {s.name: s for s in scores} for column, scores in table.items()}
        return {"how": how, **named}

    return of


@pytest.fixture
def without_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither LPIPS nor VGG-19 nor Inception are there, whatever is installed."""
    from mu.core.errors import MissingDependency
    from mu.evaluation import backbones, comparing
    from mu.evaluation.suites import artists

    def missing(*_: Any, **__: Any) -> Any:
        raise MissingDependency("network", "eval", "this")

    for module, name in (
        (comparing, "lpips_network"), (artists, "lpips_network"), (artists, "vgg_features"), (backbones, "inception_features")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, missing)
