"""Concepts: the text that a method erases, normalised by rule and not by a list of known names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import CoreSchema, core_schema
from typing_extensions import Self

from mu.core.documents import control_character, is_unicode
from mu.core.errors import DataError, quoted
from mu.core.files import fitting

LONGEST = 400
"""Letters of a concept. The text encoders of Stable Diffusion read 75 tokens."""


class Concept(str):
    """What is erased, as it is typed in prompts. It is a ``str``, so configs and files store it as text.

    One rule for every method, bank, suite and file name: outer blanks are removed and inner ones are single. Case and
    underscores stay as typed. A comma is not allowed, because two concepts must be given as two. Two concepts are the
    same if their `folded` texts are equal. Data sets and files write blanks as underscores: `named` reads those.

    Raises `DataError` if the value is not text, contains a comma or a control character, has more than `LONGEST`
    letters, or is empty (underscores alone count as empty).
    """

    def __new__(cls, text: object) -> Self:
        if not isinstance(text, str):
            raise DataError(f"a concept must be text, not {quoted(text)}")
        words = " ".join(text.split())
        if not folded(words):
            raise DataError("the concept is empty: give the text to erase, like 'neon style' or 'Van Gogh'")
        if len(words) > LONGEST:
            raise DataError(f"the concept {quoted(words)} has {len(words)} letters: give at most {LONGEST}")
        if control_character(words) or not is_unicode(words):
            raise DataError(f"the concept {quoted(words)} has a control character or is not Unicode text: type it anew")
        if "," in words:
            raise DataError(
                f"the concept {quoted(words)} has a comma: give several concepts each on its own, without commas"
            )
        return super().__new__(cls, words)

    @classmethod
    def named(cls, name: object) -> Self:
        """The concept for a name with underscores for blanks: ``Pop_Art`` is "Pop Art", ``self-harm`` is unchanged."""
        return cls(name.replace("_", " ") if isinstance(name, str) else name)

    def same(self, other: str) -> bool:
        """Whether ``other`` is another spelling of this concept."""
        return folded(self) == folded(other)

    @property
    def file_stem(self) -> str:
        """The concept's file name without ending: "Robert Downey Jr." is ``Robert_Downey_Jr``.

        Keeps letters of any script, digits, points and hyphens; anything else between them becomes one underscore.
        At most 150 bytes, see `mu.core.files.fitting`. Raises `DataError` if no letter or digit remains.
        """
        stem = re.sub(r"[^\w.-]+", "_", self.named(self)).strip("_.-")
        if not stem:
            raise DataError(f"{quoted(str(self))} has no letters to name a file by: give a concept with letters")
        return fitting(stem)

    @classmethod
    def of_setting(cls, value: object) -> Self:
        """Parse a YAML value; a number such as 1984 becomes text."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return cls(str(value) if is_number else value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        plain = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(cls.of_setting, serialization=plain)


def folded(text: str) -> str:
    """``text`` for comparing concepts, names, captions and file names: case folded, single blanks for underscores."""
    return " ".join(text.replace("_", " ").casefold().split())


def numbers(concept: str) -> tuple[str, ...]:
    """``concept`` and what English makes of its last word for another number: "dog", "dogs".

    The rule knows no exceptions, so it may make a word that nobody types.
    """
    if concept.endswith("s") and not concept.endswith("ss"):
        return concept, concept[:-1]
    if concept.endswith(("ss", "x", "z", "ch", "sh")):
        return concept, f"{concept}es"
    if concept.endswith("y") and concept[-2:-1] not in "aeiou":
        return concept, f"{concept[:-1]}ies"
    return concept, f"{concept}s"


def says(text: str, concept: str) -> bool:
    """Whether ``text`` contains ``concept`` in whole words, whatever marks stand around them."""
    return f" {_bare(concept)} " in f" {_bare(text)} "


def _bare(text: str) -> str:
    """``text`` folded, without marks at the edges of its words; words that are only marks stay."""
    return " ".join(word.strip(_MARKS) or word for word in folded(text).split())


_MARKS = ",.;:!?()[]\"'"


def distinct(texts: Iterable[object]) -> list[Concept]:
    """The concepts of ``texts`` without duplicates, in their first spelling: none may be erased twice."""
    first: dict[str, Concept] = {}
    for concept in map(Concept, texts):
        first.setdefault(folded(concept), concept)
    return list(first.values())


ConceptList = Annotated[list[Concept], AfterValidator(distinct)]
"""Type of a setting that lists the concepts to erase."""
