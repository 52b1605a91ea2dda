"""Which column of a prompt file holds what. Projects name the same columns differently."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mu.core.documents import is_index
from mu.core.errors import DataError, nearest, quoted

NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "prompt": (
        ("prompt", "prompts"),
        (
            "adv_prompt", "adversarial_prompt", "attack_prompt", "jailbreak_prompt", "sensitive_prompt",
            "unsafe_prompt", "harmful_prompt",
        ),
        ("caption", "captions", "text", "texts"),
    ),
    "case_number": (("case_number", "case_num", "case_no"),),
    "seed": (("evaluation_seed", "eval_seed", "sd_seed", "seed", "random_seed", "generation_seed", "image_seed"),),
    "guidance": ((
        "evaluation_guidance", "eval_guidance", "sd_guidance_scale", "sd_guidance", "guidance_scale", "guidance",
        "evaluation_guidance_scale", "cfg", "cfg_scale",
    ),),
    "width": (("sd_image_width", "image_width", "sd_width", "width"),),
    "height": (("sd_image_height", "image_height", "sd_height", "height"),),
    "class": (("class", "class_name"),),
    "artist": (("artist",),),
    "type": (("type",),),
    "categories": (("categories", "category"),),
}  # fmt: skip
"""For each field, column names in groups: the first group of which a file has a column is read. Names are `plain`."""

_TELLING = {
    "seed": "seed", "seeds": "seed", "guidance": "guidance", "cfg": "guidance", "width": "width", "height": "height",
    "w": "width", "h": "height",
}  # fmt: skip
"""Words of a column's name that tell its field, as in ``initial_seed``."""

_NOT_READ = {
    "negative_prompt": "--negative", "negative_prompts": "--negative", "neg_prompt": "--negative", "steps": "--steps",
    "num_inference_steps": "--steps", "sd_steps": "--steps", "ddim_steps": "--steps",
}  # fmt: skip
"""Columns that would change an image and are not read, with the option that sets the same for all prompts."""


_SIZES = {"resolution", "resolutions", "size", "sizes", "dimension", "dimensions", "dims", "hw", "wh"}
_OF_IMAGES = {"sd", "image", "images", "img", "output", "target", "generation", "original"}
"""Words of the name of a column that holds width and height in one, such as ``image_size`` with 512x768."""

Cells = Sequence[str | None]
"""The cells of a row. None: a JSON object without that key."""


@dataclass(frozen=True)
class Columns:
    """``fields`` has the indices of the columns of each field that is there, ``other`` the names of the rest by index.

    Several columns of one field must agree in every row; see `Columns.value`."""

    header: tuple[str, ...]
    fields: Mapping[str, tuple[int, ...]]
    other: Mapping[int, str]
    notes: tuple[str, ...]
    """What a user may want to know, one line each."""

    def value(self, field: str, cells: Cells) -> str | None:
        """The value of ``field`` in a row; None if the row has none. Raises `DataError` if its columns differ."""
        there = {k: cell for k in self.fields.get(field, ()) if (cell := cells[k]) is not None}
        found = {cell.strip(): k for k, cell in reversed(there.items()) if cell.strip()}
        if len(found) > 1:
            one, two = (quoted(self.header[k]) for k in sorted(found.values())[:2])
            raise DataError(f"the columns {one} and {two} both hold the {field} and differ: pass --column {field}=NAME")
        return there[next(iter(found.values()))] if found else next(iter(there.values()), None)


def find_columns(header: Sequence[str], given: Mapping[str, str] | None = None) -> Columns:
    """Find the columns of each field by name. ``given`` names the column of a field, as `columns_given` returns it.

    Raises `DataError` for a given column that does not exist, and without prompts. Its message says what the file has:
    "has no column 'prompt' ..."."""
    names = [name.strip() for name in header]
    named = {k: name for k, name in enumerate(names) if not is_index(name)}
    fields: dict[str, tuple[int, ...]] = {}
    for field, column in (given or {}).items():
        if column not in names:
            raise DataError(f"has no column {quoted(column)}.{nearest(column, named.values())}")
        fields[field] = (names.index(column),)
    taken = {k for places in fields.values() for k in places}
    free = {k: plain(name) for k, name in named.items() if k not in taken}
    for field, groups in NAMES.items():
        for group in groups if field not in fields else ():
            if places := tuple(k for k, name in free.items() if name in group):
                fields[field] = places
                break
    if "prompt" not in fields:
        raise DataError(_no_prompts(names, {k: field for field, places in fields.items() for k in places}))
    read = {k for places in fields.values() for k in places}
    other = {k: name for k, name in named.items() if k not in read}
    return Columns(tuple(names), fields, other, tuple(_notes(names, fields, other)))


