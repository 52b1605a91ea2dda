"""What a vision-language model is asked about a image."""

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
"""Ways to ask, by the attribute that answers. Searches and suites ask the first; the embedded model learned all of them."""


def question_about(attribute: str) -> str:
    """The question whose answer is ``attribute``; what is none of `QUESTIONS` is an object's name."""
    return QUESTIONS.get(attribute, QUESTIONS["object"])[0]


@runtime_checkable
class Described(Protocol):
    """A image that knows what it shows."""

    @property
    def shows(self) -> Mapping[str, str]:
        """The right answer, by attribute; what the image has not is left out."""
        ...

    def image(self) -> Image.Image: ...
