"""The shipped prompts and concepts, and templates that no method has seen."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import CLIPTokenizer

from mu.algorithms import ALGORITHMS, method
from mu.core.concept import Concept, folded, says
from mu.core.config import filled
from mu.core.errors import DataError
from mu.data import canvas as world
from mu.data import prompt_lists
from mu.data.prompt_lists import (
    ANY,
    KINDS,
    LISTS,
    NEIGHBOUR_TEMPLATES,
    TARGET_TEMPLATES,
    TUNING_TEMPLATES,
    entries,
    everyday,
    kind_of,
)
from mu.evaluation.suites.canvas import neutral_prompts
from mu.models import EMBEDDED
from mu.models.zero_shot import IMAGENET_TEMPLATES

PACKAGE = Path(prompt_lists.__file__).resolve().parent.parent
COUNTS = {"styles": 60, "objects": 80, "animals": 50, "people": 60, "places": 50}
TOKENS = 75
"""What the text encoders of Stable Diffusion read."""
TEMPLATES = sorted(
    {
        text
        for group in (TARGET_TEMPLATES, NEIGHBOUR_TEMPLATES, TUNING_TEMPLATES)
        for of in group.values()
        for text in of
    }
)


# -- lists ------------------------------------------------------------------------------------------------------------


def repeated(texts: Iterable[str]) -> list[str]:
    """The texts that an earlier one equals, whatever its case."""
    seen: set[str] = set()
    return [text for text in texts if folded(text) in seen or seen.add(folded(text))]


def most_tokens(prompt: str) -> int:
    """A high estimate of CLIP's tokens: ordinary English has more than four letters in each."""
    return sum(math.ceil(len(piece) / 4) for piece in re.findall(r"\w+|[^\w\s]", prompt))


@pytest.mark.parametrize("name", KINDS)
def test_a_list_has_its_size_and_only_concepts(name: str) -> None:
    found = entries(name)
    assert COUNTS[name] <= len(found) <= COUNTS[name] + 6
    assert [str(Concept(entry)) for entry in found] == list(found)


def test_no_concept_is_in_two_lists_or_twice_in_one() -> None:
    assert repeated(entry for name in KINDS for entry in entries(name)) == []
    assert repeated([*entries("styles"), "CUBISM"]) == ["CUBISM"], "control"


def test_everyday_prompts_are_of_every_length_and_none_is_cut() -> None:
    found = everyday()
    words = [len(prompt.split()) for prompt in found]
    assert len(found) == 200 and repeated(found) == []
    assert all(prompt == " ".join(prompt.split()) != "" for prompt in found)
    assert 25 <= sum(n < 4 for n in words) <= 35 and 18 <= sum(n > 20 for n in words) <= 25
    assert max(map(most_tokens, found)) <= TOKENS
    assert most_tokens("a cat, " * 30) > TOKENS, "control"


def test_everyday_prompts_name_no_person_and_no_artist() -> None:
    artists = [entry for entry in entries("styles") if entry[0].isupper()]
    names = [*entries("people"), *artists]
    assert [prompt for prompt in everyday() if any(says(prompt, name) for name in names)] == []
    assert len(artists) >= 8 and any(says("a barn as Van Gogh saw it", name) for name in names), "control"


def test_every_file_is_plain_and_belongs_to_a_list() -> None:
    assert sorted(path.name for path in LISTS.iterdir()) == sorted(f"{name}.txt" for name in (*KINDS, "everyday"))
    for path in LISTS.iterdir():
        content = path.read_bytes()
        assert all(line.isprintable() for line in content.decode("utf-8").split("\n")), path
        assert content.endswith(b"\n") and b"\n\n" not in content, path


def test_an_unknown_list_is_named() -> None:
    with pytest.raises(DataError, match=r"'style'.*styles, objects, animals, people, places"):
        entries("style")
    with pytest.raises(DataError, match="'everyday'"):
        entries("everyday")


def test_git_keeps_the_lists_so_they_are_in_the_wheel() -> None:
    """The wheel has every file under mu/ that git keeps."""
    pathspec = pytest.importorskip("pathspec")
    lines = (PACKAGE.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = pathspec.PathSpec.from_lines("gitignore", lines).match_file
    assert [path for path in LISTS.iterdir() if ignored(path.relative_to(PACKAGE.parent).as_posix())] == []
    assert ignored("data/lists/everyday.txt"), "control: the folder of users' data is ignored"


# -- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concept", "kind"),
    [
        ("Van Gogh style", "styles"),
        ("van_gogh", "styles"),
        ("Pop Art", "styles"),
        ("the Eiffel Tower", "places"),
        ("an elephant", "animals"),
        ("Marie  Curie", "people"),
        ("bicycle", "objects"),
        ("bicycle style", None),
        ("theatre", None),
        ("nudity", None),
        ("", None),
    ],
)
def test_the_kind_is_that_of_the_list(concept: str, kind: str | None) -> None:
    assert kind_of(concept) == kind


def test_every_entry_has_the_kind_of_its_list() -> None:
    assert {name: {kind_of(entry.upper()) for entry in entries(name)} for name in KINDS} == {n: {n} for n in KINDS}


def test_styles_and_objects_of_the_embedded_world_have_a_kind() -> None:
    assert {kind_of(style) for style in world.STYLES} == {"styles"}
    assert {kind_of(name) for name in world.OBJECTS} == {"objects", "animals"}


