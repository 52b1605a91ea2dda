"""Benchmarks that are grid plans: the plan stands for their cells, and the scripts draw what the grid found."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mu.algorithms import ALGORITHMS
from mu.core.evidence import note_scores, note_search
from mu.core.metrics import scored
from mu.core.run import RunDirectory
from mu.data.canvas import Scene, render
from mu.diffusion.image_folder import RECIPE, claim
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.suites.concept import asked as asks
from mu.grid.cell import Counter
from mu.grid.folder import GridFolder, Record
from mu.grid.plan import Plan, plan_of, read_plan
from mu.models.diffusion import DiffusionModel
from mu.training import kinship, probe, surroundings
from mu.training.surroundings import Surroundings
from tests.conftest import ROOT, Call

RESULTS = ROOT / "docs" / "results"
OPTIONS = ("judge", "clip", "everyday", "steps", "guidance")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``script("generalise")``: the benchmark as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_every_model_of_a_plan_is_shipped_or_trained_by_make_bench() -> None:
    told = (ROOT / "Makefile").read_text(encoding="utf-8")
    worlds = told.split("for world in ")[1].split(";")[0].split()
    known = {"canvas", *(f"outputs/world-{world}/diffusion" for world in worlds)}
    plans = sorted((ROOT / "benchmarks" / "plans").glob("*.yaml"))
    asked = {model for plan in plans for model in yaml.safe_load(plan.read_text(encoding="utf-8")).get("models", [])}
    assert asked <= known and len(worlds) > 1


def test_the_plan_stands_for_the_cells_that_were_measured() -> None:
    """Whether or not the world was trained here: canvas stands in for its model."""
    values = yaml.safe_load((ROOT / "benchmarks" / "plans" / "generalise.yaml").read_text(encoding="utf-8"))
    (model,) = values["models"]
    assert model == "outputs/world-5/diffusion"
    cells = plan_of(values | {"models": ["canvas"]}).cells
    (rows,) = json.loads((RESULTS / "generalise.json").read_text())["worlds"].values()
    planned = [row for row in rows if row["method"] in {cell.method for cell in cells}]
    assert [(cell.method, *cell.concepts) for cell in cells] == [(row["method"], row["concept"]) for row in planned]
    assert {(one.suite, one.seeds) for cell in cells for one in cell.measured} == {("worlds", (701,))}


COLUMNS = {"base": (0.0, 0.9, 0.8, 0.1), "edited": (1.0, 0.8, 0.7, 0.2)}
NAMES = ("UA", "IRA", "CRA", "unasked")


def grid_of_worlds(
    place: Path, done: str, seed: int = 701, base: tuple[float, ...] = COLUMNS["base"], model: str = ""
) -> Path:
    """The folder of a grid of UCE on canvas, whose concept ``done`` has a result and whose other one has none.

    ``model`` is the fingerprint that the run notes of its base; without one, the run is of an earlier version."""
    plan = plan_of({"methods": ["uce"], "concepts": ["star", "moon"], "suites": [{"suite": "worlds", "seeds": [seed]}]})
    folder = GridFolder(place)
    folder.folder.mkdir()
    folder.write("", plan.cells)
    (cell,) = (cell for cell in plan.cells if cell.concepts == (done,))
    run = RunDirectory(folder.run(cell.name).folder)
    run.folder.mkdir(parents=True)
    edit = WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("uce", (done,), found={"gone": True}))
    edit.save(run.edit)
    table = {
        column: [scored(name, value, 8, "worlds/1") for name, value in zip(NAMES, values, strict=True)]
        for column, values in (COLUMNS | {"base": base}).items()
    }
    run.write_scores("worlds", table)
    if model:
        run.config.write_text("concepts: [star]\n", encoding="utf-8")
        run.environment.write_text("{}", encoding="utf-8")
        note_search(run, base=model)
    folder.note(cell.name, Record(state="done", measured={"worlds": cell.measured[0].key}))
    return place


def test_the_script_draws_what_the_grid_found(tmp_path: Path, script: Any) -> None:
    generalise = script("generalise")
    found = generalise.by_world(GridFolder(grid_of_worlds(tmp_path / "grid", "star")))
    assert list(found) == ["canvas (epsilon)"]
    (row,) = found["canvas (epsilon)"]  # the other has no result
    assert row["edited"] == dict(zip(NAMES, COLUMNS["edited"], strict=True)) and row["found"]["gone"] is True
    assert "| uce | star | 100.0 (0.0) | 80.0 (90.0) |" in generalise.table({"worlds": found})


def test_a_table_of_several_grids_is_of_one_making(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = (0.0, 0.9, 0.7, 0.1)
    result = tmp_path / "result.json"

    def run(*given: Path | str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["generalise.py", *map(str, given), "--json", str(result)])
        script("generalise").main()
        return json.loads(result.read_text(encoding="utf-8"))

    def refused(*given: Path | str) -> str:
        before = result.read_bytes() if result.exists() else None
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(*given)
        assert ended.value.code == 2 and (result.read_bytes() if result.exists() else None) == before
        return capsys.readouterr().err

    star, moon = grid_of_worlds(tmp_path / "a", "star"), grid_of_worlds(tmp_path / "b", "moon", base=other)
    later = grid_of_worlds(tmp_path / "c", "star", seed=702)
    elsewhere = grid_of_worlds(tmp_path / "d", "moon")
    assert "earlier" in refused(star, "--add")
    run(star)
    (rows,) = run(moon, "--add", "--untimed")["worlds"].values()
    assert [(row["concept"], row["seconds"]) for row in rows] == [("star", 0.0), ("moon", None)]
    assert "seeds" in refused(later, "--add") and "seeds" in refused(star, later)
    (rows,) = run(elsewhere, "--add")["worlds"].values()
    assert rows[1]["base"]["CRA"] == COLUMNS["base"][2], "control: a row made anew takes the place of the old one"
    made = json.loads(result.read_text(encoding="utf-8"))
    ((world, rows),) = made["worlds"].items()
    made["worlds"][world] = [*rows, {**rows[0], "method": "esd", "concept": "moon"}, {**rows[1], "method": "speed"}]
    made["worlds"][world][2]["base"] = dict(zip(NAMES, other, strict=True))
    result.write_text(json.dumps(made), encoding="utf-8")
    assert "moon" in refused(star, "--add")


def test_rows_of_a_world_that_was_trained_again_are_refused(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another concept too, whose base scores nothing compares. Rows that do not say their model are taken."""
    result = tmp_path / "result.json"

    def added(name: str, concept: str, model: str) -> list[str]:
        given = [str(grid_of_worlds(tmp_path / name, concept, model=model)), *(["--add"] if result.exists() else [])]
        monkeypatch.setattr("sys.argv", ["generalise.py", *given, "--json", str(result)])
        script("generalise").main()
        (rows,) = json.loads(result.read_text(encoding="utf-8"))["worlds"].values()
        return [row.get("model", "") for row in rows]

    assert added("old", "star", "") == [""]
    assert added("first", "moon", "a b") == ["", "a b"]
    assert added("same", "star", "a b") == ["a b", "a b"], "control: of one model"
    before = result.read_bytes()
    with pytest.raises(SystemExit) as ended:
        added("again", "star", "c d")
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "canvas (epsilon)" in told and "trained again" in told
    assert result.read_bytes() == before


