"""The embedded model, and what stands around its words: measured once for all tests of this folder.

Several processes that run the tests share what each measured, in a folder of the session. It is measured on fewer words
and at rougher images than a search takes; the same styles and objects stand around "neon", "fish" and "vintage".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

import mu
from mu.algorithms import algorithm, method
from mu.edits.edit import Edit
from mu.edits.files import open_edit
from mu.models.diffusion import DiffusionModel
from mu.training.surroundings import Surroundings
from mu.training.surroundings import surroundings as measured


@cache
def _canvas() -> DiffusionModel:
    return mu.load("canvas", device="cpu")


FEWER = {"surroundings.MOST_WORDS": 160, "probe.STEPS": 3}

shared: list[Path] = []
"""The folder of the session, once it is known."""


@pytest.fixture(scope="session", autouse=True)
def folder_of_the_session(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    own = tmp_path_factory.getbasetemp()
    shared[:] = [own.parent if hasattr(request.config, "workerinput") else own]


def surroundings(
    model: DiffusionModel, concept: str, retain: Sequence[str] = (), beside: Sequence[str] = ()
) -> Surroundings:
    """Those of the embedded model that `model` gives, which no test edits while it asks."""
    assert model is _canvas()
    asked = json.dumps([concept, *retain, "beside", *beside])
    file = shared[0] / f"around-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(json.dumps(asdict(measured(model, concept, retain, beside))), encoding="utf-8")
    values = json.loads(file.read_text(encoding="utf-8"))
    return Surroundings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def calibrated(name: str) -> Edit:
    """The edit of method ``name`` that erases "neon" from the embedded model, with its own search."""
    file = shared[0] / f"{name}.safetensors"
    with FileLock(file.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        if not file.exists():
            given = method(name).for_concepts(["neon"], None, "calibrated")
            patch.setattr("mu.training.calibration.surroundings", surroundings)
            algorithm(name)(given, model=_canvas()).find_edit().save(file)
    return open_edit(file)


@pytest.fixture(scope="session")
def model() -> DiffusionModel:
    return _canvas()


@pytest.fixture(scope="module", autouse=True)
def fewer_words() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, count in FEWER.items():
            patch.setattr(f"mu.training.{name}", count)
        yield


@pytest.fixture(autouse=True)
def words_are_looked_up_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all but tests of a ``small_search``, which measure themselves."""
    if "small_search" not in request.fixturenames:
        monkeypatch.setattr("mu.training.calibration.surroundings", surroundings)
