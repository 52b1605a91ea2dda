"""All data of one run's page. A missing part is left out, or the page says how to make it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from mu.core.config import LARGEST_SETTINGS
from mu.core.errors import DataError
from mu.core.evidence import CHANGED, Evidence, Finding, Made, findings, read_evidence
from mu.core.files import read_text
from mu.core.records import Origin, Prompt, read_record
from mu.core.run import RunDirectory
from mu.core.scores import BASE, LOWER
from mu.report.curves import Curve, logged
from mu.report.figures import short
from mu.report.images import Grid, Group, grids, paired
from mu.report.layer_figures import LayerFigure, LayerSearch, layer_figures
from mu.report.measures import Cell, Measure, SuiteScores, measured


@dataclass(frozen=True)
class Page:
    """The content of a run folder."""

    name: str
    origin: Origin
    evidence: Evidence
    changed: list[Finding]
    """Parts of the run that were changed after they were made."""
    concepts: list[str]
    facts: list[str]
    groups: list[Group]
    grids: list[Grid]
    suites: list[SuiteScores]
    prompts: list[Prompt]
    gates: list[str]
    curves: list[Curve]
    constants: list[str]
    plots: list[LayerFigure]
    config: str
    evaluate: str

    @property
    def measures(self) -> list[Measure]:
        """The measures of all suites."""
        return [measure for suite in self.suites for measure in suite.measures]

    @property
    def verdict(self) -> list[Measure]:
        """The measures at the head of the page. A task's ``@1 retained`` replaces its whole ``@1``."""
        return [measure for suite in self.suites for measure in self._head(suite.measures)]

    @property
    def made(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """How the edit and each suite's scores were made, as names and texts."""
        found = [("How the edit was found", self.evidence.found)] if self.evidence.found else []
        every = [*found, *((f"How suite {name} measured", made) for name, made in self.evidence.scores.items())]
        return [(title, _lines(made)) for title, made in every]

    @property
    def erasing(self) -> list[Measure]:
        """The head measures of what was erased, with the base model's value: shares of images that show it or not."""
        return [m for m in self.verdict if m.metric.about == "gone" and m.metric.head and m.share and m.base]

    @property
    def erased(self) -> bool:
        """Whether it was measured that most images which showed the concept no longer do."""
        edited = [(m, c) for m in self.erasing for name, c in m.cells.items() if name != BASE and c.score]
        return bool(edited) and not self.unseen and all(shown(measure, cell) < 0.5 for measure, cell in edited)

    @property
    def status(self) -> str:
        """What the title cannot claim; empty if it was measured that the concepts are erased."""
        if self.erased or not self.concepts:
            return ""
        if not self.measures:
            return "Not measured yet."
        if self.unseen:
            base = ", ".join(f"{100 * shown(m, m.base):.1f}%" for m in self.unseen)
            return f"The base model shows it in only {base} of the images that ask for it: this cannot show an erasure."
        return "Most images that ask for it still show it." if self.erasing else "No score measures what was erased."

    @property
    def unseen(self) -> list[Measure]:
        """Measures that say nothing, because the base model shows the concept in fewer than half of its images."""
        return [measure for measure in self.erasing if shown(measure, measure.base) < 0.5]

    @staticmethod
    def _head(measures: list[Measure]) -> list[Measure]:
        told = [m for m in measures if m.edited]
        names = {m.name for m in told}
        whole = {name.removesuffix(" retained") for name in names if name.endswith("@1 retained")}
        return [m for m in told if m.metric.head and m.name not in whole] or told[:3]

    def mean_gate(self, role: str, edit: int) -> float | None:
        values = [p.gate[edit] for p in self.prompts if p.role == role and p.gate and edit < len(p.gate)]
        return sum(values) / len(values) if values else None


def _lines(made: Made) -> list[tuple[str, str]]:
    facts = {**made.model_dump(exclude={"how", "versions"}), **made.how}
    names = {"edit": "SHA-256 of the edit", "base": "fingerprint of the base", "content": "SHA-256 of the result"}
    return [(names.get(name, name), str(value)) for name, value in facts.items() if value not in ("", None)]


def shown(measure: Measure, cell: Cell | None) -> float:
    """Share of images that show the concept: 1 - UA, or FA."""
    assert cell and cell.score
    return cell.score.value if measure.direction == LOWER else 1 - cell.score.value


def read_page(run: RunDirectory) -> Page:
    """Read a run folder. Raises `DataError` for a folder without any file of a run, and for a damaged file."""
    parts = (run.config, run.environment, run.metrics, run.scores, run.before, run.after, run.panels)
    if not any(part.exists() for part in parts):
        raise DataError(f"{run.folder} holds nothing to report: give a run folder")
    origin, prompts = run.origin(), run.read_prompts()
    concepts = origin.concept_names()
    curves, constants = logged(run)
    evidence = read_evidence(run)
    return Page(
        name=run.folder.resolve().name,
        origin=origin,
        evidence=evidence,
        changed=[finding for finding in findings(run) if finding.state == CHANGED],
        concepts=concepts,
        facts=_facts(run, origin, evidence.found),
        groups=paired(run, prompts),
        grids=grids(run),
        suites=measured(run),
        prompts=prompts,
        gates=_gate_names(prompts, concepts),
        curves=curves,
        constants=constants,
        plots=_plots(run),
        config=read_text(run.config, largest=LARGEST_SETTINGS) if run.config.exists() else "",
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


def _facts(run: RunDirectory, origin: Origin, made: Made | None) -> list[str]:
    facts = [f"method {origin.method}"] if origin.method else []
    if origin.seconds is not None:
        facts.append(f"found in {_duration(origin.seconds)}")
    if run.edit.is_file():
        facts.append(f"edit file of {_size(run.edit.stat().st_size)}")
    if made:
        facts += [made.when[:10], f"SHA-256 {made.edit[:12]}"]
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


def _plots(run: RunDirectory) -> list[LayerFigure]:
    return [
        figure
        for path in run.layer_searches()
        for figure in layer_figures(read_record(path, LayerSearch), path.stem.removeprefix("slug_"))
    ]
