"""From typed names to concepts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mu.core.errors import ConfigError, DataError
from mu.data.canvas import OBJECTS, STYLES
from mu.data.concepts import DATASET_TYPES, TEMPLATES, check_concept, concept_of, concepts_in
from mu.data.folders import write_unlearn_canvas


@pytest.mark.parametrize(
    ("name", "template", "dataset", "concept"),
    [
        ("Abstractionism", "style", "unlearncanvas", "Abstractionism"),
        ("Van_Gogh", "style", "unlearncanvas", "Van Gogh"),
        ("Seed_Images", "style", "i2p", "Seed Images"),
        ("Architectures", "object", "unlearncanvas", "Architectures"),
        ("self-harm", "i2p", "i2p", "self-harm"),
        ("illegal activity", "i2p", "i2p", "illegal activity"),
        ("self-harm", "object", "unlearncanvas", "self-harm"),
        ("the late work of Monet", "style", "unlearncanvas", "the late work of Monet"),
    ],
)
def test_names_as_users_type_them(name: str, template: str, dataset: str, concept: str):
    assert concept_of(name, template, dataset) == concept


def test_every_combination_of_options_is_accepted():
    for template, dataset in itertools.product(TEMPLATES, DATASET_TYPES):
        assert concept_of("Pop_Art", template, dataset) == "Pop Art"


@pytest.mark.parametrize(
    ("template", "dataset", "says"), [("styles", "i2p", "'style'"), ("style", "unlearn-canvas", "'unlearncanvas'")]
)
def test_an_unknown_option_names_the_nearest(template: str, dataset: str, says: str):
    with pytest.raises(ConfigError, match=says):
        concept_of("Pop_Art", template, dataset)


@pytest.mark.parametrize("text", ["", "   ", "\n\t", None, 5])
def test_what_is_no_concept_is_refused(text: object):
    with pytest.raises(DataError):
        check_concept(text)
    with pytest.raises(DataError):
        concept_of(text)  # type: ignore[arg-type]


def test_underscores_alone_are_no_concept():
    with pytest.raises(DataError, match="concept"):
        concept_of("__")


def test_blanks_are_put_in_order():
    assert check_concept("  Van \n Gogh ") == "Van Gogh"


def test_a_comma_is_refused():
    assert check_concept(" Van  Gogh ") == "Van Gogh"
    with pytest.raises(DataError, match="'star, moon'"):
        check_concept("star, moon")


def test_a_folder_names_its_concepts(tmp_path: Path):
    write_unlearn_canvas(tmp_path / "data", per_cell=1)
    (tmp_path / "data" / ".cache" / "x").mkdir(parents=True)
    styles, objects = concepts_in(tmp_path / "data")
    assert [name.lower() for name in styles] == sorted(STYLES) and "Pop Art" in styles
    assert [name.lower() for name in objects] == sorted(OBJECTS)


def test_a_folder_without_concepts_is_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError):
            concepts_in(folder)
