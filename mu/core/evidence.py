"""What a run's edit, images and scores are bound to, in ``evidence.json``, and whether they were changed since.

The run notes when, by which command, on which device and in which precision a result was made, of which base weights,
and SHA-256 digests of the files. `findings` compares the files with them. The digests are not signed: who can write
the folder can also write the digests. They show mistakes and swapped files, and a copy of ``evidence.json`` kept
elsewhere shows forgery.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from mu.core.files import sha256, write_json
from mu.core.records import read_record
from mu.core.run import RunDirectory, command, versions
from mu.core.scores import Table

FORMAT: Literal[1] = 1
INTACT, CHANGED, UNKNOWN = "intact", "changed", "unknown"


class Made(BaseModel):
    """How one result was made. ``how`` holds the suite's own facts, such as seeds, steps, guidance scale and judge."""

    when: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    """ISO 8601, UTC."""
    command: str = Field(default_factory=command)
    device: str = ""
    precision: str = ""
    base: str = ""
    """Fingerprint of the base model's weights."""
    versions: dict[str, str] = Field(default_factory=versions)
    how: dict[str, Any] = {}
    edit: str = ""
    """SHA-256 of the edit's file."""
    content: str = ""
    """SHA-256 of the settings or of the scores."""


class Evidence(BaseModel):
    """The content of ``evidence.json``."""

    format: Literal[1] = FORMAT
    found: Made | None = None
    """The search that found the edit; ``content`` is the digest of ``config.yaml``."""
    scores: dict[str, Made] = {}
    """The measurement of each suite; ``content`` is the digest of its scores."""
    images: dict[str, str] = {}
    """Digest of the images in each folder of the run."""


class Finding(NamedTuple):
    """One part of a run, and whether it is as it was when it was noted."""

    part: str
    state: str
    """``intact``, ``changed``, or ``unknown`` for a part that no evidence names."""
    text: str


def read_evidence(run: RunDirectory) -> Evidence:
    """The run's evidence; empty for a run made before evidence was kept. Raises `DataError` for a damaged file."""
    return read_record(run.evidence, Evidence) if run.evidence.exists() else Evidence()


def note_search(run: RunDirectory, **facts: Any) -> None:
    """Note that ``edit.safetensors`` was found just now with the run's ``config.yaml``."""
    made = Made(**facts, edit=sha256(run.edit), content=sha256(run.config))
    _write(run, Evidence(found=made, images=read_evidence(run).images))


def note_scores(run: RunDirectory, suite: str, **facts: Any) -> None:
    """Note that the scores of ``suite`` were measured just now on ``edit.safetensors``."""
    evidence = read_evidence(run)
    edit = sha256(run.edit) if run.edit.is_file() else ""
    evidence.scores[suite] = Made(**facts, edit=edit, content=digest(run.read_scores()[suite]))
    _write(run, evidence)


def note_images(run: RunDirectory) -> None:
    """Note the images that are in the run's folders now."""
    evidence = read_evidence(run)
    evidence.images = _image_digests(run)
    _write(run, evidence)


def findings(run: RunDirectory) -> list[Finding]:
    """Compare the run's edit, settings, scores and images with its evidence. Reads every file, but loads no model."""
    evidence, found = read_evidence(run), []
    edit = sha256(run.edit) if run.edit.is_file() else ""
    origin = evidence.found
    if run.edit.is_file():
        known = origin.edit if origin else ""
        found.append(_finding(run.edit.name, known, edit, f"found {_when(origin)}", "not the edit that this run found"))
    if run.config.is_file():
        known = origin.content if origin else ""
        found.append(
            _finding(run.config.name, known, sha256(run.config), "as in the search", "edited after the search")
        )
    tables = run.read_scores()
    for suite, table in tables.items():
        found.append(_scores_finding(suite, evidence.scores.get(suite), table, edit))
    for suite in evidence.scores.keys() - tables.keys():
        found.append(Finding(f"scores of {suite}", CHANGED, "were removed"))
    now = _image_digests(run)
    for folder in sorted(now.keys() | evidence.images.keys()):
        known = evidence.images.get(folder, "")
        state = "images were added, removed or replaced"
        found.append(_finding(f"{folder}/", known, now.get(folder, ""), "all images as they were made", state))
    return found


def digest(table: Table) -> str:
    """SHA-256 of a suite's scores, whatever the layout of their file."""
    content = {column: [score.to_json() for score in scores] for column, scores in table.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _scores_finding(suite: str, made: Made | None, table: Table, edit: str) -> Finding:
    part = f"scores of {suite}"
    if made is None:
        return Finding(part, UNKNOWN, "measured before evidence was kept: measure again with `mu evaluate`")
    if made.content != digest(table):
        return Finding(part, CHANGED, "edited after they were measured")
    if made.edit != edit:
        return Finding(part, CHANGED, "measured on another edit than edit.safetensors")
    return Finding(part, INTACT, f"measured {_when(made)} on this edit")


def _finding(part: str, known: str, now: str, intact: str, changed: str) -> Finding:
    if not known:
        return Finding(part, UNKNOWN, "not noted when it was made")
    return Finding(part, INTACT, intact) if known == now else Finding(part, CHANGED, changed)


def _when(made: Made | None) -> str:
    return f"{made.when} by `{made.command}`" if made else ""


def _image_digests(run: RunDirectory) -> dict[str, str]:
    """Digest of the names and contents of the PNG files in each folder of images that has any."""
    found = {}
    for folder in (run.before, run.after, run.panel_images, run.answers / "base", run.answers / "edited"):
        files = sorted(folder.rglob("*.png")) if folder.is_dir() and not folder.is_symlink() else []
        lines = "".join(f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
        if files:
            found[str(folder.relative_to(run.folder))] = hashlib.sha256(lines.encode()).hexdigest()
    return found


def _write(run: RunDirectory, evidence: Evidence) -> None:
    write_json(run.evidence, evidence.model_dump(exclude_none=True))


def hardware(model: Any) -> dict[str, str]:
    """``device`` and ``precision`` of a loaded model; empty without one."""
    if model is None:
        return {}
    import torch

    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    counts: Counter[Any] = Counter()
    for part in model.components.values():
        for parameter in part.parameters():
            counts[parameter.dtype] += parameter.numel()
    return {"device": f"{device} ({name})", "precision": str(counts.most_common(1)[0][0]).removeprefix("torch.")}