# -- templates --------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """``text`` for comparison: no case, no punctuation, ``{}`` kept."""
    return " ".join(re.findall(r"\{\}|\w+", text.casefold()))


def shape(template: str) -> re.Pattern[str]:
    """Matches ``template`` with any text in it, the template itself too."""
    return re.compile(re.escape(plain(template)).replace(re.escape("{}"), ".+"))


def taught(templates: Iterable[str], texts: Iterable[str]) -> list[str]:
    """The templates that one of the texts is, with or without a concept in it."""
    known = {plain(text) for text in texts}
    return [template for template in templates if any(map(shape(template).fullmatch, known))]


def strings(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        for below in values.values():
            yield from strings(below)
    elif isinstance(values, list | tuple):
        for below in values:
            yield from strings(below)
    elif isinstance(values, str):
        yield values


def preset_texts() -> set[str]:
    """Every text in the settings and presets of every method, given or by default."""
    found = set()
    for name in ALGORITHMS:
        known = method(name)
        for config in (known.config_class(), *known.presets.values()):
            found |= set(strings(config.model_dump(mode="json")))
    return found


def file_texts() -> set[str]:
    """Every text in the YAML files of the methods."""
    files = list(PACKAGE.glob("algorithms/**/*.yaml"))
    return {text for file in files for text in strings(yaml.safe_load(file.read_text(encoding="utf-8")))}


def source_texts() -> set[str]:
    """Every text with a place for a concept in the package's sources, but those of the lists."""
    own = Path(prompt_lists.__file__).resolve()
    return {
        node.value
        for file in PACKAGE.rglob("*.py")
        if file.resolve() != own
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{}" in node.value
    }


def world_texts() -> set[str]:
    """Every text about the embedded world: the captions it is taught with, and what suites and searches ask."""
    return {
        *(text for scene in world.every_scene() for text, _ in world.captions(scene)),
        *(*world.PHRASES, *world.SENTENCES, *world.SENTENCES_OF["identity"], *IMAGENET_TEMPLATES),
        *map(world.CANVAS.template, world.CANVAS.classes()),
        *neutral_prompts("style"),
        *neutral_prompts("object"),
    }


@pytest.mark.parametrize(
    ("texts", "one_of_them"),
    [
        (preset_texts, "{}, Detailed"),
        (preset_texts, "a {} image"),
        (file_texts, "picture of {}"),
        (source_texts, "art of the {}."),
        (world_texts, "The face of {}"),
        (world_texts, "a picture of a {}"),
    ],
)
def test_no_method_trains_on_a_template_or_protects_it(texts: Any, one_of_them: str) -> None:
    assert taught([*TEMPLATES, one_of_them], texts()) == [one_of_them], "control: only the last is known"


def test_a_template_is_found_with_a_concept_in_it() -> None:
    assert taught(["{} style", "{} mural"], ["Neon style.", "a star"]) == ["{} style"]


@pytest.mark.parametrize(("group", "count"), [(TARGET_TEMPLATES, 10), (NEIGHBOUR_TEMPLATES, 4), (TUNING_TEMPLATES, 4)])
def test_each_kind_has_its_templates_each_with_one_place(group: dict[str, tuple[str, ...]], count: int) -> None:
    assert set(group) == {*KINDS, ANY}
    for kind, templates in group.items():
        assert len(templates) == count and repeated(templates) == [], kind
        assert all(text.count("{}") == 1 and not set("{}") & set(filled(text, "")) for text in templates), kind


def test_targets_and_neighbours_are_asked_for_in_other_words() -> None:
    for kind in (*KINDS, ANY):
        groups = [
            {plain(t) for t in group[kind]} for group in (TARGET_TEMPLATES, NEIGHBOUR_TEMPLATES, TUNING_TEMPLATES)
        ]
        assert not any(a & b for a, b in combinations(groups, 2)), kind


def test_a_template_names_no_concept_of_its_own_kind() -> None:
    def named(kind: str, templates: Iterable[str]) -> list[str]:
        return [text for text in templates if any(says(plain(text), plain(entry)) for entry in entries(kind))]

    for kind in KINDS:
        assert named(kind, (*TARGET_TEMPLATES[kind], *NEIGHBOUR_TEMPLATES[kind], *TUNING_TEMPLATES[kind])) == [], kind
    assert named("objects", ["{} under an umbrella"]), "control"


def test_the_embedded_model_reads_every_template_whole() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED["canvas-clip"], local_files_only=True)
    of_kind = {"styles": world.STYLES, "objects": world.OBJECTS, "animals": world.OBJECTS, "people": world.IDENTITIES}
    of_kind[ANY] = (*world.STYLES, *world.OBJECTS, *world.IDENTITIES)

    def cut(templates: Iterable[str], concepts: Iterable[str]) -> set[str]:
        prompts = [(text, filled(text, concept)) for text in templates for concept in concepts]
        return {text for text, prompt in prompts if len(tokenizer(prompt, verbose=False).input_ids) > length}

    length = tokenizer.model_max_length
    for kind, concepts in of_kind.items():
        assert cut((*TARGET_TEMPLATES[kind], *NEIGHBOUR_TEMPLATES[kind], *TUNING_TEMPLATES[kind]), concepts) == set(), (
            kind
        )
    assert cut(["two chairs on a balcony at night, painted like {}"], world.STYLES), "control"
