"""Which of the images that a suite judged a page shows: a few of each kind, the same of the base and the edited model.

The base's images may lie in a folder that several runs share. Then a run keeps copies of those that its page shows.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mu.core.concept import Concept
from mu.core.errors import DataError
from mu.core.files import atomic_path, is_inside
from mu.core.records import Prompt, read_record
from mu.core.run import RunDirectory

T = TypeVar("T")

SHOWN = 8
"""Images of each kind that are shown."""
KINDS = ("target", "neighbour", "everyday", "")
"""What an image asks for, by the beginning of its name: what was erased, its neighbours, everyday prompts, others."""


def edited_folders(run: RunDirectory) -> dict[str, Path]:
    """The folder of the edited model's images of each suite. Suite canvas has none of its own."""
    found = [folder for folder in run.answer_folders() if folder.name == "edited"]
    return {"canvas" if folder.parent == run.answers else folder.parent.name: folder for folder in found}


def asked_prompts(run: RunDirectory, suite: str) -> dict[str, Prompt]:
    """The prompts of the suite's images by their names; empty for a suite that wrote none."""
    asked = run.asked(suite)
    return {str(p.case_number): p for p in (read_record(asked, list[Prompt]) if asked.exists() else [])}


def judged_names(run: RunDirectory, suite: str, concepts: Sequence[str]) -> dict[str, list[str]]:
    """The names, relative to its folder, of the edited model's images that ``suite`` judged last, by kind, sorted.

    They are those that it asked for, in any format and folder; without a list of them, all in the folder.
    """
    edited = edited_folders(run).get(suite)
    if edited is None:
        return {}
    files = [*edited.rglob("*.png"), *edited.rglob("*.jpg")]
    names = [*asked_prompts(run, suite)] or [path.relative_to(edited).as_posix() for path in files]
    stems = [stem for concept in concepts if (stem := _stem(concept))]
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in sorted(name for name in names if is_inside(edited, name) and (edited / name).is_file()):
        by_kind[_kind(Path(name).stem, stems)].append(name)
    return by_kind


def spread(items: list[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly over all."""
    return items if len(items) <= count else [items[k * len(items) // count] for k in range(count)]


def kept_base(run: RunDirectory, suite: str) -> Path:
    """The folder of the base's images that a run keeps of a shared folder."""
    return run.panel_images / f"base-{suite}"


def keep_base(run: RunDirectory, suite: str, shared: Path | None) -> None:
    """Copy to the run the images of ``shared`` that its page shows of ``suite``. Those kept before are deleted.

    Without ``shared`` there is nothing to copy: the base's images lie in the run.
    """
    folder = kept_base(run, suite)
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if shared is None:
        return
    for names in judged_names(run, suite, run.origin().concept_names()).values():
        for name in spread(names, SHOWN):
            if (shared / name).is_file():
                with atomic_path(folder / name) as partial:
                    shutil.copyfile(shared / name, partial)


def _kind(stem: str, concepts: Sequence[str]) -> str:
    """The kind of an image by its name: names without a kind are of the styles and objects that they ask for."""
    kind = stem.partition("_")[0]
    if kind in KINDS:
        return kind
    return "target" if any(f"_{concept}_" in f"_{stem}_".casefold() for concept in concepts) else ""


def _stem(concept: str) -> str:
    """The concept in the names of images; "" for one that names no file."""
    try:
        return Concept(concept).file_stem.casefold()
    except DataError:
        return ""
