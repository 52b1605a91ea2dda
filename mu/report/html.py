"""The page of a run: what was removed, the pictures before and after, scores, curves, settings and the citation.

Reads what a run left behind and nothing else; no model library is needed. Beside the files of `RunDirectory`:

    prompts.json   [{"case_number": 0, "prompt": "...", "seed": 188, "role": "target" or "retain", "gate": [0.98]}, ...]
                   ``before/0_1.png`` is picture 1 of case 0; seed and gate may be missing
    panels.json    [{"title": "...", "columns": ["base", ...], "rows": [{"label": "...", "images": ["panels/a.png", ...]}]}]
                   more grids of pictures
    slug_*.json    importance and alignment of every tensor, and the searched steps (see `mu.report.layer_figures`); its figures
                   are also written beside the page, ``pareto-<tower>-<concept>.png``

Paths in them stay inside the run folder or are refused. A part that is not there is left out of the page, or the page says
how to get it.
"""

from __future__ import annotations

import fnmatch
import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mu.core.errors import DataError
from mu.core.files import atomic_path, write_text, writing
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report.figures import Picture, Point, embedded, line_chart, picture, short
from mu.report.layer_figures import LayerSearch, layer_figures

T = TypeVar("T")

PAIRS_SHOWN = 6
"""Pairs of pictures of what was removed that are seen at once, and twice as many of what was kept; the others are folded."""
PAIRS_KEPT = 60
"""Pairs of pictures per role that the page holds, spread evenly over all."""

ROLES = {"target": "What was removed", "retain": "What was kept", "": "Other prompts"}

MEANINGS = {
    "UA": ("Unlearning accuracy", "of the pictures that ask for it no longer show it"),
    "IRA": ("In-domain retain accuracy", "of the pictures of other concepts of its kind still show them"),
    "CRA": ("Cross-domain retain accuracy", "of the pictures still show the other kind of concept they ask for"),
    "FA@1": ("Forget accuracy", "of the concept's pictures are still recognised as it"),
    "FA@5": ("Forget accuracy, top five", "of the concept's pictures still have it among the five nearest names"),
    "*@1 retained": ("Retained accuracy", "of the pictures of what was to stay of its kind are recognised, every class counting once"),
    "*@5 retained": ("Retained accuracy, top five", "of the same pictures have the right name among the five nearest"),
    "imagenet@1": ("ImageNet accuracy", "of ImageNet's pictures are recognised"),
    "imagenet@5": ("ImageNet accuracy, top five", "of ImageNet's pictures have the right name among the five nearest"),
    "*@1": ("Accuracy", "of the pictures of this kind are recognised, every class counting once"),
    "*@5": ("Accuracy, top five", "of the pictures of this kind have the right name among the five nearest, every class counting once"),
    "MIA": (
        "Membership inference",
        "of the pairs can be told as forgotten or not by how well picture and caption fit: 50% is chance, and what was forgotten too "
        "much stands out again",
    ),
    "FA": ("Forget accuracy", "of the answers about the concept's pictures still name it"),
    "retained": ("Retained accuracy", "of the answers to the same question about other pictures are right"),
    "other questions": ("Other questions", "of the answers to questions about something else are right"),
    "other questions, forgotten pictures": (
        "Other questions", "of the answers to questions about something else in the concept's pictures are right",
    ),
}  # fmt: skip
"""Shares (0 to 1, shown in percent) by name, ``*`` standing for a kind of concept; other scores are shown under their own name."""


VERDICT = ("UA", "IRA", "CRA", "FA", "retained", "other questions")
"""They stand at the head of the page; of a CLIP all accuracies at 1, without a kind's own where its retained one is told."""


def meaning_of(name: str) -> tuple[str, str]:
    """A title and the end of a sentence that begins with the share; for other scores the name and nothing."""
    return next((told for pattern, told in MEANINGS.items() if fnmatch.fnmatchcase(name, pattern)), (name, ""))


