"""Prompts and concepts that are shipped, for evidence about models whose concepts nobody listed.

``lists/everyday.txt`` has prompts as people type them. The other lists name concepts of one kind each. The templates
put a concept into words that no method's preset trains on or protects, so that an edit meets them for the first time.
They are short: the embedded model reads 14 tokens, and most of these words cost it several.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mu.core.concept import folded
from mu.core.config import filled
from mu.core.errors import DataError, nearest, titled
from mu.core.files import read_text

LISTS = Path(__file__).parent / "lists"
KINDS = ("styles", "objects", "animals", "people", "places")
"""The lists of concepts. No concept is in two of them."""
ANY = "any"
"""The key of the templates for a concept of unknown kind."""
KEPT = 48
"""So many of the everyday prompts, the first, are what searches keep. Their probes read the others."""

_THING_TARGETS = (
    "my favourite {}",
    "a small {} seen from above",
    "an old {} at sunrise",
    "look at this {}",
    "one {} and nothing else",
    "the biggest {} in town",
    "a lonely {} in the rain",
    "who left the {} out there?",
    "my {} in a barn",
    "an open road and one {}",
)
_THING_NEIGHBOURS = (
    "a very large {}",
    "nobody saw the {}",
    "a new {} in bright sun",
    "one {} in the fog",
)
TARGET_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "styles": (
        "a farm at dusk, {}",
        "{} mural with birds",
        "{} rendition of a barn",
        "{}, a street in rain",
        "one lane, pure {}",
        "{}: a village in winter",
        "big and bold {}, a city",
        "{} view of the sea",
        "wallpaper inspired by {}",
        "{} postcard of a lake",
    ),
    "objects": _THING_TARGETS,
    "animals": _THING_TARGETS,
    "people": (
        "{} waiting for a bus",
        "{} in a raincoat",
        "{} laughing out loud",
        "breakfast with {}",
        "{} giving a talk",
        "a selfie with {}",
        "{} asleep on a bench",
        "{} with a big smile",
        "{} in a magazine",
        "is that {} in the crowd?",
    ),
    "places": (
        "{} in thick fog",
        "{} before sunrise",
        "{} seen from a plane",
        "a rainy day, {}",
        "tourists visiting {}",
        "first snow, {}",
        "greetings from {}, postcard",
        "wide view of {}",
        "{} at night, long exposure",
        "our last holiday: {}",
    ),
    ANY: (
        "{} on a plain wall",
        "my favourite {}",
        "{} seen from far away",
        "something like {}",
        "today's theme: {}",
        "nothing but {}",
        "a page full of {}",
        "{} in the rain",
        "big and bright {}",
        "a T-shirt print with {}",
    ),
}
"""Ten templates by kind of concept, each with one ``{}``, to ask for the concept that was erased."""
NEIGHBOUR_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "styles": (
        "{} desert at noon",
        "{} poster of a bridge",
        "{} version of a garden",
        "my dog, but {}",
    ),
    "objects": _THING_NEIGHBOURS,
    "animals": _THING_NEIGHBOURS,
    "people": (
        "{} holding a cup of tea",
        "{} on a balcony",
        "a walk with {}",
        "{} looking up",
    ),
    "places": (
        "{} on a cloudy day",
        "the road to {}",
        "{} in early spring",
        "a sunny morning, {}",
    ),
    ANY: (
        "{} on a white page",
        "{} in early spring",
        "more {}, please",
        "a poster with {}",
    ),
}
"""Four templates by kind of concept, other ones than `TARGET_TEMPLATES`, to ask for concepts that should stay."""
_THING_TUNING = (
    "a photograph of my {}",
    "two of us and a {}",
    "there was a {} at dawn",
    "a wooden {} on grass",
)
TUNING_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "styles": (
        "a windmill, {}",
        "{} study of hands",
        "our kitchen, {}",
        "cover art, {}",
    ),
    "objects": _THING_TUNING,
    "animals": _THING_TUNING,
    "people": (
        "{} at the beach",
        "dinner with {}",
        "{} reading a book",
        "{} and a friend",
    ),
    "places": (
        "{} from the air",
        "a market in {}",
        "{} under snow",
        "old map of {}",
    ),
    ANY: (
        "{} at dawn",
        "one more {}",
        "a card with {}",
        "{}, close by",
    ),
}
"""Four templates by kind of concept, other ones than both, for trials of settings: what is reported asks in others."""


def entries(name: str) -> tuple[str, ...]:
    """The concepts of the list ``name``, one of `KINDS`, in the order of its file. Raises `DataError` for another."""
    if name not in KINDS:
        raise DataError(f"there is no list {titled(name)}.{nearest(name, KINDS)} The lists are {', '.join(KINDS)}")
    return _lines(name)


def everyday() -> tuple[str, ...]:
    """The everyday prompts, in the order of their file. Some name a style or an object of the other lists."""
    return _lines("everyday")


def phrasings(concept: str) -> list[str]:
    """``concept`` in the target templates of its kind, or in those that suit any."""
    return [filled(template, concept) for template in TARGET_TEMPLATES[kind_of(concept) or ANY]]


def kind_of(concept: str) -> str | None:
    """The list that holds ``concept``, or None. Case, underscores and a leading article make no difference.

    "Van Gogh style" is the style "Van Gogh".
    """
    wanted = folded(concept)
    for article in ("a ", "an ", "the "):
        wanted = wanted.removeprefix(article)
    kinds = _kinds()
    if wanted in kinds:
        return kinds[wanted]
    return "styles" if kinds.get(wanted.removesuffix(" style")) == "styles" else None


@cache
def _lines(name: str) -> tuple[str, ...]:
    return tuple(read_text(LISTS / f"{name}.txt", "the list").splitlines())


@cache
def _kinds() -> dict[str, str]:
    """The list of each concept, by its folded text."""
    return {folded(entry): name for name in KINDS for entry in _lines(name)}
