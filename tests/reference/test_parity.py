"""Each row of the table "equal to what": this package's steps against golden tensors made from the equations alone."""

from __future__ import annotations

import re
from inspect import signature
from typing import get_args

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mu
from mu.algorithms import ALGORITHMS, method
from mu.core.errors import ConfigError
from tests.conftest import ROOT
from tests.reference import make_steps as steps
from tests.reference.parity import DEPARTURES, ROWS, Departure, Row, error, golden

OTHERS = {"images", "mia", "models"}
"""What is no method and has departures."""


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


CHOICES = [(each, switch) for each in DEPARTURES if each.method in ALGORITHMS for switch in each.switch]


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


def test_a_switch_that_is_no_setting_is_an_argument() -> None:
    known = {"mu evaluate --data mia:released", "mu.load(..., compat_gelu='gelu')"}
    assert {switch for each in DEPARTURES if each.method not in ALGORITHMS for switch in each.switch} == known
    assert "mia:released" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert "compat_gelu" in signature(mu.load).parameters


def test_presets_of_released_programs_are_in_the_table() -> None:
    released = {(name, preset) for name in ALGORITHMS for preset in method(name).presets if "released" in preset}
    assert released <= {(row.method, row.preset) for row in ROWS}
    assert {row.method for row in ROWS} | {each.method for each in DEPARTURES} <= {*ALGORITHMS, *OTHERS}
    assert len(released) >= 13, "control"


def test_each_value_of_a_compat_list_is_a_switch_of_the_table() -> None:
    """SLUG's settings that reproduce its programs have a line each."""
    switches = " ".join(switch for each in DEPARTURES if each.method == "slug" for switch in each.switch)
    values = {value for part in ("gradients", "layers") for value in _compat_values(part)}
    assert len(values) == 8 and {value for value in values if f"'{value}'" not in switches} == set()


def _compat_values(section: str) -> tuple[str, ...]:
    kind = method("slug").config_class.model_fields[section].annotation
    (literal,) = get_args(kind.model_fields["compat"].annotation)
    return get_args(literal)


def test_the_page_is_the_table() -> None:
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| {row.method} | {row.preset} | {row.program} | {row.quantity} |" in page, "run make docs"
    for each in DEPARTURES:
        assert f"| {each.method} | {each.there} | {each.here} |" in page and each.why in page, "run make docs"
    told = [float(text) for text in re.findall(r"\| below (1e-\d+) \|", page)]
    assert len(told) == len(ROWS) and max(told) <= max(row.bound for row in ROWS)
