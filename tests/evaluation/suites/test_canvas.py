"""The canvas suite on the shipped model: an edit that does nothing scores as the base, one that breaks the model does
not."""

import shutil

import pytest
import torch

import mu
from mu.algorithms import algorithm
from mu.core.concept import says
from mu.core.errors import ConfigError, DataError, ModelError
from mu.core.evidence import read_evidence
from mu.core.intervals import wilson
from mu.core.run import RunDirectory
from mu.data.canvas import OBJECTS, STYLES, Scene
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.metrics.jackknife import Squared
from mu.evaluation.metrics.unlearning import Hits, Prediction
from mu.evaluation.suites import evaluate
from mu.evaluation.suites.canvas import (
    Looked,
    answers_recipe,
    doubtful_of,
    hits_of,
    neutral_of,
    neutral_prompts,
    protocol_of,
    replacement,
    request,
    require_embedded,
    row_of,
)
from mu.models import EMBEDDED
from mu.models.judge import Judge
from mu.models.parameters import select
from mu.report.images import judged


def shift(model, size: float, *concepts: str) -> WeightEdit:
    shifts = {name: torch.full_like(p, size) for name, p in select(model, "unet.conv_out.bias").items()}
    return WeightEdit(shifts, EditInfo("test", concepts or ("neon style",)))


def values(table, column: str) -> dict[str, float]:
    return {score.name: score.value for score in table[column]}


def test_the_suite_tells_nothing_from_something(tmp_path, monkeypatch):
    """On images of six steps, which tell as much of that as the protocol's twenty."""
    monkeypatch.setattr("mu.evaluation.suites.canvas.STEPS", 6)
    model = mu.load("canvas", device="cpu")
    still = evaluate(
        RunDirectory(tmp_path / "still"),
        "canvas",
        model,
        shift(model, 0.0, "neon style", "nudity"),
        seeds=(1,),
        base_answers=tmp_path / "base",
    )
    unchanged = values(still, "edited")
    assert unchanged.pop("neutral distance") == 0
    assert values(still, "base") == pytest.approx(unchanged)
    assert values(still, "base")["UA"] <= 0.2 and values(still, "base")["CRA"] >= 0.8
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "base").glob("*.png")}
    swapped, other = (tmp_path / "base" / row_of(Scene("neon", object=name), 1).name for name in ("star", "fish"))
    swapped.write_bytes(other.read_bytes())
    broken = evaluate(
        RunDirectory(tmp_path / "broken"),
        "canvas",
        model,
        shift(model, 3.0),
        seeds=(1,),
        base_answers=tmp_path / "base",
    )
    assert values(broken, "edited")["IRA"] < 0.5 and values(broken, "edited")["CRA"] < 0.5
    assert values(broken, "edited")["neutral distance"] > 0.5
    assert values(broken, "base") == pytest.approx(values(still, "base"), abs=1e-3), "the swapped one was not used"
    again = {path for path in (tmp_path / "base").glob("*.png") if path.stat().st_mtime_ns != made.get(path)}
    assert again == {swapped}, "the base's other images were made once"
    shown = [pair for group in judged(RunDirectory(tmp_path / "broken"), ["neon style"]) for pair in group.pairs]
    assert shown and all(pair.before.uri and pair.after.uri for pair in shown), "the page shows the shared base's"
    assert RunDirectory(tmp_path / "broken").read_scores() == {"canvas": broken}
    counted = {score.name: score for score in broken["edited"]}
    assert all(counted[name].change[1] < 0 for name in ("IRA", "CRA")) and counted["neutral distance"].interval[0] > 0
    ira = {score.name: score for score in still["edited"]}["IRA"]
    assert ira.change == (0.0, 0.0) and ira.interval == wilson(round(ira.value * ira.n), ira.n), "control: no change"
    how = {name: read_evidence(RunDirectory(tmp_path / name)).scores["canvas"].how for name in ("still", "broken")}
    assert how["still"]["not measured: concepts"] == ["nudity"]
    assert "not measured: concepts" not in how["broken"]


