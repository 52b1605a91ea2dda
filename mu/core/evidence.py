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
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from mu.core.errors import DataError
from mu.core.files import sha256, write_json
from mu.core.records import PathInRun, checked, read_record
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
    environment: str = ""
    """SHA-256 of ``environment.json``; empty for scores."""


class LogNoted(BaseModel):
    """The beginning of ``log.txt`` that was there when evidence was written last; later lines are added to it."""

    size: Annotated[int, Field(gt=0)]
    """Bytes."""
    sha256: str


class Evidence(BaseModel):
    """The content of ``evidence.json``."""

    format: Literal[1] = FORMAT
    found: Made | None = None
    """The search that found the edit; ``content`` is the digest of ``config.yaml``."""
    scores: dict[str, Made] = {}
    """The measurement of each suite; ``content`` is the digest of its scores."""
    files: dict[PathInRun, str] = {}
    """SHA-256 of the files that say what the images show."""
    images: dict[PathInRun, dict[str, str]] = {}
    """SHA-256 of each image, by folder."""
    edits: dict[PathInRun, str] = {}
    """SHA-256 of the edit's file when a folder of images was made."""
    log: LogNoted | None = None


class Finding(NamedTuple):
    """One part of a run, and whether it is as it was when it was noted."""

    part: str
    state: str
    """``intact``, ``changed``, or ``unknown`` for a part that no evidence names."""
    text: str


def read_evidence(run: RunDirectory) -> Evidence:
    """The run's evidence; empty for a run made before evidence was kept. Raises `DataError` for a damaged file."""
    if not run.evidence.exists():
        return Evidence()
    content = read_record(run.evidence, dict[str, Any])
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise DataError(f"{run.evidence} has format {content['format']}, and this mu reads {FORMAT}: upgrade mu")
    found: Evidence = checked(run.evidence, content, Evidence)
    return found


def note_search(run: RunDirectory, **facts: Any) -> None:
    """Note that ``edit.safetensors`` was found just now with the run's ``config.yaml``."""
    about = _about(run)
    files = {"edit": run.edit_digest(), "content": sha256(run.config), "environment": sha256(run.environment)}
    _write(run, Evidence(found=Made(**facts, how=about, **files)))
    note_files(run, run.metrics, *run.layer_searches())


def describe(run: RunDirectory, facts: dict[str, Any]) -> None:
    """Add ``facts`` to the ``environment.json`` of a finished run, and note that this is how it is now.

    An ``environment.json`` that was edited before stays changed.
    """
    evidence = read_evidence(run)
    intact = evidence.found is not None and evidence.found.environment == sha256(run.environment)
    run.describe(facts)
    if evidence.found is not None and intact:
        evidence.found.environment = sha256(run.environment)
        _write(run, evidence)


def note_scores(run: RunDirectory, suite: str, **facts: Any) -> None:
    """Note that the scores of ``suite`` were measured just now on ``edit.safetensors``."""
    evidence = read_evidence(run)
    edit = run.edit_digest()
    evidence.scores[suite] = Made(**facts, edit=edit, content=digest(run.read_scores()[suite]))
    _write(run, evidence)


def note_files(run: RunDirectory, *places: Path) -> None:
    """Note files and folders of images of the run that were made just now."""
    evidence = read_evidence(run)
    for place in places:
        name = _name(run, place)
        evidence.files.pop(name, None)
        evidence.images.pop(name, None)
        if place.is_file():
            evidence.files[name] = sha256(place)
        elif place.is_dir() and (images := _images(place)):
            evidence.images[name] = images
            evidence.edits[name] = run.edit_digest()
    _write(run, evidence)


def changed_panels(run: RunDirectory) -> dict[str, tuple[str, str]]:
    """The panels' images and their list that are not as they were noted: by name, the digest then ("" if none was
    noted) and now ("" if it is gone). Empty for a run whose panels were never noted."""
    evidence = read_evidence(run)
    home = _name(run, run.panel_images)
    images = {f"{home}/{name}": content for name, content in evidence.images.get(home, {}).items()}
    listed = {name: content for name, content in evidence.files.items() if name == run.panels.name}
    if not (known := images | listed):
        return {}
    now = {f"{home}/{name}": content for name, content in _images(run.panel_images).items()}
    now |= {run.panels.name: sha256(run.panels)} if run.panels.is_file() else {}
    names = dict.fromkeys([*known, *now])
    return {name: pair for name in names if (pair := (known.get(name, ""), now.get(name, "")))[0] != pair[1]}


def note_panels(run: RunDirectory, changed: dict[str, tuple[str, str]]) -> None:
    """Note the panels. What `changed_panels` found before the work, and the work did not make again, stays changed."""
    note_files(run, run.panel_images, run.panels)
    evidence = read_evidence(run)
    home = _name(run, run.panel_images)
    for name, (known, then) in changed.items():
        table = evidence.files if name == run.panels.name else evidence.images.get(home, {})
        key = name if table is evidence.files else name.removeprefix(f"{home}/")
        remade = table.get(key, "") != then and (table is not evidence.files or not then)
        if not remade and known:
            table[key] = known
        elif not remade:
            table.pop(key, None)
    _write(run, evidence)


def changed_images(run: RunDirectory, folder: Path) -> list[Path]:
    """The images of ``folder`` that are not as they were noted. Images that were never noted are not in the list."""
    known = read_evidence(run).images.get(_name(run, folder), {})
    now = _images(folder) if known and folder.is_dir() else {}
    return [folder / name for name, content in now.items() if known.get(name, content) != content]


