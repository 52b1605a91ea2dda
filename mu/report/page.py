"""All data of one run's page. A missing part is left out, or the page says how to make it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mu.core.config import LARGEST_SETTINGS
from mu.core.errors import DataError
from mu.core.evidence import CHANGED, Evidence, Finding, Made, findings, read_evidence
from mu.core.files import read_text
from mu.core.manifest import commands
from mu.core.records import Origin, Prompt, read_record
from mu.core.run import RunDirectory
from mu.report.curves import Curve, logged
from mu.report.figures import short
from mu.report.images import Grid, Group, grids, judged, paired
from mu.report.layer_figures import LayerFigure, LayerSearch, layer_figures
from mu.report.measures import Measure, SuiteScores, measured
from mu.report.search_figures import SearchRecord, SearchShown
from mu.report.verdict import ERASED, Losses, Verdict, losses, unmeasured, verdict

HASH = re.compile(r"[0-9a-f]{16,64}")
"""A fingerprint or SHA-256 among the facts of a measurement."""


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
    verdict: Verdict
    groups: list[Group]
    judged: list[Group]
    grids: list[Grid]
    suites: list[SuiteScores]
    prompts: list[Prompt]
    gates: list[str]
    curves: list[Curve]
    constants: list[str]
    plots: list[LayerFigure]
    searches: list[SearchShown]
    config: str
    evaluate: str

    @property
    def measures(self) -> list[Measure]:
        """The measures of all suites."""
        return [measure for suite in self.suites for measure in suite.measures]

    @property
    def head(self) -> list[Measure]:
        """The measures at the head of the page. A task's ``@1 retained`` replaces its whole ``@1``."""
        return [measure for suite in self.suites for measure in self._head(suite.measures)]

    @property
    def erased(self) -> bool:
        """Whether the scores show that the concepts are gone."""
        return self.verdict.state == ERASED

    @property
    def title(self) -> str:
        if not self.concepts:
            return self.name
        names = ", ".join(self.concepts)
        if self.erased:
            return f"{names} erased"
        return f"edit for {names}" if self.suites else f"edit for {names}, not measured yet"

    @property
    def losses(self) -> Losses:
        return losses(self.suites)

    @property
    def unmeasured(self) -> list[str]:
        return unmeasured(self.verdict, self.suites, {name: made.how for name, made in self.evidence.scores.items()})

    @property
    def asked(self) -> list[tuple[str, str]]:
        """What was asked: names and texts."""
        told = [
            ("concept" if len(self.concepts) == 1 else "concepts", ", ".join(self.concepts)),
            ("method", self.origin.method),
            ("base model", self.origin.model or ""),
        ]
        return [(name, text) for name, text in told if text]

    @property
    def commands(self) -> list[str]:
        """The commands that make the run again."""
        return commands(self.evidence)

    @property
    def hashes(self) -> list[tuple[str, str]]:
        """SHA-256 or fingerprints of the edit, the base, the judges and the prompts, each named."""
        found = self.evidence.found
        told = [("edit", found.edit), ("base", found.base)] if found else []
        for suite, made in self.evidence.scores.items():
            told += [(f"edit, when suite {suite} measured it", made.edit), (f"base of suite {suite}", made.base)]
            told += [(f"{name}, suite {suite}", digest) for name, digest in _hashes(made.how)]
        told += [(name, digest) for name, digest in self.evidence.files.items() if name.endswith("prompts.json")]
        first: dict[str, str] = {}
        for name, digest in told:
            if digest:
                first.setdefault(digest, name)
        return [(name, digest) for digest, name in first.items()]

    @property
    def made(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """How the edit and each suite's scores were made, as names and texts."""
        found = [("How the edit was found", self.evidence.found)] if self.evidence.found else []
        every = [*found, *((f"How suite {name} measured", made) for name, made in self.evidence.scores.items())]
        return [(title, _lines(made)) for title, made in every]

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
    return [(names.get(name, name), _plain(value)) for name, value in facts.items() if value not in ("", None, [])]


def _plain(value: Any) -> str:
    """A fact of the evidence as a reader takes it."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_plain(each)}" for name, each in value.items()) or "none"
    return ", ".join(_plain(each) for each in value) or "none" if isinstance(value, list) else str(value)


def _hashes(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The hashes among ``facts``, with their names there. A hash of weights is of the judge beside it."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from ((f"{key}, {name}", digest) for name, digest in _hashes(value))
        elif isinstance(value, str) and HASH.fullmatch(value):
            yield f"{facts.get('judge', 'judge')}, {key}" if key == "weights" else key, value


def read_page(run: RunDirectory) -> Page:
    """Read a run folder. Raises `DataError` for a folder without any file of a run, and for a damaged file."""
    parts = (run.config, run.environment, run.metrics, run.scores, run.before, run.after, run.panels)
    if not any(part.exists() for part in parts):
        raise DataError(f"{run.folder} holds nothing to report: give a run folder")
    origin, prompts = run.origin(), run.read_prompts()
    concepts = origin.concept_names()
    curves, constants = logged(run)
    evidence, suites = read_evidence(run), measured(run)
    return Page(
        name=run.folder.resolve().name,
        origin=origin,
        evidence=evidence,
        changed=[finding for finding in findings(run) if finding.state == CHANGED],
        concepts=concepts,
        facts=_facts(run, origin, evidence.found),
        verdict=verdict(concepts, suites),
        groups=paired(run, prompts),
        judged=judged(run, concepts),
        grids=grids(run),
        suites=suites,
        prompts=prompts,
        gates=_gate_names(prompts, concepts),
        curves=curves,
        constants=constants,
        plots=_plots(run),
        searches=_searches(run),
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
    facts = []
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


def _searches(run: RunDirectory) -> list[SearchShown]:
    if not run.calibration.exists():
        return []
    records = read_record(run.calibration, dict[str, SearchRecord])
    return [SearchShown(concept, record) for concept, record in records.items()]
