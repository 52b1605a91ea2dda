"""The embedded model, and what stands around its words: measured once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

import mu
from mu.models.diffusion import DiffusionModel
from mu.training.surroundings import Surroundings
from mu.training.surroundings import surroundings as measured


@cache
def _canvas() -> DiffusionModel:
    return mu.load("canvas", device="cpu")


@cache
def _once(concept: str, retain: tuple[str, ...], beside: tuple[str, ...]) -> Surroundings:
    return measured(_canvas(), concept, retain, beside)


def surroundings(
    model: DiffusionModel, concept: str, retain: Sequence[str] = (), beside: Sequence[str] = ()
) -> Surroundings:
    """Those of the embedded model that `model` gives, which no test edits while it asks."""
    assert model is _canvas()
    return _once(concept, tuple(retain), tuple(beside))


@pytest.fixture(scope="session")
def model() -> DiffusionModel:
    return _canvas()


@pytest.fixture(autouse=True)
def words_are_looked_up_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all but tests that ask for ``measured_anew``."""
    if "measured_anew" not in request.fixturenames:
        monkeypatch.setattr("mu.training.calibration.surroundings", surroundings)


@pytest.fixture
def measured_anew() -> None:
    """The test measures what stands around a word itself."""