def write_report(run: RunDirectory | Sequence[RunDirectory], path: Path | str | None = None) -> Path:
    """Write the page of one run, or the comparison of several, and return where.

    Without ``path`` it is ``report.html`` in the run's folder; for several runs ``comparison.html`` beside the first folder.
    """
    runs = [run] if isinstance(run, RunDirectory) else list(run)
    if not runs:
        raise DataError("there is no run to report on: name at least one run folder")
    pages = [read_page(each) for each in runs]
    if len(pages) == 1:
        path, comparison = path or runs[0].report, None
    else:
        path, comparison = path or runs[0].folder.parent / "comparison.html", compare(pages)
    environment = Environment(
        loader=PackageLoader("mu.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("template.html")
    text = template.render(page=pages[0], pages=pages, comparison=comparison, roles=ROLES, shown=PAIRS_SHOWN)
    with writing(path):
        write_text(path, text.lstrip())
        for plot in pages[0].plots if comparison is None else ():
            with atomic_path(Path(path).with_name(plot.file)) as partial:
                partial.write_bytes(plot.png)
    return Path(path)


# -- what the files hold -----------------------------------------------------------------------------------------------


class Prompt(BaseModel):
    case_number: int | str
    prompt: str
    seed: int | None = None
    role: str = ""
    gate: list[float] | None = None


class PanelRow(BaseModel):
    label: str
    images: list[str | None]


class Panel(BaseModel):
    title: str
    columns: list[str]
    rows: list[PanelRow]


class Origin(BaseModel):
    """``environment.json``; keys that are not here are not shown."""

    model_config = ConfigDict(coerce_numbers_to_str=True, protected_namespaces=())

    method: str = ""
    model: str | None = None
    concepts: list[str] | str = []
    seconds: float | None = None
    citation: str = ""
    platform: str = ""
    versions: dict[str, str] = {}


def _parse(path: Path, kind: TypeAdapter[T], default: T) -> T:
    if not path.exists():
        return default
    try:
        return kind.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {f'{where}: ' if where else ''}{first['msg']}") from None


# -- what the page shows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed without and with the edit."""

    name: str
    prompt: str
    note: str
    before: Picture
    after: Picture


@dataclass(frozen=True)
class Group:
    role: str
    pairs: list[Pair]
    total: int


@dataclass(frozen=True)
class Grid:
    title: str
    columns: list[str]
    rows: list[tuple[str, list[Picture]]]


@dataclass(frozen=True)
class Curve:
    name: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class Plot:
    """A figure that is also a file of its own."""

    file: str
    alt: str
    png: bytes

    @property
    def uri(self) -> str:
        return embedded(self.png, "png")


@dataclass(frozen=True)
class Cell:
    """One score as text; ``verdict`` says whether it is better or worse than the base's, by ``change``."""

    score: Score | None
    text: str = ""
    change: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Measure:
    """One row of the score table: a score under one protocol, in every column."""

    name: str
    protocol: str
    direction: str
    cells: dict[str, Cell]
    items: list[tuple[str, list[tuple[str, float]]]]

    @property
    def title(self) -> str:
        return meaning_of(self.name)[0]

    @property
    def meaning(self) -> str:
        return meaning_of(self.name)[1]

    @property
    def tone(self) -> str:
        """Whether it is about what goes or about what stays."""
        return "removed" if self.name.startswith(("UA", "FA")) else "kept"

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.protocol

    @property
    def n(self) -> str:
        counts = dict.fromkeys(str(cell.score.n) for cell in self.cells.values() if cell.score)
        return " / ".join(counts)


@dataclass(frozen=True)
class Page:
    """Everything of one run, ready to be shown."""

    name: str
    origin: Origin
    concepts: list[str]
    facts: list[str]
    groups: list[Group]
    grids: list[Grid]
    columns: list[str]
    edited: str
    measures: list[Measure]
    prompts: list[Prompt]
    gates: list[str]
    curves: list[Curve]
    constants: list[str]
    plots: list[Plot]
    config: str
    evaluate: str

    @property
    def verdict(self) -> list[Measure]:
        """The measures that stand at the head of the page."""
        told = [m for m in self.measures if self.edited in m.cells and m.cells[self.edited].score]
        names = {m.name for m in told}
        whole = {name.removesuffix(" retained") for name in names if name.endswith("@1 retained")}
        return [
            m for m in told if m.name in VERDICT or (m.name.endswith(("@1", "@1 retained")) and m.name not in whole)
        ] or told[:3]

    def mean_gate(self, role: str, edit: int) -> float | None:
        values = [p.gate[edit] for p in self.prompts if p.role == role and p.gate and edit < len(p.gate)]
        return sum(values) / len(values) if values else None


def read_page(run: RunDirectory) -> Page:
    """Read a run folder; only a folder that holds nothing of a run, or a file that is damaged, is an error."""
    parts = (run.config, run.environment, run.metrics, run.scores, run.before, run.after, run.folder / "panels.json")
    if not any(part.exists() for part in parts):
        raise DataError(f"{run.folder} holds nothing to report: is it a run's folder?")
    origin = _parse(run.environment, TypeAdapter(Origin), Origin())
    prompts = _parse(run.folder / "prompts.json", TypeAdapter(list[Prompt]), [])
    concepts = [origin.concepts] if isinstance(origin.concepts, str) else origin.concepts
    columns, measures = _measures(run)
    curves, constants = _curves(run)
    return Page(
        name=run.folder.resolve().name,
        origin=origin,
        concepts=concepts,
        facts=_facts(run, origin),
        groups=_groups(run, prompts),
        grids=_grids(run),
        columns=columns,
        edited="edited" if "edited" in columns else next((c for c in reversed(columns) if c != "base"), ""),
        measures=measures,
        prompts=prompts,
        gates=_gate_names(prompts, concepts),
        curves=curves,
        constants=constants,
        plots=_plots(run),
        config=run.config.read_text(encoding="utf-8", errors="replace") if run.config.exists() else "",
        evaluate=f"mu evaluate {shlex.quote(str(run.folder))}",
    )


def _gate_names(prompts: list[Prompt], concepts: list[str]) -> list[str]:
    """One name for each edit that has a gate."""
    edits = max((len(p.gate) for p in prompts if p.gate), default=0)
    if edits <= 1:
        return ["gate"] * edits
    if edits == len(concepts):
        return [f"gate: {concept}" for concept in concepts]
    return [f"gate {k + 1}" for k in range(edits)]


def _facts(run: RunDirectory, origin: Origin) -> list[str]:
    facts = [f"method {origin.method}"] if origin.method else []
    if origin.seconds is not None:
        facts.append(f"found in {_duration(origin.seconds)}")
    if run.edit.exists():
        facts.append(f"edit file of {_size(run.edit.stat().st_size)}")
    return facts


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if seconds < 60:
        return f"{short(seconds, 2)} s"
    if seconds < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{short(count, 3)} {unit}"
        count /= 1000
    return f"{short(count, 3)} GB"


# -- pictures ----------------------------------------------------------------------------------------------------------


def _groups(run: RunDirectory, prompts: list[Prompt]) -> list[Group]:
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
            pairs = [_pair(run, name, prompt, k) for _, name, prompt, k in _spread(found, PAIRS_KEPT)]
            groups.append(Group(role, pairs, len(found)))
    return groups


def _pair(run: RunDirectory, name: str, prompt: Prompt | None, k: str) -> Pair:
    text = prompt.prompt if prompt else name
    notes = []
    if prompt and prompt.seed is not None:
        notes.append(f"seed {prompt.seed}" + (f", picture {k}" if k != "0" else ""))
    if prompt and prompt.gate:
        notes.append("gate " + ", ".join(f"{g:.2f}" for g in prompt.gate))
    before, after = (picture(run.folder, f"{side}/{name}", f"{side} the edit: {text}") for side in ("before", "after"))
    return Pair(name, text, " · ".join(notes), before, after)


def _spread(items: list[T], count: int) -> list[T]:
    return items if len(items) <= count else [items[k * len(items) // count] for k in range(count)]


def _grids(run: RunDirectory) -> list[Grid]:
    grids = []
    for panel in _parse(run.folder / "panels.json", TypeAdapter(list[Panel]), []):
        rows = []
        for row in panel.rows:
            if len(row.images) != len(panel.columns):
                raise DataError(
                    f"panels.json: row {row.label!r} of {panel.title!r} has {len(row.images)} pictures for {len(panel.columns)} columns"
                )  # fmt: skip
            shots = []
            for column, name in zip(panel.columns, row.images, strict=True):
                alt = f"{column}: {row.label}"
                shots.append(picture(run.folder, name, alt) if name else Picture(alt))
            rows.append((row.label, shots))
        grids.append(Grid(panel.title, panel.columns, rows))
    return grids


# -- scores ------------------------------------------------------------------------------------------------------------


def _measures(run: RunDirectory) -> tuple[list[str], list[Measure]]:
    try:
        table = run.read_scores()
    except (TypeError, AttributeError):
        raise DataError(f"{run.scores} is not a table of scores: make it again with mu evaluate") from None
    found: dict[tuple[str, str], dict[str, Score]] = defaultdict(dict)
    for column, scores in table.items():
        for score in scores:
            found[score.name, score.protocol][column] = score
    return list(table), [_measure(name, protocol, scores, list(table)) for (name, protocol), scores in found.items()]


def _measure(name: str, protocol: str, scores: dict[str, Score], columns: list[str]) -> Measure:
    share = bool(meaning_of(name)[1]) and all(0 <= s.value <= 1 for s in scores.values())
    base = scores.get("base")
    cells = {column: _cell(scores.get(column), base if column != "base" else None, share) for column in columns}
    per_item = {item for score in scores.values() for item in score.per_item}
    values = [abs(v) for s in scores.values() for v in s.per_item.values() if math.isfinite(v)]
    full = 1.0 if share else max(values, default=0.0) or 1.0
    items = []
    for item in sorted(per_item):
        row = []
        for column in columns:
            value = scores[column].per_item.get(item) if column in scores else None
            length = min(abs(value) / full, 1.0) if value is not None and math.isfinite(value) else 0.0
            row.append(("" if value is None else value_text(value, share), 100 * length))
        items.append((item, row))
    return Measure(name, protocol, next(iter(scores.values())).direction, cells, items)


def value_text(value: float, share: bool) -> str:
    return f"{100 * value:.1f}%" if share and math.isfinite(value) else short(value, padded=True)


def _cell(score: Score | None, base: Score | None, share: bool) -> Cell:
    if score is None:
        return Cell(None)
    text = value_text(score.value, share)
    if base is None or not math.isfinite(score.value - base.value):
        return Cell(score, text)
    if text == value_text(base.value, share):
        return Cell(score, text, "no change", "same")
    difference = score.value - base.value
    amount = f"{100 * abs(difference):.1f} points" if share else short(abs(difference), 3)
    better = (difference > 0) == (score.direction == "higher")
    return Cell(score, text, ("+" if difference > 0 else "\N{MINUS SIGN}") + amount, "better" if better else "worse")


# -- curves ------------------------------------------------------------------------------------------------------------


def _curves(run: RunDirectory) -> tuple[list[Curve], list[str]]:
    try:
        rows = run.read_metrics()
    except ValueError:
        raise DataError(f"{run.metrics} is damaged: every line must be one JSON object") from None
    series: dict[str, list[Point]] = defaultdict(list)
    for number, row in enumerate(rows):
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                series[name].append((row.get("step", number), value))
    curves, constants = [], []
    for name, points in sorted(series.items(), key=lambda item: (item[0] != "loss", item[0] == "lr")):
        values = [value for _, value in points]
        if len(set(values)) == 1:
            constants.append(f"{name} {short(values[0])}")
            continue
        broken = sum(not math.isfinite(value) for value in values)
        note = f"{broken} of {len(values)} values are not finite" if broken else ""
        curves.append(Curve(name, line_chart(name, points), note))
    return curves, constants


def _plots(run: RunDirectory) -> list[Plot]:
    plots = []
    for path in sorted(run.folder.glob("slug_*.json")):
        search = _parse(path, TypeAdapter(LayerSearch | None), None)
        plots += [Plot(*figure) for figure in layer_figures(search, path.stem.removeprefix("slug_"))] if search else []
    return plots


# -- several runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One row per run; a column holds scores of one name and one protocol only."""

    keys: list[tuple[str, str]]
    directions: dict[tuple[str, str], str]
    rows: list[tuple[Page, dict[tuple[str, str], Cell]]]
    best: dict[tuple[str, str], float]
    grid: Grid | None

    @property
    def ambiguous(self) -> set[str]:
        """Names that stand over more than one column, so that the protocol must tell them apart."""
        names = [name for name, _ in self.keys]
        return {name for name in names if names.count(name) > 1}


def compare(pages: list[Page]) -> Comparison:
    """Put the edited columns of several runs side by side, and the pictures that all runs made of the same start."""
    rows = [(page, {m.key: m.cells[page.edited] for m in page.measures if page.edited in m.cells}) for page in pages]
    found: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for _, cells in rows:
        for key, cell in cells.items():
            if cell.score:
                found[key].append(cell.score)
    best = {
        key: (max if scores[0].direction == "higher" else min)(s.value for s in scores)
        for key, scores in found.items()
        if len({s.value for s in scores}) > 1
    }
    directions: dict[tuple[str, str], str] = {key: scores[0].direction for key, scores in found.items()}
    return Comparison(list(found), directions, rows, best, _shared_pictures(pages))


def _shared_pictures(pages: list[Page]) -> Grid | None:
    first, *others = ({(p.prompt, p.name, p.before.uri): p for group in page.groups for p in group.pairs} for page in pages)
    shared = [key for key, pair in first.items() if pair.before.uri and all(key in other for other in others)]
    shown = _spread(shared, 2 * PAIRS_SHOWN)
    rows = [(key[0], [first[key].before, *(pairs[key].after for pairs in (first, *others))]) for key in shown]
    return Grid("The same prompts and seeds", ["before", *(page.name for page in pages)], rows) if rows else None
