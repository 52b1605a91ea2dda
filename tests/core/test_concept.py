"""From typed names to concepts."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from mu.core.concept import LONGEST, Concept, ConceptList, distinct, folded, numbers, says
from mu.core.config import BaseConfig
from mu.core.errors import DataError


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("Abstractionism", "Abstractionism"),
        ("Van_Gogh", "Van Gogh"),
        ("Seed_Images", "Seed Images"),
        ("Architectures", "Architectures"),
        ("self-harm", "self-harm"),
        ("illegal activity", "illegal activity"),
        ("the late work of Monet", "the late work of Monet"),
    ],
)
def test_names_of_data_sets_spell_blanks_as_underscores(name: str, concept: str):
    assert Concept.named(name) == concept


@pytest.mark.parametrize("text", ["", "   ", "\n\t", None, 5])
def test_what_is_no_concept_is_refused(text: object):
    for made in (Concept, Concept.named):
        with pytest.raises(DataError):
            made(text)


def test_underscores_alone_are_no_name():
    for made in (Concept, Concept.named):
        with pytest.raises(DataError, match="empty"):
            made("__")
    assert Concept("_a_") == "_a_"  # control


def test_blanks_are_put_in_order_and_all_else_stays():
    assert Concept("  Van \n Gogh ") == "Van Gogh"
    assert Concept("foo_bar") == "foo_bar"


def test_a_comma_is_refused():
    assert Concept(" Van  Gogh ") == "Van Gogh"
    with pytest.raises(DataError, match="has a comma: give several concepts each on its own"):
        Concept("star, moon")


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[31mred", "bell\x07", "\udcff", "x" * (LONGEST + 1), "y, " * 10**5])
def test_what_no_file_or_prompt_can_hold_is_refused_in_a_short_line(text: str):
    with pytest.raises(DataError, match=r"^the concept") as caught:
        Concept(text)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()
    assert Concept("ab\tcd") == "ab cd" and len(Concept("x" * LONGEST)) == LONGEST  # controls
    assert Concept("\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ARTIST PALETTE}")


def test_file_names_fit_the_file_system(tmp_path: Path):
    long = ["\N{CJK UNIFIED IDEOGRAPH-753B}" * 200, "\N{CJK UNIFIED IDEOGRAPH-753B}" * 199]
    stems = {Concept(text).file_stem for text in long}
    for stem in stems:
        (tmp_path / f"semipermeable_membrane_{stem}_last.safetensors").touch()
    assert len(stems) == 2, "two long concepts never share a file"
    assert Concept("Robert Downey Jr.").file_stem == "Robert_Downey_Jr"


def test_names_are_compared_without_case_underscores_and_blanks():
    assert folded(" Elon__Musk\n") == folded("elon musk") == "elon musk"
    assert folded("Elonmusk") != folded("Elon Musk")
    assert Concept("Elon Musk").same(" elon_musk") and not Concept("Elon Musk").same("Elon")
    assert says("A House in  van_gogh style", "Van Gogh") and not says("vans", "van")
    assert says("a fish, blue", "fish") and says("(fish)", "fish") and not says("fishy, blue", "fish")
    assert says("?! in ink", "?!") and not says("in ink", "?!"), "marks alone are a word"


def test_one_that_is_named_twice_is_one():
    assert distinct(["Neon style", "star", " neon_STYLE "]) == ["Neon style", "star"]


def test_a_file_is_named_by_its_letters():
    assert Concept("Robert Downey Jr.").file_stem == Concept("Robert_Downey_Jr.").file_stem == "Robert_Downey_Jr"
    with pytest.raises(DataError, match="no letters"):
        Concept("?!").file_stem  # noqa: B018


class Settings(BaseConfig):
    concepts: ConceptList = [Concept("neon")]


def test_settings_hold_concepts_and_are_written_as_text(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("concepts: [' Pop  Art', 1984, pop_art]\n")
    config = Settings.load(tmp_path / "c.yaml")
    (tmp_path / "no.yaml").write_text("concepts: [no]\n")
    assert Settings.load(tmp_path / "no.yaml").concepts == ["no"]
    assert config.concepts == ["Pop Art", "1984"] and all(isinstance(each, Concept) for each in config.concepts)
    assert config.to_yaml(comments=False) == "concepts:\n- Pop Art\n- '1984'\n"
    assert {type(each) for each in config.model_dump()["concepts"]} == {str}
    for wrong in ("[' ']", "['a, b']", "[~]", "[[a]]"):
        (tmp_path / "c.yaml").write_text(f"concepts: {wrong}\n")
        with pytest.raises(DataError, match="concept"):
            Settings.load(tmp_path / "c.yaml")


def test_a_concept_is_a_text_to_those_who_keep_it():
    concept = Concept("Pop Art")
    assert copy.deepcopy(concept) == concept and json.dumps([concept]) == '["Pop Art"]'


@pytest.mark.parametrize(
    ("concept", "other"),
    [("dog", "dogs"), ("dogs", "dog"), ("church", "churches"), ("glass", "glasses"), ("city", "cities"), ("toy", "toys"),
     ("golden ball", "golden balls"), ("Van Gogh", "Van Goghs")],
)  # fmt: skip
def test_a_concept_and_its_other_number(concept: str, other: str) -> None:
    assert numbers(concept) == (concept, other)
