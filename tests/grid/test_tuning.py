"""The search for settings: its space, its budget, its files, and that a kill changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mu.algorithms import ALGORITHMS, method
from mu.core.concept import Concept
from mu.core.errors import ConfigError, DataError, MissingDependency, OutputError
from mu.core.tunable import Choice
from mu.data.prompt_lists import NEIGHBOUR_TEMPLATES, TARGET_TEMPLATES
from mu.edits.files import open_edit
from mu.grid.engines import in_this_process
from mu.grid.folder import GridFolder, Record
from mu.grid.page import write_page
from mu.grid.plan import Cell, Measuring, plan_of
from mu.grid.running import run
from mu.grid.tuning import Asked, Tuned, for_tuning, own_settings, tune_in
from tests.grid.conftest import SUITE, small

ASKED = Asked(
    "uce", "canvas", ((Concept("star"),),),
    for_tuning(Measuring("concept", (3,), {"judge": "canvas", "retain": ["heart"], "steps": 6})), trials=2,
)  # fmt: skip
TUNABLE = [name for name in ALGORITHMS if method(name).tunable]


def test_the_methods_with_settings_to_search() -> None:
    assert {*TUNABLE} >= {"spm", "sepce", "cie", "esd", "ca", "fmn", "uce", "slug"}
    assert "clip-ft" not in TUNABLE, "control"


@pytest.mark.parametrize("name", TUNABLE)
def test_every_end_of_a_space_is_a_setting_that_the_method_takes(name: str) -> None:
    chosen = method(name)
    fitted = None if "canvas" in chosen.presets else "styles"  # what calibrates itself finds its own learning rate
    for setting, where in chosen.tunable.items():
        for value in where.values if isinstance(where, Choice) else (where.low, where.high):
            given = chosen.for_concepts(["star"], "canvas", fitted, {setting: value})
            assert setting not in given.unused(), "it has an effect on canvas"
            chosen.for_concepts(["star"], "CompVis/stable-diffusion-v1-4", None, {setting: value})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A search of two trials, in one go."""
    return tune_in(ASKED, tmp_path_factory.mktemp("tune") / "whole", in_this_process)


def facts(tuned: Tuned) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.params, trial.value, trial.evaluations) for trial in tuned.trials]


def test_what_has_no_effect_is_not_searched() -> None:
    """A calibrated search finds its own learning rate; with a published preset it is searched."""
    groups = ((Concept("star"),),)
    measuring = Measuring("concept", (1,), {})
    calibrated = Asked("esd", "some/model", groups, measuring, "calibrated")
    assert set(calibrated.space) == set(method("esd").tunable) - {"train.lr"}
    assert set(Asked("esd", "some/model", groups, measuring, "styles").space) == set(method("esd").tunable)


def test_the_first_trial_is_the_method_s_own_and_the_best_is_kept(whole: Tuned) -> None:
    first, second = whole.trials
    assert first.params == own_settings(ASKED) == {
        "erase_scale": 1.0, "preserve_scale": 3.0, "lamb": 0.1, "tokens": "padded",
    }  # fmt: skip
    assert second.params != first.params
    assert whole.best.value == max(first.value or 0, second.value or 0) > 0
    found = method("uce").config_class.load(whole.settings)
    assert {name: getattr(found, name) for name in first.params} == whole.best.params
    assert found.concepts == ["star"] and found.preserve[:2] == ["", "somebody"], "the preset's other settings stay"  # type: ignore[attr-defined]
    head = whole.settings.read_text(encoding="utf-8").splitlines()[:6]
    assert all(line.startswith("# ") for line in head) and "--config uce.yaml" in head[0] and "seeds 3" in head[3]


def test_the_origin_says_what_was_spent_on_what(whole: Tuned) -> None:
    told = json.loads(whole.origin.read_text(encoding="utf-8"))
    assert told["concepts"] == [["star"]] and told["measuring"]["seeds"] == [3] and told["criterion"] == "harmonic"
    assert told["spent"] == {"trials": 2, "evaluations": sum(trial.evaluations for trial in whole.trials)}
    images, steps = 4 + 4, 6
    assert [trial.evaluations for trial in whole.trials] == [2 * steps * 2 * images, 2 * steps * images], "base once"
    assert told["versions"]["mu-unlearning"] and len(told["trials"]) == 2


def test_trials_ask_in_other_words_than_reports(whole: Tuned) -> None:
    folder = GridFolder(whole.settings.parent)
    (asked, *_) = folder.folder.glob("runs/*/answers/concept/prompts.json")
    prompts = {entry["prompt"] for entry in json.loads(asked.read_text(encoding="utf-8"))}
    reported = {
        template.replace("{}", name) for group in (TARGET_TEMPLATES, NEIGHBOUR_TEMPLATES) for of in group.values()
        for template in of for name in ("star", "heart")
    }  # fmt: skip
    assert len(prompts) == 8 and not prompts & reported
    run = next(folder.folder.glob("runs/*/edit.safetensors"))
    assert open_edit(run).info.concepts == ("star",), "control: ordinary runs"


