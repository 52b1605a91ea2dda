"""``manifest.json``: the list by which a run is filed as evidence. It is written with the run's report.

It states the verdict, the commands and the versions, and the SHA-256 of each file that they rest on. It is not signed:
a copy kept elsewhere shows whether the run is still the one that was filed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from mu.core.errors import DataError, OutputError
from mu.core.evidence import CHANGED, INTACT, Evidence, Finding, read_evidence
from mu.core.files import is_inside, sha256, write_json
from mu.core.records import PathInRun, checked, read_record
from mu.core.run import RunDirectory, versions

KIND: Literal["mu manifest"] = "mu manifest"
FORMAT: Literal[1] = 1
NAMED = 3
"""Files that a finding names; of more it gives the number."""


class Manifest(BaseModel):
    """The content of ``manifest.json``."""

    kind: Literal["mu manifest"] = KIND
    format: Literal[1] = FORMAT
    when: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    """ISO 8601, UTC."""
    concepts: list[str] = []
    method: str = ""
    model: str = ""
    verdict: list[str] = []
    """The sentences at the head of the report."""
    changed: list[str] = []
    """Parts that were changed after they were made, when the manifest was written."""
    commands: list[str] = []
    """The commands that found the edit and measured it, in their order."""
    versions: dict[str, str] = Field(default_factory=versions)
    """Of the libraries that wrote the report; ``evidence.json`` has those of the search and the measurements."""
    files: dict[PathInRun, str] = {}
    """SHA-256 by path in the run's folder."""


def check_manifest(run: RunDirectory) -> None:
    """Raise `OutputError` if the place of the manifest holds a file that is none: it would be lost."""
    if not (run.manifest.exists() or run.manifest.is_symlink()):
        return
    try:
        read_manifest(run.manifest)
    except DataError:
        raise OutputError(f"{run.manifest} is not a manifest of mu: move it, since the report writes one") from None


def write_manifest(run: RunDirectory, verdict: Sequence[str], changed: Sequence[Finding]) -> None:
    """Write the manifest of the run as it is now, with the report's ``verdict``."""
    evidence, origin = read_evidence(run), run.origin()
    made = Manifest(
        concepts=origin.concept_names(), method=origin.method, model=origin.model or "", verdict=list(verdict),
        changed=[f"{finding.part}: {finding.text}" for finding in changed], commands=commands(evidence),
        files={path.relative_to(run.folder).as_posix(): sha256(path) for path in _filed(run, evidence)},
    )  # fmt: skip
    write_json(run.manifest, made.model_dump())


def read_manifest(path: Path) -> Manifest:
    """Raises `DataError` for a file that is no manifest, or is of a newer format."""
    content = read_record(path, dict[str, Any])
    if content.get("kind") != KIND:
        raise DataError(f"{path} is not a manifest of mu: name the manifest.json of a run")
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise DataError(f"{path} has format {content['format']}, and this mu reads {FORMAT}: upgrade mu")
    found: Manifest = checked(path, content, Manifest)
    return found


def manifest_finding(run: RunDirectory, path: Path | None = None) -> Finding | None:
    """Compare the run's files with the manifest at ``path``, by default its own; None if it has none."""
    if path is None and not run.manifest.exists():
        return None
    filed = read_manifest(path or run.manifest)
    others = [name for name, digest in filed.files.items() if _digest(run.folder / name) != digest]
    part = str(path or run.manifest.name)
    if not others:
        return Finding(part, INTACT, f"{len(filed.files)} files as filed {filed.when}")
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return Finding(part, CHANGED, f"not as filed {filed.when}: {', '.join(others[:NAMED])}{more}")


def is_gone(run: RunDirectory, path: Path) -> bool:
    """Whether the run's manifest lists ``path``, a file of the run that is no longer there."""
    listed = run.manifest.exists() and path.relative_to(run.folder).as_posix() in read_manifest(run.manifest).files
    return listed and not path.exists()


def commands(evidence: Evidence) -> list[str]:
    """The commands that found the edit and measured it, each once."""
    made = [*([evidence.found] if evidence.found else []), *evidence.scores.values()]
    return list(dict.fromkeys(each.command for each in made if each.command))


def _filed(run: RunDirectory, evidence: Evidence) -> list[Path]:
    """The files that the report rests on, and the report."""
    bank = run.made_in(run.bank.parent)
    parts = (
        run.config,
        run.environment,
        run.edit,
        *bank,
        run.metrics,
        run.scores,
        run.evidence,
        run.prompts,
        run.panels,
    )
    images = [f"{folder}/{name}" for folder, names in evidence.images.items() for name in names]
    noted = [run.folder / name for name in (*evidence.files, *images) if is_inside(run.folder, name)]
    every = dict.fromkeys((*parts, run.similarity, *run.layer_searches(), *noted, *run.reports()))
    return [path for path in every if path.is_file()]


def _digest(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else ""
    except OSError:  # a name that no file can have
        return ""