def test_rows_of_another_grid_are_added(script: Any) -> None:
    def rows(*names: str, score: float) -> list[dict[str, Any]]:
        return [{"method": m, "concept": c, "score": score} for m, c in (name.split() for name in names)]

    before, more = rows("uce star", "esd star", score=0.0), rows("uce moon", "esd star", score=1.0)
    found = script("generalise").added({"w": before}, {"w": more, "v": more})
    assert [(row["method"], row["concept"], row["score"]) for row in found["w"]] == [
        ("uce", "star", 0.0), ("uce", "moon", 1.0), ("esd", "star", 1.0)
    ]  # fmt: skip
    assert found["v"] == more


def test_only_what_was_timed_has_seconds(script: Any) -> None:
    score = {"UA": 0.0, "IRA": 1.0, "CRA": 1.0, "unasked": 0.0}
    row = {"method": "uce", "concept": "star", "base": score, "edited": score, "found": {"gone": True}, "seconds": 8.0}
    told = script("generalise").table({"worlds": {"w": [row, {**row, "concept": "moon", "seconds": None}]}})
    assert "| 8.0 |" in told and "None" not in told and "| 8 (of 1) |" in told


@pytest.mark.parametrize("name", ["generalise", "generalise_siblings", "calibrated_canvas"])
def test_the_committed_table_is_that_of_the_committed_result(name: str, script: Any) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert script("generalise").table(result) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_what_the_page_says_of_preconditioning_is_what_was_measured(script: Any) -> None:
    """Why it is no default: along the plain gradient each concept is forgotten as well, or better, but once."""
    module = script("canvas_slug_options")
    result = json.loads((RESULTS / "canvas_slug_options.json").read_text(encoding="utf-8"))
    assert module.table_of(result) == (RESULTS / "canvas_slug_options.md").read_text(encoding="utf-8")
    found = [rows for world in result["worlds"].values() for rows in world.values()]
    assert len(found) == 17 and all(rows.keys() == module.OPTIONS.keys() for rows in found)

    def more(option: str, key: str, than: str = module.PAPER) -> int:
        return sum(rows[option][key] > rows[than][key] + 1e-6 for rows in found)

    one, margin = "preconditioned, 0.3", "preconditioned, 0.3, margin 1.1"
    assert (more(one, "FA@5"), more(module.PAPER, "FA@5", one)) == (4, 1), "higher, lower"
    assert (more(one, "kept"), more(module.PAPER, "kept", one)) == (16, 0)
    assert (more(margin, "FA@5"), more(margin, "kept"), more(module.PAPER, "kept", margin)) == (0, 15, 1)
    page = (ROOT / "docs" / "slug.md").read_text(encoding="utf-8")
    for world, name in (("canvas", "canvas"), ("sibling-5", "world 5")):
        for option in (module.PAPER, one, "preconditioned, 1.0", "along g_f, margin 1.1", margin):
            _, _, first, fifth, higher, kept, least, less, *_ = module.mean_row(
                option, [*result["worlds"][world].values()]
            )
            row = next(line for line in page.splitlines() if line.startswith(f"| {name}, {said(option)} | "))
            told = [cell.strip().split(" (")[0].split(" of ")[0] for cell in row.split("|")[2:-1]]
            beside = [higher, less] if option != module.PAPER else ["", ""]
            assert told == [first, fifth, beside[0], kept, least, beside[1]], row


