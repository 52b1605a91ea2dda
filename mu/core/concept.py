"""From what users type to a concept: the text that a method erases. By rule, not by a list of known names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mu.core.errors import ConfigError, DataError, nearest

TEMPLATES = ("style", "object", "i2p")
DATASET_TYPES = ("unlearncanvas", "i2p")


class Concepts(NamedTuple):
    """The styles and objects of an UnlearnCanvas folder, sorted, spaced like prompts."""

    styles: tuple[str, ...]
    objects: tuple[str, ...]


def concept_of(template_name: str, template: str = "style", dataset_type: str = "unlearncanvas") -> str:
    """The concept that ``--template_name`` names: ``Pop_Art`` is "Pop Art", ``self-harm`` stays "self-harm".

    UnlearnCanvas writes names with underscores and asks for them in prompts with spaces; I2P's categories hold no underscore,
    so one rule serves both, and any other text is taken as it is. ``template`` and ``dataset_type`` say what kind of name
    it is: they are checked, in every combination with each other, and do not change the text. Raises `ConfigError` where one of
    them is unknown and `DataError` where nothing is left of the name.
    """
    for option, value, known in (("template", template, TEMPLATES), ("dataset_type", dataset_type, DATASET_TYPES)):
        if value not in known:
            raise ConfigError(f"unknown {option} {value!r}.{nearest(str(value), known)}")
    return check_concept(template_name.replace("_", " ") if isinstance(template_name, str) else template_name)


def check_concept(text: object) -> str:
    """``text`` without blanks at its ends and with single spaces inside. Raises `DataError` where nothing is left, and for a
    comma: who means two concepts must give two."""
    if not isinstance(text, str):
        raise DataError(f"a concept must be text, not {text!r}")
    concept = " ".join(text.split())
    if not concept:
        raise DataError("the concept is empty: give the words to erase, like 'neon style' or 'Van Gogh'")
    if "," in concept:
        raise DataError(f"the concept {concept!r} has a comma: give several concepts each on its own, and one without commas")
    return concept


def file_stem(name: str) -> str:
    """What a concept's file is called, with spaces or underscores in ``name``: "Robert Downey Jr." is ``Robert_Downey_Jr``.

    Letters of any script, digits, points and hyphens stay; whatever else stands between them is one underscore. Raises
    `DataError` for a name without letters, and as `check_concept` does.
    """
    stem = re.sub(r"[^\w.-]+", "_", concept_of(name)).strip("_.-")
    if not stem:
        raise DataError(f"{name!r} has no letters to name a file by")
    return stem


def concepts_in(folder: Path | str) -> Concepts:
    """The names found in an UnlearnCanvas folder, ``<Style>/<Object>/...``: two levels of visible folders.

    Raises `DataError` where there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    cells = [cell for cell in folder.glob("*/*") if cell.is_dir() and not any(p.startswith(".") for p in cell.parts[-2:])]
    if not cells:
        raise DataError(f"{folder} holds no <Style>/<Object> folders: give the folder that holds the styles")
    styles, objects = {cell.parent.name for cell in cells}, {cell.name for cell in cells}
    return Concepts(*(tuple(sorted(name.replace("_", " ") for name in names)) for names in (styles, objects)))