def columns_given(texts: Iterable[str]) -> dict[str, str]:
    """Parse ``NAME`` (the column of the prompts) and ``FIELD=NAME``, where FIELD may be any usual name of a field.

    Raises `DataError` for a field that is given twice."""
    given: dict[str, str] = {}
    for text in texts:
        name, equals, column = text.partition("=")
        named = field_of(name) if equals else None
        field, column = (named, column.strip()) if named else ("prompt", text.strip())
        if given.setdefault(field, column) != column:
            raise DataError(
                f"--column gives the {field} twice, {quoted(given[field])} and {quoted(column)}: leave one out"
            )
    return given


def field_of(name: str) -> str | None:
    """The field that a column of this name holds."""
    wanted = plain(name)
    return next((f for f, groups in NAMES.items() if f == wanted or any(wanted in group for group in groups)), None)


def plain(name: str) -> str:
    r"""A column's name for comparison: ``Sensitive Prompt`` is ``sensitive_prompt``, ``evaluation_seed\`` loses its
    end."""
    return re.sub(r"[\s_-]+", "_", name.strip(" \t\r\n\\'\"\ufeff").lower())


def _no_prompts(names: Sequence[str], taken: Mapping[int, str]) -> str:
    """``taken`` says which fields the user or their names gave to columns."""
    prompts = {k for k, name in enumerate(names) if any(plain(name) in group for group in NAMES["prompt"])}
    if used := sorted(prompts & taken.keys()):
        column, field = quoted(names[used[0]]), taken[used[0]]
        return f"has no column of prompts left: {column} was named for {field}; name another with --column prompt=NAME"
    shown = [name for name in names if name]
    if len(shown) == 1 and (mark := next((mark for mark in ";\t|" if mark in shown[0]), "")):
        return f"has no column 'prompt': columns are separated by {quoted(mark)}, save the file with commas"
    close = [name for name in shown if difflib.get_close_matches(plain(name), ["prompt", "caption"], n=1, cutoff=0.7)]
    likely = close or [name for name in shown if "prompt" in plain(name)]
    advice = f"pass --column {quoted(likely[0] if likely else 'NAME')}"
    told = ", ".join(name[:40] for name in shown[:20]) + (", ..." if len(shown) > 20 else "")
    return f"has no column 'prompt'; its columns are: {told or 'none'}; {advice} to read another"


def _notes(names: Sequence[str], fields: Mapping[str, Sequence[int]], other: Mapping[int, str]) -> Iterator[str]:
    column = names[fields["prompt"][0]]
    attacks = [name for name in other.values() if plain(name) in NAMES["prompt"][1]]
    if attacks:
        yield f"prompts are those of the column {quoted(column)}; --column {quoted(attacks[0])} reads the other"
    elif plain(column) != "prompt":
        yield f"prompts are those of the column {quoted(column)}"
    missing = [field for field in ("case_number", "seed", "guidance", "width", "height") if field not in fields]
    known = [name for field in missing for group in NAMES[field] for name in group]
    for name in other.values():
        if option := _NOT_READ.get(plain(name)):
            yield f"the column {quoted(name)} is not read: pass {option}"
            continue
        words = set(plain(name).split("_"))
        if words & _SIZES and words <= _SIZES | _OF_IMAGES and {"width", "height"} & {*missing}:
            yield f"the column {quoted(name)} is not read: make columns 'width' and 'height' of it, or pass --size HxW"
            continue
        close = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.85)
        close = close or [each for each in known if sorted(each) == sorted(plain(name))]  # letters changed places
        told = next((_TELLING[word] for word in plain(name).split("_") if word in _TELLING), None)
        field = field_of(close[0]) if close else told
        if field in missing:
            advice = f"if it holds the {field}, pass --column {field}={quoted(name)}"
            yield f"the column {quoted(name)} is not read; {advice}"
