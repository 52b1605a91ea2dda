"""A run's images: pairs without and with the edit, by role, and grids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mu.core.judged import KINDS, SHOWN, asked_prompts, edited_folders, judged_names, kept_base, spread
from mu.core.records import Panel, PanelRow, Prompt
from mu.core.run import RunDirectory
from mu.report.figures import THUMBNAIL, InlineImage, inline_image

PAIRS_SHOWN = 6
"""Image pairs of erased concepts shown at once; twice as many of retained ones. The others are folded."""
PAIRS_KEPT = 60
"""Image pairs per role in the page, spread evenly over all."""

ASKED = {
    "target": "Asked for what was erased",
    "neighbour": "Asked for its neighbours",
    "everyday": "Everyday prompts",
    "": "Other prompts",
}
"""The titles of `mu.core.judged.KINDS`."""

ROLES = {"target": "What was erased", "retain": "What was retained", "": "Other prompts"}


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed without and with the edit."""

    name: str
    prompt: str
    note: str
    before: InlineImage
    after: InlineImage


@dataclass(frozen=True)
class Group:
    role: str
    pairs: list[Pair]
    total: int
    suite: str = ""
    """The suite that judged the images; "" for those that were made with the edit."""

    @property
    def title(self) -> str:
        return ASKED[self.role] if self.suite else ROLES[self.role]

    @property
    def erased(self) -> bool:
        return self.role == "target"


@dataclass(frozen=True)
class Grid:
    title: str
    columns: list[str]
    rows: list[tuple[str, list[InlineImage]]]


def paired(run: RunDirectory, prompts: list[Prompt]) -> list[Group]:
    """Images without and with the edit, erased concepts first; at most `PAIRS_KEPT` pairs of each role."""
    cases = {str(p.case_number): (place, p) for place, p in enumerate(prompts)}
    names = {path.name for folder in (run.before, run.after) if folder.is_dir() for path in folder.glob("*.png")}
    by_role: dict[str, list[tuple[Any, str, Prompt | None, str]]] = defaultdict(list)
    for name in names:
        case, _, k = Path(name).stem.rpartition("_")
        place, prompt = cases.get(case, (len(prompts), None))
        role = prompt.role if prompt and prompt.role in ROLES else ""
        by_role[role].append(((place, len(k), k, name), name, prompt, k))
    groups = []
    for role in ROLES:
        if found := sorted(by_role[role], key=lambda item: item[0]):
            pairs = [_pair(run, name, prompt, k) for _, name, prompt, k in spread(found, PAIRS_KEPT)]
            groups.append(Group(role, pairs, len(found)))
    return groups


def judged(run: RunDirectory, concepts: Sequence[str]) -> list[Group]:
    """A few of the images that suites judged, what was erased first, spread evenly over all of their kind."""
    groups = []
    for suite, edited in edited_folders(run).items():
        prompts, by_kind = asked_prompts(run, suite), judged_names(run, suite, concepts)
        for kind in KINDS:
            if names := by_kind.get(kind):
                pairs = [_judged(run, suite, edited, name, prompts.get(name)) for name in spread(names, SHOWN)]
                groups.append(Group(kind, pairs, len(names), suite))
    return groups


def _judged(run: RunDirectory, suite: str, edited: Path, name: str, prompt: Prompt | None) -> Pair:
    stem, _, seed = Path(name).stem.rpartition("_seed")
    text = prompt.prompt if prompt else stem.replace("_", " ")
    kept = kept_base(run, suite)
    places = {"base": kept if kept.is_dir() else edited.with_name("base"), "edited": edited}
    before, after = (
        inline_image(
            run.folder, (folder / name).relative_to(run.folder).as_posix(), f"{side}: {text}, seed {seed}", THUMBNAIL
        )
        for side, folder in places.items()
    )
    return Pair(name, text, f"seed {seed}", before, after)


def _pair(run: RunDirectory, name: str, prompt: Prompt | None, k: str) -> Pair:
    text = prompt.prompt if prompt else name
    notes = []
    if prompt and prompt.seed is not None:
        notes.append(f"seed {prompt.seed}" + (f", image {k}" if k != "0" else ""))
    if prompt and prompt.gate:
        notes.append("gate " + ", ".join(f"{g:.2f}" for g in prompt.gate))
    before, after = (
        inline_image(run.folder, f"{side}/{name}", f"{side} the edit: {text}") for side in ("before", "after")
    )
    return Pair(name, text, " · ".join(notes), before, after)


def grids(run: RunDirectory) -> list[Grid]:
    """The grids of ``panels.json``."""
    return [
        Grid(panel.title, panel.columns, [_shots(run, panel, row) for row in panel.rows]) for panel in run.read_panels()
    ]


def _shots(run: RunDirectory, panel: Panel, row: PanelRow) -> tuple[str, list[InlineImage]]:
    texts = [f"{column}: {row.label}" for column in panel.columns]
    shown = [
        inline_image(run.folder, name, alt) if name else InlineImage(alt)
        for alt, name in zip(texts, row.images, strict=True)
    ]
    return row.label, shown
