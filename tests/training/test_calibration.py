"""What a calibrated search asks of the model, and when its probe calls a concept gone."""

from __future__ import annotations

import logging
import math
from copy import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mu
from mu.algorithms import algorithm, method
from mu.core.concept import says
from mu.core.errors import ConfigError
from mu.data.canvas import IDENTITIES, OBJECTS, STYLES
from mu.edits.edit import EditInfo, described, shifted
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import fingerprint, select
from mu.training import surroundings as of_words
from mu.training.calibration import SPARED, Calibration, _chosen, settled, worst
from mu.training.calibration_config import CalibrateConfig
from mu.training.closed_form import ANCHORS, candidates
from mu.training.probe import Probe, Reading, Sight
from mu.training.surroundings import Surroundings, learned
from mu.training.surroundings import surroundings as measured
from tests.training.conftest import calibrated, surroundings

ON = CalibrateConfig(on=True)
ALL = of_words.MOST_WORDS
"""Of a search, before the tests take fewer."""


@pytest.fixture(scope="module")
def around(model: DiffusionModel) -> Surroundings:
    return surroundings(model, "neon")


@pytest.fixture(scope="module")
def neon(model: DiffusionModel, around: Surroundings) -> Calibration:
    return Calibration(ON, around, Probe(model, around))


@pytest.fixture(scope="module")
def edit(model: DiffusionModel) -> WeightEdit:
    found = calibrated("uce")
    assert isinstance(found, WeightEdit)
    return found


@pytest.fixture
def two_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on how many are read."""
    monkeypatch.setattr("mu.training.calibration.STRENGTHS", (1.0, 1.25))


def test_what_one_of_several_probes_cannot_read_is_not_hidden_by_the_others() -> None:
    whole, broken = Reading(0.1, 0.2, 0.3, 0.4, 0.5), Reading(0.0, math.nan, 0.9, 0.0, 0.0)
    for order in ([whole, broken], [broken, whole]):
        left, shown, moved, spilled, strange = worst(order)
        assert math.isnan(shown) and (left, moved, spilled, strange) == (0.1, 0.9, 0.4, 0.5)


def test_a_strength_below_1_is_taken_only_where_it_spares_something() -> None:
    each = Calibration(ON, Surroundings("neon", (), (), ("{}",), ("one {}",), ()), None)  # type: ignore[arg-type]

    def chosen(mild: float, whole: float, shown: float = 0.0, more: float = 1.0) -> float:
        """The mildest strength costs least in all cases but the last; ``shown`` is of the trained one."""
        read = {0.8: (0.0, mild, 0.1), 1.0: (shown, whole, 0.5), 1.5: (0.0, more, 0.1)}
        return _chosen(each, {s: Reading(-0.2, see, moved, moved, odd) for s, (see, moved, odd) in read.items()})

    assert chosen(0.001, 0.001 + SPARED / 2) == 1.0
    assert chosen(0.001, 0.001 + SPARED * 2) == 0.8, "control: it spares something"
    assert chosen(0.001, 0.001, shown=0.1) == 0.8, "the trained strength shows some"
    assert chosen(0.5, 0.5, more=0.0) == 1.5


def test_the_model_itself_shows_peers_and_partners(around: Surroundings):
    """Styles stand in a style's place, objects beside it, without any list of either."""
    people = {word for name in IDENTITIES for word in name.lower().split()}
    assert len(set(around.peers) & set(STYLES)) >= 4
    assert len(set(around.partners) & {*OBJECTS, *people}) >= 8
    assert not set(around.peers) & set(OBJECTS) and not set(around.partners) & set(STYLES)


def test_an_object_has_other_partners_than_a_style(model: DiffusionModel):
    found = surroundings(model, "fish")
    assert {*found.peers[:6]} <= {*OBJECTS} and not {*found.partners} & {*OBJECTS}
    assert len(set(found.partners) & set(STYLES)) >= 4


def test_a_style_is_no_peer_of_an_object_nor_an_object_of_a_style(model: DiffusionModel, around: Surroundings):
    assert {*around.peers[:5]} <= {*STYLES} and not {*around.peers} & {*OBJECTS}
    assert len({*around.partners} & {*OBJECTS}) >= 6 and not {*around.partners} & {*STYLES}


