"""What closed forms share in a calibrated search, and SPEED's own."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mu.algorithms import algorithm, method
from mu.algorithms.speed.algorithm import fewest
from mu.core.errors import ConfigError
from mu.edits.joint import JointEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import fingerprint, select
from mu.training import closed_form
from mu.training.calibration import Calibration
from mu.training.calibration_config import CalibrateConfig
from mu.training.closed_form import ANCHORS, anchored, candidates, pair_rows, rows
from mu.training.probe import Probe, Reading
from mu.training.surroundings import Surroundings
from tests.training.conftest import calibrated, surroundings


@pytest.fixture(scope="module")
def edit(model: DiffusionModel) -> JointEdit:
    found = calibrated("speed")
    assert isinstance(found, JointEdit)
    return found


def test_sums_do_not_depend_on_how_often_a_prompt_is_given(model: DiffusionModel):
    once, twice = rows(model, ["a fish", "a star"]), rows(model, ["a fish", "a star"] * 2)
    assert torch.allclose(once.T @ once, twice.T @ twice)
    once, twice = (pair_rows(model, [("neon", "sketch")] * n) for n in (1, 2))
    assert torch.allclose(once[0].T @ once[1], twice[0].T @ twice[1])


def test_fewest_rows_have_the_same_sums():
    draw = torch.Generator().manual_seed(0)
    basis = torch.randn(5, 12, generator=draw, dtype=torch.float64)
    C, A = (torch.randn(40, 5, generator=draw, dtype=torch.float64) @ basis for _ in range(2))
    c, a = fewest(C, A)
    assert len(c) <= 10 < len(C)
    assert torch.allclose(c.T @ c, C.T @ C) and torch.allclose(a.T @ c, A.T @ C)


def test_speed_asks_the_model_and_is_read_as_gone(model: DiffusionModel, edit: JointEdit):
    facts = edit.info.found["neon"]
    assert facts["gone"] and facts["mild"] and facts["anchor"] in (*facts["peers"], "", "art", "person")
    assert [part.info.concepts for part in edit.parts()] == [("neon",)]


def test_speed_leaves_the_base_as_it_was_repeats_and_reads_its_edit_once(
    model: DiffusionModel, small_search: None, monkeypatch: pytest.MonkeyPatch
):
    made: list[Probe] = []

    class Noted(Probe):
        def __init__(self, *given: Any):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr("mu.training.calibration.Probe", Noted)
    before = fingerprint(model, select(model, "*"))
    config = method("speed").for_concepts(["neon"], None, "calibrated")
    first, again = (algorithm("speed")(config, model=model).find_edit() for _ in range(2))
    assert fingerprint(model, select(model, "*")) == before
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first.deltas(), again.deltas(), strict=True))
    assert any(delta.any() for _, delta in first.deltas()), "control"

    facts, probe = first.info.found["neon"], made[0]
    assert facts["probe_evaluations"] == probe.evaluations, "what chose the anchor is not read again"
    with first.applied(model):
        assert Reading(*(facts[name] for name in Reading._fields)) == pytest.approx(probe.read(), abs=1e-4)
    assert probe.glance().left > facts["left"] + 0.1, "control: without the edit"


@pytest.mark.parametrize("name", ["uce", "speed"])
def test_an_anchor_with_the_concepts_own_embedding_is_refused(name: str, model: DiffusionModel, small_search: None):
    given = method(name).for_concepts(["caf\u00e9"], None, "calibrated", {"anchors": ["cafe\u0301"]})
    with pytest.raises(ConfigError, match="embedding"):
        algorithm(name)(given, model=model).find_edit()


def test_an_anchor_is_found_by_images_and_takes_the_place_of_its_own_kind(model: DiffusionModel):
    """Objects stand first among the peers of a style, and still a style takes its place."""
    around = replace(surroundings(model, "neon"), peers=("fish", "house", "sketch", "blueprint"))
    neon = Calibration(CalibrateConfig(on=True), around, Probe(model, around))
    assert neon.probe.peers == ("sketch", "blueprint"), "an object changes images of a style's phrasings too little"
    neon.probe.peers, before = around.peers, neon.probe.evaluations
    anchored(model, [neon], ["fish"])
    assert (neon.anchor, neon.tried, neon.probe.evaluations) == ("fish", [], before), "what the user gives is taken"
    anchored(model, [neon])
    left = {each["anchor"]: each["left"] for each in neon.tried}
    assert neon.anchor in ("sketch", "blueprint") and [*left] == [*around.peers]
    assert left[neon.anchor] < 0.5 < neon.probe.read().left, "control: the trials are taken off again"


def test_what_should_stay_is_sampled_only_for_anchors_that_may_still_win(monkeypatch: pytest.MonkeyPatch):
    """The choice is that of reading every anchor whole, of any readings."""

    class Readings:
        """In place of a probe and a model: what is left and moved follows from the anchor that is on."""

        def __init__(self, seed: int):
            draw = torch.Generator().manual_seed(seed)
            self.left, self.moved = torch.rand(2, 7, generator=draw, dtype=torch.float64).tolist()
            self.on, self.whole, self.peers = -1, [], tuple("abcdef")

        def glance(self) -> Reading:
            return Reading(self.left[self.on], 0.0, 0.0, 0.0, 0.0)

        def read(self, glance: Reading) -> Reading:
            assert glance == self.glance()
            self.whole.append(self.on)
            return glance._replace(moved=self.moved[self.on] / 2)

    around = Surroundings("neon", (), (), ("{}",), ("one {}",), ())
    spared = 0
    for seed in range(20):
        probe = Readings(seed)
        neon = Calibration(CalibrateConfig(on=True), around, probe)  # type: ignore[arg-type]
        monkeypatch.setattr(closed_form, "pair_rows", lambda _, pairs: (torch.ones(1), torch.tensor([pairs[0][1]])))
        monkeypatch.setattr(Calibration, "pairs", lambda self, anchor: [("", "abcdefg".index(anchor))])
        monkeypatch.setattr(closed_form, "shifted", lambda model, on: setattr(probe, "on", on) or nullcontext())  # noqa: B023
        closed_form.choose(None, [neon], (), (1.0,), lambda C, A, pressure: int(A), beyond=("g",))  # type: ignore
        costs = {a: neon.cost(Reading(probe.left[k], 0, probe.moved[k] / 2, 0, 0)) for k, a in enumerate("abcdefg")}
        assert neon.anchor == min(costs, key=costs.__getitem__)
        assert [each["anchor"] for each in neon.tried] == [*"abcdefg"]
        assert sum("moved" in each for each in neon.tried) == len(probe.whole) >= 1
        spared += 7 - len(probe.whole)
    assert spared > 20, "of 140"


def test_other_anchors_are_pressed_harder_until_one_is_good_enough(monkeypatch: pytest.MonkeyPatch):
    """And that one only while it gets better: what each trial costs is given."""
    costs = {("a", 1): 2.0, ("b", 1): 3.0, ("a", 2): 1.5, ("b", 2): 0.4, ("b", 3): 0.3, ("b", 4): 0.5, ("b", 5): 0.2}
    read: list[tuple[str, int]] = []

    class Readings:
        peers, on = ("a", "b"), ("", 0)

        def glance(self) -> Reading:
            return Reading(0.0, 0.0, 0.0, 0.0, 2 * costs[self.on])

        def read(self, glance: Reading) -> Reading:
            read.append(self.on)
            return glance

    probe = Readings()
    neon = Calibration(CalibrateConfig(on=True), Surroundings("neon", (), (), ("{}",), ("one {}",), ()), probe)  # type: ignore[arg-type]
    monkeypatch.setattr(closed_form, "pair_rows", lambda _, pairs: (torch.ones(1), torch.tensor([pairs[0][1]])))
    monkeypatch.setattr(Calibration, "pairs", lambda self, anchor: [("", "ab".index(anchor))])
    monkeypatch.setattr(closed_form, "shifted", lambda model, on: setattr(probe, "on", on) or nullcontext())
    choose = closed_form.choose
    choose(None, [neon], (), (1, 2, 3, 4, 5), lambda C, A, pressure: ("ab"[int(A)], pressure), beyond=())  # type: ignore
    assert [(each["anchor"], each["pressure"]) for each in neon.tried] == [*costs][:-1]
    assert (neon.anchor, neon.pressure) == ("b", 3) and ("b", 5) not in read, "control: it would cost less"
    assert costs["b", 2] < closed_form.ENOUGH < costs["a", 2]


def test_an_anchor_contains_no_concept_that_is_erased_together_with_its_own(model: DiffusionModel):
    around, probe = surroundings(model, "neon"), SimpleNamespace(peers=("a sketch", "blueprint"))
    assert candidates(Calibration(CalibrateConfig(), around, probe), ()) == ["a sketch", "blueprint"], "control"  # type: ignore[arg-type]
    none = SimpleNamespace(peers=("neon sign",))
    assert candidates(Calibration(CalibrateConfig(), around, none), ()) == [*ANCHORS], "without peers"  # type: ignore[arg-type]
    both = replace(around, beside=("sketch",))
    assert candidates(Calibration(CalibrateConfig(), both, probe), ()) == ["blueprint"]  # type: ignore[arg-type]


def test_a_method_whose_objective_has_no_anchor_tries_none(model: DiffusionModel, small_search: None):
    for objective, anchors in (("attention", [None]), ("logits", ["house"])):
        layer = {"objective": objective, "anchors": ["house"]}
        chosen = algorithm("fmn")(method("fmn").for_concepts(["neon"], None, "calibrated", layer), model=model)
        chosen.calibrate(model)
        assert [each.anchor for each in chosen.calibrations] == anchors
        assert not any(each.tried for each in chosen.calibrations)


def test_every_anchor_that_was_tried_is_told(edit: JointEdit):
    tried = edit.info.found["neon"]["tried"]
    assert len({each["anchor"] for each in tried}) > 3 and {"pressure", "left", "shown"} <= set(tried[0])


@pytest.mark.parametrize(
    ("name", "given"), [("speed", {"threshold": 0.2}), ("speed", {"retain": ["a cat"]}), ("uce", {"lamb": 0.3})]
)
def test_settings_of_the_solve_by_hand_replace_the_search(name: str, given: dict[str, Any]):
    assert not method(name).for_concepts(["neon"], None, "calibrated", given).calibrate.on
    assert method(name).for_concepts(["neon"], None, "calibrated", {}).calibrate.on, "control: without them it is on"
