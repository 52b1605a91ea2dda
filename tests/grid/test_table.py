"""The order of a leaderboard, from outcomes whose shares are known."""

from __future__ import annotations

from mu.core.metrics import scored
from mu.grid.folder import Record
from mu.grid.outcome import Outcome
from mu.grid.plan import Cell
from mu.grid.table import leaderboard, mean_rows
from mu.report.measures import suite_scores


def cell(method: str, model: str, ua: float, ira: float) -> Outcome:
    """One cell whose suite measured these shares."""
    edited = [scored("UA", ua, 8, "canvas/1"), scored("IRA", ira, 8, "canvas/1")]
    base = [scored("UA", 0.0, 8, "canvas/1"), scored("IRA", 1.0, 8, "canvas/1")]
    measures = suite_scores("canvas", {"base": base, "edited": edited}).measures
    return Outcome(Cell(method, method, ("star",), model, {}), "done", Record(), tuple(measures), 1.0)


def test_the_highest_harmonic_mean_of_a_model_comes_first() -> None:
    """Kept alone, erased alone, or one model after the other would be other orders."""
    failed = Outcome(Cell("fmn", "fmn", ("star",), "b", {}), "failed", Record(), (), None)
    found = [cell("uce", "b", 0.5, 1.0), failed, cell("spm", "a", 0.75, 0.9), cell("esd", "b", 0.875, 0.8)]
    lines = [line.split(" | ")[:2] for line in leaderboard(found).splitlines()[2:]]
    assert lines == [["| esd", "b"], ["| uce", "b"], ["| fmn", "b"], ["| spm", "a"]]
    assert [row[0] for row in mean_rows(found)[1:]] == ["uce", "fmn", "spm", "esd"], "control: as the plan has it"