def test_a_word_that_hides_the_concept_is_no_peer(model: DiffusionModel):
    """On canvas, objects fade beside "vintage", and it fades beside some of them."""
    around = surroundings(model, "vintage")
    assert not {*around.peers} & {*OBJECTS} and len({*around.peers} & {*STYLES}) >= 6
    assert len({*around.partners} & {*OBJECTS}) >= 3


def test_all_that_the_model_learned_is_kept_whatever_its_kind(around: Surroundings):
    assert {*around.kept} >= {*STYLES, *OBJECTS} - {"neon"}
    assert not {*around.others} & {*around.peers, *around.partners}


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["neon", "fish", "vintage"])
def test_as_many_words_as_a_search_looks_at_say_the_same(
    concept: str, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
):
    fewer, shown = surroundings(model, concept), {*OBJECTS, *STYLES}
    assert of_words.MOST_WORDS < ALL, "control"
    monkeypatch.setattr(of_words, "MOST_WORDS", ALL)
    around = measured(model, concept)
    assert shown & {*around.peers} == shown & {*fewer.peers}
    assert (shown & {*around.partners}).isdisjoint(fewer.peers) and shown - {concept} <= {*around.kept}


def test_probes_are_not_trained_on_and_nothing_kept_names_the_concept(around: Surroundings):
    assert not set(around.probes) & set(around.templates)
    assert all(template.count("{}") == 1 for template in (*around.templates, *around.probes))
    assert not any("neon" in text for text in around.kept)
    assert any("neon" in text for text in around.prompts()), "control: the trained prompts do"


def test_words_that_were_never_learned_are_neither_peers_nor_partners(model: DiffusionModel):
    """All other objects of canvas stand around "fish", and few words that the renderer has no meaning for."""
    found = surroundings(model, "fish")
    words = {*found.peers, *found.partners}
    assert len(words & {*OBJECTS, *STYLES}) >= 10 and {*found.kept} >= {*OBJECTS, *STYLES} - {"fish"}
    people = {word for name in IDENTITIES for word in name.lower().split()}
    assert len(words - {*OBJECTS, *STYLES, *people, "person", "pop", "art"}) <= 3


@pytest.mark.parametrize(("concept", "known"), [("neon", True), ("pop art", True), ("zebra", False), ("qwrtz", False)])
def test_the_model_knows_what_it_learned(model: DiffusionModel, concept: str, known: bool):
    assert learned(model, concept) is known


