"""Questions to a vision-language model about an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from PIL import Image

QUESTIONS = {
    "identity": (
        "What is the name of the person in this image?",
        "Who is this?",
        "What's the name of the person in this image?",
    ),
    "object": ("What object is shown?", "What object is in this image?"),
    "style": ("What style is it?", "In what style is this image?"),
}
"""Phrasings by attribute. Searches and suites ask the first; the embedded model was trained on all."""


def question_about(attribute: str) -> str:
    """The question about ``attribute``. A name that is not in `QUESTIONS` counts as an object's."""
    return QUESTIONS.get(attribute, QUESTIONS["object"])[0]


@runtime_checkable
class Described(Protocol):
    """An image with known content."""

    @property
    def shows(self) -> Mapping[str, str]:
        """The right answer by attribute, without attributes that the image lacks."""
        ...

    def image(self) -> Image.Image: ...
