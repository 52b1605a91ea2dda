"""A plan: which cells a YAML file stands for, their names, and every error at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import ConfigErrors
from mu.grid.plan import Cell, GridConfig, plan_of, read_plan
from tests.grid.conftest import SUITE, small


def wrong(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigErrors) as refused:
        plan_of(values, "grid.yaml")
    return [line.removeprefix("grid.yaml: ") for line in refused.value.each]


def test_every_method_setting_concept_model_and_seed_is_a_cell(tiny_folder: Path) -> None:
    methods = [
        "uce",
        {
            "method": "esd",
            "set": {"train.iterations": 2},
            "sweep": {"negative_guidance": [1.0, 2.0], "train.lr": [1e-4]},
        },
    ]
    plan = plan_of(
        small(
            methods=methods, concepts=["star", ["neon", "moon"]], models=["canvas", str(tiny_folder)], seeds=[0, 1, 2]
        )
    )
    told = [(c.method, c.concepts, c.model, c.seed, c.changed.get("negative_guidance")) for c in plan.cells]
    assert len(set(told)) == len(told) == 4 + 2 * 2 * 2 * 3, "uce searches without a seed: one cell for all"
    assert ("esd", ("neon", "moon"), "canvas", 2, 2.0) in told
    cell = next(c for c in plan.cells if c.seed == 2)
    assert cell.settings["seed"] == 2 and cell.settings["train"]["iterations"] == 2
    assert cell.label == "esd train.iterations=2 negative_guidance=1 train.lr=0.0001"
    assert Cell.read(cell.to_json()) == cell


def test_a_name_says_what_the_cell_is_and_nothing_else() -> None:
    def name(**more: Any) -> str:
        (cell,) = plan_of(small(**more)).cells
        return cell.name

    plain = name()
    assert plain.startswith("uce-star-canvas-")
    assert plain == name(methods=[{"method": "uce", "preset": "canvas"}]), "the preset that fits the model"
    assert plain == name(suites=[{**SUITE, "steps": 2}], images=True, device="cpu", memory=3)
    others = [
        name(concepts=["moon"]), name(concepts=["Star"]), name(methods=[{"method": "uce", "set": {"lamb": 0.7}}]),
        name(methods=["esd"]), name(methods=[{"method": "uce", "preset": "styles"}]),
    ]  # fmt: skip
    assert len({plain, *others}) == 6


def test_all_errors_come_at_once_each_with_its_place() -> None:
    methods = [
        "ucee", {"method": "uce", "set": {"lamda": 0.1}}, {"method": "spm", "preset": "canvass"},
        {"method": "esd", "set": {"concepts": ["x"]}}, {"method": "uce", "config": "nowhere.yaml"},
    ]  # fmt: skip
    suites = [{**SUITE, "judg": "x", "base_answers": "y"}, "conceptt", {"suite": "coco", "prompts": "none.csv"}]
    lines = wrong(small(methods=methods, suites=suites, device="gpu"))
    assert [line.partition(":")[0] for line in lines] == [
        "suites.0", "suites.0", "suites.1", "suites.2", "device", *(f"methods.{k}" for k in range(5)),
    ]  # fmt: skip
    assert "takes no judg" in lines[0] and "base_answers is not for a grid" in lines[1]
    assert "Did you mean 'concept'?" in lines[2] and "none.csv" in lines[3]
    assert "Did you mean 'uce'?" in lines[5] and "Did you mean 'lamb'?" in lines[6] and "'canvas'" in lines[7]


def test_a_missing_clip_of_a_calibrated_search_is_an_error_of_the_plan() -> None:
    esd = {"method": "esd", "preset": "calibrated", "set": {"calibrate.clip": "./nowhere.pt"}}
    (line,) = wrong(small(methods=[esd]))
    assert line.startswith("methods.0: ") and "nowhere.pt does not exist" in line
    esd["set"]["calibrate.clip"] = "canvas-clip"
    assert plan_of(small(methods=[esd])).cells, "control"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"judge": "clipp:x"}, "unknown judge 'clipp:x'. Did you mean 'clip'?"),
        ({"judge": "clip:"}, "written clip:MODEL"),
        ({"judge": 5}, "unknown judge '5'"),
        ({"judge": None}, None),
        ({"steps": 0}, "denoising steps is from 1"),
        ({"steps": "many"}, "denoising steps is from 1"),
        ({"judg": None}, "takes no judg"),
    ],
)
def test_options_of_a_suite_are_checked_before_anything_runs(options: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert plan_of(small(suites=[{**SUITE, **options}])).cells
        return
    (line,) = wrong(small(suites=[{**SUITE, **options}]))
    assert line.startswith("suites.0: ") and said in line


def test_errors_of_the_file_s_own_keys_come_at_once() -> None:
    values = small(
        concepts=["a, b", ""], sedes=[1], attacks=["prompt"], methods=[{"method": "uce", "sweep": {"lamb": []}}]
    )
    lines = wrong(values)
    assert [line.partition(":")[0] for line in lines[:4]] == ["attacks", "methods.0.sweep", "concepts.0", "concepts.1"]
    assert "none exist yet" in lines[0] and "has a comma" in lines[2]
    assert lines[4].startswith("unknown setting 'sedes'. Did you mean 'seeds'?")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"concepts": ["star", " STAR "]}, "concepts: 'star' is named twice"),
        ({"concepts": [["star", "moon"], ["moon", "star"]]}, "concepts: 'moon + star' is named twice"),
        ({"models": ["canvas", "canvas"]}, "models: 'canvas' is named twice"),
        ({"seeds": [3, 3]}, "seeds: 3 is named twice"),
        ({"suites": [SUITE, {**SUITE, "steps": 2}]}, "suites: 'concept' is named twice"),
        ({"methods": ["uce", {"method": "uce", "preset": "canvas"}]}, "methods.1: uce canvas of star is asked for twice"),
        ({"methods": [{"method": "uce", "sweep": {"lamb": [0.3, 0.3]}}]}, "methods.0: uce lamb=0.3 of star is asked for twice"),
    ],
)  # fmt: skip
def test_what_is_asked_for_twice_is_refused(more: dict[str, Any], line: str) -> None:
    assert wrong(small(**more)) == [f"{line}: leave one out"]


@pytest.mark.parametrize(
    ("tune", "line"),
    [
        ({"concepts": ["Star"], "seeds": [1]}, "tune.concepts: 'star' is reported too"),
        ({"concepts": ["moon"], "seeds": [1, 7]}, "tune.seeds: 7 is a seed that suite concept reports on"),
        (
            {"concepts": ["moon"], "seeds": [1], "suite": "canvas"},
            "tune.suite: 'canvas' is not one of the grid's suites",
        ),
    ],
)
def test_a_grid_reports_on_nothing_that_it_tunes_on(tune: dict[str, Any], line: str) -> None:
    (found,) = wrong(small(tune=tune))
    assert found.startswith(line)
    assert plan_of(small(tune={"concepts": ["moon"], "seeds": [1]})).tuning_of().seeds == (1,), "control"


def test_a_suite_s_own_seeds_count_as_reported() -> None:
    suite = {key: value for key, value in SUITE.items() if key != "seeds"}
    (line,) = wrong(small(suites=[suite], tune={"concepts": ["moon"], "seeds": [288]}))
    assert "288 is a seed that suite concept reports on" in line


def test_a_file_is_read_as_it_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "methods: [uce]\nconcepts: [012, yes, 1984]\nsuites:\n- {suite: concept, judge: canvas, seeds: [1]}\n"
    )
    assert [cell.concepts for cell in read_plan(path).cells] == [("012",), ("yes",), ("1984",)]
    assert GridConfig.parse(small()).to_yaml()


def test_a_sweep_that_never_ends_is_refused_before_it_is_made() -> None:
    sweep = {name: [float(k) for k in range(1, 400)] for name in ("lamb", "erase_scale")}
    (line,) = wrong(small(methods=[{"method": "uce", "sweep": sweep}]))
    assert "159201 cells are more than 100000" in line