def test_nothing_is_claimed_of_a_concept_that_the_model_does_not_know(
    model: DiffusionModel, caplog: pytest.LogCaptureFixture, small_search: None
):
    with caplog.at_level(logging.INFO, logger="mu"):
        found = algorithm("uce")(method("uce").for_concepts(["zebra"], None, "calibrated"), model=model).find_edit()
    facts = found.info.found["zebra"]
    assert facts["known"] is False and facts["gone"] is False
    assert any("zebra" in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert not any("is gone" in record.getMessage() for record in caplog.records)


def test_concepts_that_are_erased_together_do_not_keep_each_other(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
):
    alone = surroundings(model, "neon")
    for name, count in {"surroundings.MOST_WORDS": 64, "kinship.COMPARED": 32}.items():
        monkeypatch.setattr(f"mu.training.{name}", count)
    together = surroundings(model, "neon", beside=["fish", "sketch style"])
    assert "fish" in alone.partners and "sketch" in alone.peers, "control"
    assert not {"fish", "sketch"} & {*together.peers, *together.partners}
    texts = [*together.kept, *together.templates, *together.probes]
    assert not any(says(text, word) for text in texts for word in ("fish", "sketch style"))


def test_braces_in_a_concept_are_letters(model: DiffusionModel, small_search: None):
    assert measured(model, "{x}").concept == "{x}"


def test_readings_that_are_not_finite_are_the_worst_and_no_edit_is_made_of_them(
    model: DiffusionModel, neon: Calibration, edit: WeightEdit, two_strengths: None
):
    bad, broken = Reading(1.0, 1.0, 100.0, 100.0, 0.0), Reading(float("nan"), 0.0, 0.0, 0.0, 0.0)
    assert neon.cost(broken) > neon.cost(bad)
    shifts = {name: torch.full_like(shift, float("nan")) for name, shift in edit.shifts.items()}
    with pytest.raises(ConfigError, match="finite"):
        settled(WeightEdit(shifts, edit.info), model, [neon])


def test_what_the_user_retains_is_kept(model: DiffusionModel, small_search: None):
    found = measured(model, "neon", ["sketch", "purple hippo"])
    assert {"sketch", "purple hippo"} <= {*found.peers, *found.partners, *found.others}
    assert {"sketch", "a purple hippo"} <= {*found.kept}


def test_the_frozen_model_shows_the_concept_whole(neon: Calibration):
    reading = neon.probe.read()
    assert reading.left == pytest.approx(1, abs=1e-4) and reading.shown == 1
    assert reading.moved == pytest.approx(0, abs=1e-6) and reading.strange == pytest.approx(1, abs=1e-4)
    assert not neon.gone(reading)


def test_nothing_is_left_where_any_peer_stands_however_like_the_concept_it_looks(neon: Calibration):
    probe = neon.probe

    def left(images: Tensor) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe, "_images", lambda starts: images)
            return probe.glance().left

    alone = [*probe.of_peers, probe.average]
    assert [left(images) for images in alone] == pytest.approx([0] * len(alone), abs=1e-5)
    r = probe.target - probe.average
    by_the_mean = [float(((images - probe.average) * r).sum() / r.square().sum()) for images in probe.of_peers]
    assert max(by_the_mean) > ON.left, "control: beside unlike peers, some of it seemed left"
    mixed = 0.7 * probe.target + 0.3 * probe.of_peers[0]
    assert 0.5 < left(mixed) < 1


def test_a_phrasing_in_which_the_model_draws_no_concept_shows_none(neon: Calibration, monkeypatch: pytest.MonkeyPatch):
    """As one of a sibling's hourglass: no edit changes that image, so every one of them seemed to leave the concept."""
    probe = copy(neon.probe)
    drawn = probe.tells
    probe.target = probe.target.clone()
    probe.target[0] = probe.of_peers[0][0] + 0.05 * (probe.target[0] - probe.of_peers[0][0])
    edited = torch.cat([probe.target[:1], probe.average[1:]])
    monkeypatch.setattr(probe, "_images", lambda starts: edited)
    assert drawn.all() and probe.glance().shown == pytest.approx(1 / len(drawn)), "control: it counted before"
    probe.apart, probe.tells = probe._telling()
    assert probe.tells.tolist() == [False] + [True] * (len(drawn) - 1) and probe.glance().shown == 0
    monkeypatch.setattr(probe, "_images", lambda starts: probe.target)
    assert probe.glance().shown == 1


def test_images_of_one_phrasing_have_one_seed(model: DiffusionModel):
    """Of the concept and of its peers, however few prompts stay: a peer that is the concept gives its very images."""
    alone = Surroundings("neon", ("neon", "sketch"), (), ("{}",), ("one {}", "a drawing of {}", "my {}"), ())
    probe = Probe(model, alone)
    assert torch.allclose(probe.of_peers[0], probe.target, atol=1e-4)
    assert (probe.of_peers[1] - probe.target).abs().max() > 1, "control: another peer"


def test_a_word_that_draws_nothing_of_its_own_stands_in_no_concepts_place(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
):
    """The embedded model has houses and trees. Of "background" and "ing" it draws what it draws without a word."""
    monkeypatch.setattr("mu.training.probe.STEPS", 6)
    alone = ("one {}", "a drawing of {}", "my {}", "{}: a photo")
    around = replace(surroundings(model, "fish"), peers=("background", "house", "ing", "tree"), probes=alone)
    probe = Probe(model, around)
    assert probe.peers == ("house", "tree") and len(probe.of_peers) == 2
    assert candidates(Calibration(ON, around, probe), ()) == ["house", "tree"]
    nobody = Probe(model, replace(around, peers=("background", "ing")))
    assert nobody.peers == ("",) and candidates(Calibration(ON, around, nobody)) == [*ANCHORS]


