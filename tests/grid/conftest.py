"""A grid that is run once: two methods without training, two concepts of the embedded world."""

from __future__ import annotations

from typing import Any

import pytest

from mu.grid.engines import in_this_process
from mu.grid.folder import GridFolder
from mu.grid.plan import Plan, plan_of
from mu.grid.running import run

SUITE: dict[str, Any] = {
    "suite": "concept", "judge": "canvas", "seeds": [7], "everyday": 0, "steps": 4, "retain": ["heart", "moon"],
}  # fmt: skip


def small(**more: Any) -> dict[str, Any]:
    """The plain values of a grid of one cheap cell; ``more`` replaces its keys."""
    return {"methods": ["uce"], "concepts": ["star"], "suites": [SUITE], **more}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, GridFolder]:
    """The plan and the folder of a grid of four cells, of which two fail: what they erase should stay."""
    home = tmp_path_factory.mktemp("grid") / "finished"
    methods = ["uce", {"method": "uce", "set": {"lamb": 1000.0}}]
    plan = plan_of(small(methods=methods, concepts=["star", "moon"]))
    ended = run(plan, home, in_this_process)
    assert ended.done == 2 and len(ended.failed) == 2
    return plan, GridFolder(home)
