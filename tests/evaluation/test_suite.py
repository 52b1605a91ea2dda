"""The canvas suite on the shipped model: an edit that does nothing scores as the base, one that breaks the model does not."""

import pytest
import torch

import mu
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.canvas import request
from mu.evaluation.suites import evaluate
from mu.models import EMBEDDED
from mu.models.judge import Judge
from mu.models.parameters import select


def shift(model, size: float) -> WeightEdit:
    chosen = select(model, "unet.conv_out.bias")
    return WeightEdit({name: torch.full_like(p, size) for name, p in chosen.items()}, EditInfo("test", ("neon style",)))


def values(table, column: str) -> dict[str, float]:
    return {score.name: score.value for score in table[column]}


def test_the_suite_tells_nothing_from_something(tmp_path):
    model = mu.load("canvas", device="cpu")
    still = evaluate(
        RunDirectory(tmp_path / "still"), "canvas", model, shift(model, 0.0), seeds=(1,), base_answers=tmp_path / "base"
    )
    assert values(still, "base") == pytest.approx(values(still, "edited"))
    assert values(still, "base")["UA"] <= 0.2 and values(still, "base")["CRA"] >= 0.8
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "base").glob("*.png")}
    broken = evaluate(
        RunDirectory(tmp_path / "broken"), "canvas", model, shift(model, 3.0), seeds=(1,), base_answers=tmp_path / "base"
    )
    assert values(broken, "edited")["IRA"] < 0.5 and values(broken, "edited")["CRA"] < 0.5
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "base").glob("*.png")}, (
        "the base's pictures were made once"
    )
    assert RunDirectory(tmp_path / "broken").read_scores() == broken


@pytest.mark.parametrize(
    ("concept", "found"), [("neon style", ("style", "neon")), ("Pop Art", ("style", "pop art")), ("a star", ("object", "star"))]
)
def test_a_request_is_read_off_the_concept(concept, found):
    assert request([concept], Judge.open(EMBEDDED["canvas-judge"])) == found


def test_what_the_suite_cannot_measure_is_said():
    with pytest.raises(DataError, match="Elon Musk"):
        request(["Elon Musk"], Judge.open(EMBEDDED["canvas-judge"]))
    with pytest.raises(ConfigError, match="canvas"):
        evaluate(RunDirectory("nowhere"), "canvsa", None, None)