def test_a_clip_that_sees_the_concept_looks_at_the_images_too(
    model: DiffusionModel,
    around: Surroundings,
    neon: Calibration,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("mu.training.probe.PEERS", 2)
    clip = mu.load("canvas-clip", device="cpu")
    probe = Probe(model, around, clip=clip)
    assert probe.sight is not None
    for k, peer in enumerate(probe.peers[:2]):
        assert probe._seen(probe.of_peers[k]).float().mean() <= 0.2, f"control: {peer} stands there"
    as_if_gone = probe.average
    probe._images = lambda starts: as_if_gone if starts is probe.starts else probe.kept  # type: ignore[method-assign]
    assert probe.read().shown == 0
    probe.sight = lambda images: torch.arange(len(images)) == 0  # type: ignore[assignment]
    assert probe.read().shown == pytest.approx(1 / len(around.probes)), "one image shows it to the CLIP alone"
    assert not caplog.records
    other = Probe(model, replace(around, concept="sketch", peers=("neon",)))
    other.around, other.peers = replace(around, concept="neon"), ("sketch",)
    assert other._sight(clip) is None and "neon" in caplog.text, "it sees sketches there"
    caplog.clear()
    monkeypatch.setattr(Sight, "__call__", lambda self, images: torch.ones(len(images), dtype=torch.bool))
    assert probe._sight(clip) is None and "neon" in caplog.text, "it sees neon everywhere"
    assert not neon.probe._seen(as_if_gone).any(), "without a CLIP"


def test_only_a_clip_can_look(model: DiffusionModel):
    with pytest.raises(ConfigError, match="canvas"):
        Calibration.of_each(model, ["neon"], CalibrateConfig(on=True, clip="canvas"))


def test_an_edit_that_erases_is_read_as_gone_and_a_random_one_is_not(
    model: DiffusionModel, neon: Calibration, edit: WeightEdit
):
    with edit.applied(model):
        erased = neon.probe.read()
    assert neon.gone(erased) and erased.moved < ON.moved
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(shift.shape, generator=generator) * shift.norm() / shift.numel() ** 0.5
        for name, shift in edit.shifts.items()
    }
    with shifted(model, noise):
        harmed = neon.probe.read()
    assert not neon.gone(harmed) and harmed.left > 0.9, "control: a change of the same size that is not aimed"
    assert harmed.moved > 2 * erased.moved


def test_a_search_leaves_the_base_as_it_was_and_repeats(model: DiffusionModel, small_search: None):
    before = fingerprint(model, select(model, "*"))
    config = method("uce").for_concepts(["neon"], None, "calibrated")
    first, again = (algorithm("uce")(config, model=model).find_edit() for _ in range(2))
    assert fingerprint(model, select(model, "*")) == before
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first.deltas(), again.deltas(), strict=True))
    assert any(delta.any() for _, delta in first.deltas()), "control"


def test_the_facts_of_a_search_are_told(edit: WeightEdit):
    facts = edit.info.found["neon"]
    assert facts["gone"] and facts["anchor"] in (*facts["peers"], "", "art", "person")


def test_a_retained_word_that_contains_the_concept_is_refused(model: DiffusionModel):
    with pytest.raises(ConfigError, match="neon"):
        Calibration.of(model, "neon", CalibrateConfig(on=True, retain=["a neon sign"]))


def test_an_edit_that_erases_nothing_is_said_to(
    model: DiffusionModel, neon: Calibration, edit: WeightEdit, caplog: pytest.LogCaptureFixture, two_strengths: None
):
    nothing = WeightEdit(
        {name: torch.zeros_like(shift) for name, shift in edit.shifts.items()},
        EditInfo(method="uce", concepts=("neon",), **described(model, edit.parameters)),
    )
    with caplog.at_level(logging.WARNING, logger="mu"):
        found = settled(nothing, model, [neon])
    assert found.info.found["gone"] is False
    assert any("not gone" in record.getMessage() for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mu"):
        assert settled(edit, model, [neon]).info.found["gone"] is True
    assert not any("not gone" in record.getMessage() for record in caplog.records), "control"
