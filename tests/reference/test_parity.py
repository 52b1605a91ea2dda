"""Each row of the table "equal to what": this package's steps against golden tensors made from the equations alone."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mu.algorithms import ALGORITHMS, method
from mu.core.errors import ConfigError
from tests.conftest import ROOT
from tests.reference import make_steps as steps
from tests.reference.parity import DEPARTURES, ROWS, Departure, Row, error, golden


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}-{row.preset}-{row.measure.__name__}")
def test_a_step_equals_the_programs(row: Row) -> None:
    assert row.error() < row.bound
    assert row.control() > 1e4 * row.bound, "a changed equation does not match"


@pytest.mark.parametrize("name", steps.STEPS)
def test_the_equations_have_not_changed(name: str) -> None:
    """Golden files keep what they gave; the float32 noise schedule of another processor moves it by up to 1e-6."""
    found, wanted = golden(name), load_file(steps.FOLDER / f"{name}.safetensors")
    assert error(found, wanted) < 1e-5
    assert (steps.FOLDER / f"{name}.safetensors").stat().st_size < 4096
    assert torch.stack([value.double().abs().max() for value in wanted.values()]).min() > 0, "control"


CHOICES = [(each, switch) for each in DEPARTURES for switch in each.switch]


@pytest.mark.parametrize(
    ("departure", "switch"), CHOICES, ids=lambda each: each if isinstance(each, str) else each.method
)
def test_a_switch_is_a_setting_that_is_off_by_default(departure: Departure, switch: str) -> None:
    """And one that another value of `departure`'s method can have."""
    kind, (name, value) = method(departure.method).config_class, switch.split("=")
    before = kind.parse({})
    assert kind.parse({}, {name: yaml.safe_load(value)}) != before
    with pytest.raises(ConfigError):  # control
        kind.parse({}, {f"{name}_": yaml.safe_load(value)})


def test_presets_of_released_programs_are_in_the_table() -> None:
    released = {(name, preset) for name in ALGORITHMS for preset in method(name).presets if "released" in preset}
    diffusion = {(name, preset) for name, preset in released if name != "slug" and not name.startswith("clip")}
    assert diffusion <= {(row.method, row.preset) for row in ROWS}
    assert {row.method for row in ROWS} | {each.method for each in DEPARTURES} <= {*ALGORITHMS, "images"}
    assert len(diffusion) >= 10, "control"


def test_the_page_is_the_table() -> None:
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| {row.method} | {row.preset} | {row.program} | {row.quantity} |" in page, "run make docs"
    for each in DEPARTURES:
        assert f"| {each.method} | {each.there} | {each.here} |" in page, "run make docs"
    told = [float(text) for text in re.findall(r"\| below (1e-\d+) \|", page)]
    assert len(told) == len(ROWS) and max(told) <= max(row.bound for row in ROWS)