def test_rows_of_another_clip_are_not_gone_on_with(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, made = script("canvas_slug_options"), []

    def run(fingerprint: str) -> None:
        meter = SimpleNamespace(
            world=SimpleNamespace(name="w"), model=fingerprint, concepts=["neon"],
            row=lambda *asked: made.append(asked) or {"failed": "it is no search"},
        )  # fmt: skip
        monkeypatch.setattr(module, "Meter", lambda model: meter)
        monkeypatch.setattr(module, "base_fingerprint", str)
        monkeypatch.setattr("sys.argv", ["canvas_slug_options.py", "--out", str(tmp_path), "--models", "clip"])
        module.main()

    run("a b")
    run("a b")
    assert len(made) == len(module.OPTIONS), "control: the same CLIP's rows are there"
    with pytest.raises(SystemExit) as ended:
        run("c d")
    assert ended.value.code == 2 and "models" in capsys.readouterr().err and len(made) == len(module.OPTIONS)


def said(option: str) -> str:
    """An option as the page's table names it."""
    return option.removeprefix("preconditioned, ").replace("g_f", "`g_f`")


def test_the_leaderboard_is_that_of_the_committed_results(script: Any) -> None:
    module = script("leaderboard")
    assert module.page() == (RESULTS / "leaderboard.md").read_text(encoding="utf-8"), "run the command that it names"
    boards = {title: rows for title, _, rows in module.boards()}
    assert len(boards["canvas"]) == 9 * 8
    for world, rows in json.loads((RESULTS / "generalise.json").read_text(encoding="utf-8"))["worlds"].items():
        assert [row.method for row in boards[world]] == [row["method"] for row in rows]
        for found, row in zip(boards[world], rows, strict=True):
            kept = (row["edited"]["IRA"] + row["edited"]["CRA"]) / 2
            told = (row["edited"]["UA"], pytest.approx(kept), row["seconds"])
            assert row["base"]["UA"] > 0.5 or (found.erased, found.kept, found.search_seconds) == told


def test_what_the_base_does_not_show_is_not_on_the_leaderboard(script: Any) -> None:
    row = {"method": "uce", "concept": "star", "edited": {"UA": 1.0, "IRA": 0.9, "CRA": 0.7}}
    shown, unseen = ({**row, "base": {"UA": ua, "IRA": 1.0, "CRA": 1.0}} for ua in (0.1, 0.9))
    outcome = script("leaderboard").outcome
    assert outcome(shown, "canvas").erased == 1.0 and outcome(unseen, "canvas").erased is None


def test_evaluations_of_a_search_are_those_that_it_makes(
    script: Any, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few words, on random weights: how many are compared and known is taken from the model."""
    monkeypatch.setattr(surroundings, "MOST_WORDS", 5)
    counter, counted = Counter(), script("counted")
    counter.watch(tiny)
    words = surroundings.nearest(tiny, "neon", surroundings.whole_words(tiny, "neon"))
    kinds = kinship.divided(tiny, "neon", words)
    surroundings.agreed(tiny, "neon")
    learned = sum(map(len, kinds))
    felt = next(n for n in range(6) if counted.around(5, n, learned) == counter.count)
    assert len(words) == 5 and learned >= 1 and felt >= learned
    around = Surroundings("neon", ("sketch",), ("star",), ("{}",), ("one {}", "a drawing of {}"), ("",))
    made = probe.Probe(tiny, around)
    assert made.evaluations == counted.probing(2, 1)[0]
    made.read()
    assert made.evaluations == sum(counted.probing(2, 1))
    counter.close()


def test_what_a_search_that_trains_costs_follows_from_the_committed_seconds(script: Any) -> None:
    counted = script("counted")
    rows = {row["method"]: row for row in counted.searches(1.0)}
    assert rows["uce"]["counted"] and not rows["esd"]["counted"]
    share = counted.seconds()["esd"] / counted.seconds()["uce"]
    assert rows["esd"]["usual"] == round(share * counted.TIMED_EVALUATIONS) and 2 < share < 10
    assert rows["uce"]["usual"] < rows["uce"]["most"] and rows["uce"]["PFLOP"] == rows["uce"]["usual"] / 1000


def test_the_plan_of_the_judges_agreement_holds_every_method_for_diffusion_models() -> None:
    cells = read_plan(ROOT / "benchmarks" / "plans" / "evidence.yaml").cells
    known = {name for name in ALGORITHMS if not name.startswith("clip-")}
    assert {cell.method for cell in cells} == known and len(cells) == 4 * len(known)
    before = json.loads((RESULTS / "evidence.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["method"], row["concept"]) for row in before} == {(cell.method, *cell.concepts) for cell in cells}


def planned(**options: Any) -> Plan:
    """The benchmark's plan in small; options that are None are left out."""
    asked = {"suite": "concept", "judge": "canvas", "clip": "canvas-clip", "seeds": [7], "everyday": 2, "steps": 2}
    asked = {key: value for key, value in (asked | {"guidance": 4.0} | options).items() if value is not None}
    return plan_of({"methods": ["uce"], "concepts": ["star", "moon"], "suites": [asked]})


@pytest.fixture
def judged(tmp_path: Path) -> GridFolder:
    """A grid of which one cell of two has a result. Rendered images: of the base what is asked for, of the edited model
    moons in the place of stars."""
    plan, folder = planned(), GridFolder(tmp_path / "grid")
    folder.write("", plan.cells)
    cell, _ = plan.cells  # the other has no result
    run, base = folder.run(cell.name), folder.base / "canvas-1" / "concept" / "a"
    edited = run.answers / "concept" / "edited"
    for place, recipe in ((base, {"model": "m"}), (edited, {"model": "m", "edit": "e"})):
        place.mkdir(parents=True)
        claim(place, recipe)
    claim(base.with_name("b"), {"model": "another"})
    about = asks(["star"], ["heart", "ring"], [7], (), 2)
    for place, star in ((base, "star"), (edited, "moon")):
        named = [(star, row) for _, row in about.target] + [*about.neighbours, *(("house", r) for r in about.everyday)]
        for k, (shown, row) in enumerate(named):
            Image.fromarray(render(Scene("photo", object=shown), k)).save(place / row.name)
    WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("uce", ("star",))).save(run.edit)
    run.write_scores("concept", {"edited": [scored("target shown", 0.0, 10, "concept/1")]})
    note_scores(run, "concept", how={"neighbours": ["heart"], "left out, as the base does not show them": ["ring"]})
    folder.note(cell.name, Record(state="done", measured={"concept": cell.measured[0].key}))
    return folder


def test_both_judges_look_at_the_images_of_a_cell(judged: GridFolder, script: Any) -> None:
    evidence, run = script("evidence"), judged.run(judged.cells()[0].name)
    (row,) = evidence.rows_of(judged)
    assert (row["method"], row["concept"]) == ("uce", "star") and not run.panels.exists()
    about = asks(["star"], ["heart", "ring"], [7], (), 2)
    for judge in evidence.JUDGES:
        scores = row[judge]["scores"]
        assert row[judge]["base"]["target shown"] == 1.0 and scores["target shown"][0] == 0.0
        assert row[judge]["shown"] == [False] * len(about.target) and scores["neighbours kept"][0] == 1.0
    assert "| uce | 1 | 0 / 0 | 100.0 |" in evidence.table({"agreement": {"uce": evidence.agreement([row])}})


def another_plan(folder: GridFolder, **options: Any) -> None:
    """The grid's cells stand for a plan of other options, and their results for its."""
    (done, waiting), (was, _) = planned(**options).cells, folder.cells()
    folder.write("", [replace(done, name=was.name), waiting])
    folder.note(was.name, Record(state="done", measured={done.measured[0].suite: done.measured[0].key}))


def emptied(path: Path, text: str = "") -> None:
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda grid, run: another_plan(grid, suite="worlds", **dict.fromkeys(OPTIONS)), "another plan"),
        (lambda grid, run: another_plan(grid, steps=None), "another plan"),
        (lambda grid, run: another_plan(grid, synonyms=["sun"]), "another plan"),
        (lambda grid, run: emptied(run.answers / "concept" / "edited" / RECIPE), RECIPE),
        (lambda grid, run: emptied(run.answers / "concept" / "edited" / RECIPE, "{}"), "were made as those in"),
        (lambda grid, run: emptied(next(grid.base.glob("*/concept/a")) / RECIPE), RECIPE),
        (lambda grid, run: emptied(next(grid.base.glob("*/concept/a")) / RECIPE, "{}"), "were made as those in"),
        (lambda grid, run: emptied(run.evidence, "{}"), "which neighbours"),
        (lambda grid, run: next((run.answers / "concept" / "edited").glob("*.png")).unlink(), "cannot be read"),
        (lambda grid, run: emptied(grid.plan), "plan.json"),
        (lambda grid, run: grid.plan.unlink(), "holds no result"),
    ],
)
def test_a_grid_that_cannot_be_judged_is_one_line(
    change: Any, said: str, judged: GridFolder, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    change(judged, judged.run(judged.cells()[0].name))
    assert call(f"benchmarks/evidence.py {judged.folder}") == 2
    out, err = capsys.readouterr()
    assert said in err and "Traceback" not in err and not out
    assert err.count("error:") == 1


def test_control_the_grid_as_it_was_made_is_judged(
    judged: GridFolder, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"benchmarks/evidence.py {judged.folder}") == 0
    assert "| uce | 1 |" in capsys.readouterr().out


def test_the_committed_agreement_is_that_of_the_committed_rows(script: Any) -> None:
    evidence, result = script("evidence"), json.loads((RESULTS / "evidence.json").read_text(encoding="utf-8"))
    assert evidence.table(result) == (RESULTS / "evidence.md").read_text(encoding="utf-8")
    found, noted = evidence.agreement(result["rows"]), result["agreement"]["all"]
    assert found.pop("withheld") == noted.pop("withheld") and found == pytest.approx(noted)
