"""Each row of the table "equal to what": this package's steps against golden tensors made from the equations alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.reference import make_steps as steps
from tests.reference.parity import ROWS, Row, double, error


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}-{row.preset}-{row.measure.__name__}")
def test_a_step_equals_the_programs(row: Row) -> None:
    assert row.error() < row.bound
    assert row.control() > 1e4 * row.bound, "a changed equation does not match"


@pytest.mark.parametrize("name", steps.STEPS)
def test_golden_tensors_are_what_the_equations_say(name: str) -> None:
    with double():
        found = steps.STEPS[name]()
    wanted = load_file(steps.FOLDER / f"{name}.safetensors")
    assert error({key: value.detach() for key, value in found.items()}, wanted) < 1e-9
    assert (steps.FOLDER / f"{name}.safetensors").stat().st_size < 4096
    assert torch.stack([value.double().abs().max() for value in wanted.values()]).min() > 0, "control"