def findings(run: RunDirectory) -> list[Finding]:
    """Compare the run's edit, settings, scores and images with its evidence. Reads every file, but loads no model."""
    evidence, found = read_evidence(run), []
    origin = evidence.found
    edit = run.edit_digest()
    config = sha256(run.config) if run.config.is_file() else ""
    if edit or origin:
        known, name = origin.edit if origin else "", run.bank.name if run.bank.is_file() else run.edit.name
        found.append(_finding(name, known, edit, f"found {_when(origin)}", "not the edit that this run found"))
    if config or origin:
        known = origin.content if origin else ""
        found.append(_finding(run.config.name, known, config, "as in the search", "edited after the search"))
    if origin:
        found.append(_environment_finding(run, origin))
    if evidence.log:
        now = _beginning(run.log, evidence.log.size)
        found.append(_finding(run.log.name, evidence.log.sha256, now, "begins as it was written", "edited afterwards"))
    tables = run.read_scores()
    found += [_scores_finding(suite, evidence.scores.get(suite), table, edit) for suite, table in tables.items()]
    found += [Finding(f"scores of {name}", CHANGED, "removed") for name in evidence.scores if name not in tables]
    shown = (run.metrics, *run.layer_searches(), run.prompts, run.panels, run.similarity)
    for name in dict.fromkeys((*(file.name for file in shown), *evidence.files)):
        file, known = run.folder / name, evidence.files.get(name, "")
        if known or file.is_file():
            now = sha256(file) if file.is_file() else ""
            found.append(_finding(name, known, now, "as it was made", "edited after it was made"))
    noted = (run.folder / name for name in evidence.images)
    places = dict.fromkeys((run.before, run.after, run.panel_images, *run.answer_folders(), *noted))
    return found + [finding for place in places if (finding := _images_finding(run, place, evidence))]


def digest(table: Table) -> str:
    """SHA-256 of a suite's scores, whatever the layout of their file."""
    content = {column: [score.to_json() for score in scores] for column, scores in table.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _environment_finding(run: RunDirectory, origin: Made) -> Finding:
    """Runs made before ``environment.json`` was noted as a whole have only what the report calls them by."""
    part = run.environment.name
    if not run.environment.is_file():
        return Finding(part, CHANGED, "removed")
    if origin.how != _about(run):
        return Finding(part, CHANGED, "names another method, model or concept than the search")
    if origin.environment and origin.environment != sha256(run.environment):
        return Finding(part, CHANGED, "edited after the search")
    return Finding(part, INTACT, "as in the search")


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
    if not now:
        return Finding(part, CHANGED, "removed")
    return Finding(part, INTACT, intact) if known == now else Finding(part, CHANGED, changed)


def _images_finding(run: RunDirectory, folder: Path, evidence: Evidence) -> Finding | None:
    """Of the images that a suite judges, others than the noted ones are none of its business."""
    part = f"{_name(run, folder)}/"
    known = evidence.images.get(_name(run, folder), {})
    now = _images(folder) if folder.is_dir() else {}
    if not known:
        return Finding(part, UNKNOWN, "not noted when they were made") if now else None
    replaced = sum(now.get(name, content) != content for name, content in known.items())
    removed = sum(name not in now for name in known)
    judged = run.answers in folder.parents
    added = 0 if judged else sum(name not in known for name in now)
    made_with = evidence.edits.get(_name(run, folder), "")
    with_edit = folder == run.after or (judged and folder.name == "edited")
    if with_edit and (edit := run.edit_digest()) and made_with != edit:
        return Finding(part, CHANGED, "images: made with another edit than edit.safetensors")
    counts = {"replaced": replaced, "removed": removed, "added": added}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return Finding(part, CHANGED, f"images: {told}") if told else Finding(part, INTACT, f"{len(known)} images as made")


def _about(run: RunDirectory) -> dict[str, Any]:
    """What the report calls the run by."""
    origin = run.origin()
    return {"method": origin.method, "model": origin.model or "", "concepts": origin.concept_names()}


def _name(run: RunDirectory, place: Path) -> str:
    return place.relative_to(run.folder).as_posix()


def _when(made: Made | None) -> str:
    return f"{made.when} by `{made.command}`" if made else ""


def _images(folder: Path) -> dict[str, str]:
    """Digests of the PNG and JPEG files in ``folder`` and below, by relative path."""
    found = sorted([*folder.rglob("*.png"), *folder.rglob("*.jpg")])
    return {file.relative_to(folder).as_posix(): sha256(file) if file.is_file() else "not a file" for file in found}


def _beginning(file: Path, size: int) -> str:
    """SHA-256 of the first ``size`` bytes of ``file``, or of all that it has; "" without a file."""
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.sha256(opened.read(min(size, file.stat().st_size))).hexdigest()


def _write(run: RunDirectory, evidence: Evidence) -> None:
    """Note the log as it is, unless it was edited since it was noted last, and write ``evidence``.

    Also deletes the manifest: it was of the run as it was, and the next report writes it again.
    """
    known = evidence.log
    intact = known is None or _beginning(run.log, known.size) == known.sha256
    if intact and run.log.is_file() and (size := run.log.stat().st_size):
        evidence.log = LogNoted(size=size, sha256=_beginning(run.log, size))
    run.manifest.unlink(missing_ok=True)
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