def test_shares_and_means_have_intervals_and_those_of_the_change():
    """Three of four images of the erased style no longer show it; in the base all do."""
    kept = {"photo": [True, True]}, {"star": [True, True, True, True]}
    instead, apart = replacement(["neon"], ["neon"]), Squared(1.0, [0.9, 1.1])
    base = Looked(Hits({"neon": [True] * 4}, *kept), [0.0] * 8, [1.0, 1.2, 0.8], apart, instead)
    edited = base._replace(
        hits=Hits({"neon": [True, False, False, False]}, *kept), fits=[0.5, 0.7, 0.3], distance=Squared(4.0, [3.9, 4.1])
    )
    before, after = ({score.name: score for score in scores} for scores in (base.scores(), edited.scores(base)))
    assert [pytest.approx(end, abs=1e-4) for end in after["UA"].interval] == [0.3006, 0.9544]
    assert after["UA"].change[0] > 0 and after["UA"].change[0] <= 0.75 <= after["UA"].change[1]
    assert after["IRA"].change == after["CRA"].change == after["unasked"].change == (0.0, 0.0), "control: none changed"
    assert after["CLIP score"].change == (pytest.approx(-0.5), pytest.approx(-0.5))
    assert before["unasked"].interval == wilson(0, 8) and before["CLIP score"].interval[0] < 1 < 1.2
    assert {score.change for score in before.values()} == {None}
    low, high = after["Fréchet distance"].interval
    assert low < 4 < high and after["Fréchet distance"].change == pytest.approx((3, 3)), "both moved alike"


def test_neutral_prompts_name_nothing_of_the_kind():
    def named(prompts, concepts):
        return {concept for concept in concepts if any(says(prompt, concept) for prompt in prompts)}

    assert not named(neutral_prompts("style"), STYLES) and not named(neutral_prompts("object"), OBJECTS)
    assert named(neutral_prompts("style"), OBJECTS) == {*OBJECTS}  # control: the other kind is named in full
    assert named(neutral_prompts("object"), STYLES) == {*STYLES}


def test_the_preset_of_uce_is_tuned_on_other_neutral_prompts():
    tuned = {*algorithm("uce").presets["canvas"].preserve}
    assert not tuned & {*neutral_prompts("style"), *neutral_prompts("object")}


def test_what_came_instead_is_counted():
    score = replacement(["photo", "sketch", "neon", "photo"], ["neon"])
    assert (score.value, score.n, dict(score.per_item)) == (0.5, 4, {"photo": 0.5, "sketch": 0.25})
    assert replacement(["neon"], ["neon"]).value == 0.0  # control: nothing came instead


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The embedded model's folder under a name of its own."""
    folder = tmp_path_factory.mktemp("models") / "my-diffusion"
    shutil.copytree(EMBEDDED["canvas"], folder)
    return folder


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_embedded_model_is_known_by_its_weights(copied, precision):
    model = mu.load(copied, device="cpu", precision=precision)
    require_embedded(model)
    with shift(model, 3.0).applied(model):
        require_embedded(model)
    select(model, "unet.conv_out.bias")["unet.conv_out.bias"].data += 3.0
    with pytest.raises(ModelError, match="other weights"):  # control: the same, and no edit notes what it was
        require_embedded(model)


def test_other_models_are_refused_whatever_they_are_called(tiny_folder, tiny_xl, tmp_path, monkeypatch):
    """One of the same form with random weights, and one of another form."""
    foreign = mu.load(tiny_folder, device="cpu")
    monkeypatch.setattr(foreign, "name", "canvas")
    with pytest.raises(ModelError, match="--suite concept") as caught:
        evaluate(RunDirectory(tmp_path), "canvas", foreign, shift(foreign, 0.0), seeds=(1,))
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="other weights"):
        require_embedded(tiny_xl)


@pytest.mark.parametrize(
    ("concept", "found"),
    [("neon style", {"neon": "style"}), ("Pop Art", {"pop art": "style"}), ("a star", {"star": "object"})],
)
def test_a_request_is_read_off_the_concept(concept, found):
    judge = Judge.open(EMBEDDED["canvas-judge"])
    assert request([concept], judge) == request([concept, "nudity"], judge) == found


def told(erased, answers):
    """Predictions of two styles and two objects; ``answers`` replace what was asked."""
    cells = [(style, name) for style in ("neon", "photo", "sketch") for name in ("star", "fish", "moon")]
    return hits_of([Prediction(*cell, *answers.get(cell, cell)) for cell in cells], erased)