def test_a_killed_search_goes_on_to_the_same_end(whole: Tuned, tmp_path: Path) -> None:
    class Killed(BaseException): ...

    def killed(cells: Sequence[Cell], home: Path) -> Iterator[tuple[Cell, Record]]:
        raise Killed

    home = tmp_path / "tune"
    assert facts(tune_in(replace(ASKED, trials=1), home, in_this_process)) == facts(whole)[:1]
    with pytest.raises(Killed):
        tune_in(ASKED, home, killed)
    again = tune_in(ASKED, home, in_this_process)
    assert facts(again) == facts(whole)
    assert again.settings.read_text() == whole.settings.read_text()

    def none(cells: Sequence[Cell], home: Path) -> Iterator[tuple[Cell, Record]]:
        pytest.fail("nothing is left to do")

    assert facts(tune_in(ASKED, home, none)) == facts(whole)
    with pytest.raises(OutputError, match=r"uce\.journal is of another search: choose another folder"):
        tune_in(replace(ASKED, seed=1), home, none)


def test_a_budget_of_model_evaluations_ends_the_search(whole: Tuned, tmp_path: Path) -> None:
    """The second trial costs at most as much as the first: it begins only if twice that is within the budget."""
    cost = whole.trials[0].evaluations
    home = whole.settings.parent
    assert facts(tune_in(replace(ASKED, trials=9, evaluations=cost), home, in_this_process)) == facts(whole)
    first = tune_in(replace(ASKED, evaluations=2 * cost - 1), tmp_path / "tune", in_this_process)
    assert facts(first) == facts(whole)[:1]


def test_what_cannot_be_searched_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "tune"
    with pytest.raises(ConfigError, match="clip-ft names no settings to search; tunable methods: spm, slug"):
        tune_in(replace(ASKED, method="clip-ft"), home, in_this_process)
    with pytest.raises(ConfigError, match="'lamb' is set, and the search would change it"):
        tune_in(replace(ASKED, layer={"lamb": 1.0}), home, in_this_process)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependency, match=r"needs the package 'optuna': pip install optuna \(the extra 'grid'"):
        tune_in(ASKED, home, in_this_process)
    assert not home.exists()


def test_a_concept_that_the_judge_does_not_know_ends_the_search_with_the_reason(tmp_path: Path) -> None:
    asked = replace(ASKED, concepts=((Concept("Van Gogh"),),), trials=1)
    with pytest.raises(DataError, match=r"no settings can be judged so: uce-Van-Gogh-canvas-.*Van Gogh"):
        tune_in(asked, tmp_path, in_this_process)


def test_a_base_that_does_not_show_the_concept_ends_the_search_at_once(tmp_path: Path) -> None:
    options = {**ASKED.measuring.options, "steps": 1}
    asked = replace(ASKED, measuring=replace(ASKED.measuring, options=options))
    with pytest.raises(DataError, match=r"whether 'star' is gone cannot be told: the judge sees 'star' in only"):
        tune_in(asked, tmp_path, in_this_process)
    assert len([*tmp_path.glob("runs/*")]) == 1


def test_a_grid_reports_with_the_settings_that_it_tuned(tmp_path: Path) -> None:
    tune = {"concepts": ["star"], "seeds": [3], "trials": 1}
    suite = [{**SUITE, "steps": 6}]
    plan = plan_of(small(concepts=["fish"], suites=suite, tune=tune))
    assert run(plan, tmp_path / "grid", in_this_process).done == 1
    folder = GridFolder(tmp_path / "grid")
    (cell,) = folder.cells()
    assert cell.changed == own_settings(ASKED) and cell.concepts == ("fish",)
    told = folder.tuning()
    assert told["concepts"] == ["star"] and told["found"][0]["settings"] == cell.changed
    page = write_page(folder).read_text(encoding="utf-8")
    assert "tuned on star at the seeds 3" in page
    asked: list[str] = []

    def engine(cells: Sequence[Cell], home: Path) -> Iterator[tuple[Cell, Record]]:
        asked.extend(cell.name for cell in cells)
        return iter(())

    wider = plan_of(small(concepts=["neon", "fish"], suites=suite, tune=tune))
    run(wider, tmp_path / "grid", engine)
    assert len(asked) == 1 and asked[0].startswith("uce-neon"), "nothing is tuned again for another concept"