def test_concepts_erased_together_are_each_measured_and_none_of_them_is_retained():
    """Both are gone wherever they are asked for; nothing else has changed."""
    both = {"neon": "style", "star": "object"}
    answers = {("neon", each): ("photo", "moon" if each == "star" else each) for each in ("star", "fish", "moon")}
    answers |= {(each, "star"): (each, "moon") for each in ("photo", "sketch")}
    found = told(both, answers)
    assert found.gone == {"neon": [False] * 2, "star": [False] * 2}
    assert found.within == {"photo": [True] * 2, "sketch": [True] * 2}
    assert found.across == {"fish": [True] * 3, "moon": [True] * 3}
    alone = told({"neon": "style"}, answers)
    assert alone.across["star"] == [False] * 3 and alone.gone == {"neon": [False] * 3}, "control: star is retained"
    assert told({"neon": "style", "sketch": "style"}, {}).gone == {"neon": [True] * 3, "sketch": [True] * 3}
    styles = told({"neon": "style", "sketch": "style"}, {})
    assert {*styles.within} == {"photo"} and styles.across["star"] == [True] * 3, "erased styles' images enter CRA"
    with pytest.raises(DataError, match="retain"):
        told(dict.fromkeys(("neon", "photo", "sketch"), "style"), {})
    assert protocol_of({"neon": "style"}) == "canvas/1" != protocol_of({"neon": "style", "star": "object"})


def test_neutral_prompts_of_several_concepts_say_none_of_them():
    prompts = neutral_of({"neon": "style", "star": "object"})
    assert not any(says(prompt, name) for prompt in prompts for name in ("neon", "star"))
    assert prompts["an image"] == ["style", "object"] and prompts["a picture of a fish"] == ["style"]
    assert [*neutral_of({"neon": "style"})] == [*neutral_prompts("style")]


def test_a_concept_that_always_stands_beside_another_is_refused():
    cells = [Prediction("neon", "star", "neon", "star"), Prediction("photo", "fish", "photo", "fish")]
    with pytest.raises(DataError, match="neon"):
        hits_of(cells, {"neon": "style", "star": "object"})


def test_the_judge_must_see_the_concept_in_the_base():
    blind = [Prediction("neon", "star", "photo", "star"), Prediction("photo", "star", "photo", "star")]
    assert "neon" in doubtful_of(blind, {"neon": "style"})
    sure = [Prediction("neon", "star", "neon", "star"), Prediction("photo", "star", "photo", "star")]
    assert doubtful_of(sure, {"neon": "style"}) == ""
    base = Looked(
        Hits({"neon": [True]}, {"photo": [True]}, {"star": [True]}),
        [0.0],
        [1.0],
        Squared(1.0),
        replacement(["neon"], ["neon"]),
        "so",
    )
    assert base.scores()[0].doubt == base._replace(doubt="").scores(base)[0].doubt == "so"


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_answers_of_another_base_are_not_reused(component, tiny):
    """One number of any component is enough: of the last, where a sample of them would end."""
    before = answers_recipe(tiny)
    assert answers_recipe(tiny) == before  # control
    *_, name = (name for name, p in tiny.components[component].named_parameters() if p.numel() > 5000)
    flat = tiny.components[component].get_parameter(name).data.view(-1)
    kept = flat[-1].clone()
    flat[-1] += 1
    after = answers_recipe(tiny)
    flat[-1] = kept
    assert {key for key in before if before[key] != after[key]} == {"model"}
    assert answers_recipe(tiny) == before


def test_answers_of_the_same_weights_used_otherwise_are_not_reused(tiny, tiny_folder):
    before = answers_recipe(tiny)
    for how in ({"clip_skip": 2}, {"prediction_type": "v_prediction"}, {"precision": "bfloat16"}):
        assert answers_recipe(mu.load(tiny_folder, device="cpu", **how)) != before
    other = mu.load(tiny_folder, device="cpu")
    assert answers_recipe(other) == before
    other.pipeline.scheduler.register_to_config(steps_offset=7)
    assert {key for key in before if before[key] != answers_recipe(other)[key]} == {"scheduler"}


def test_what_the_suite_cannot_measure_is_said():
    with pytest.raises(DataError, match="Elon Musk"):
        request(["Elon Musk"], Judge.open(EMBEDDED["canvas-judge"]))
    with pytest.raises(ConfigError, match="canvas"):
        evaluate(RunDirectory("nowhere"), "canvsa", None, None)
