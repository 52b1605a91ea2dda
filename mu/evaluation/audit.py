"""Run folders for what was made elsewhere: edits, banks and foreign checkpoints become evidence like a run of mu."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mu.core.concept import distinct
from mu.core.errors import ConfigError, DataError, OutputError, quoted, titled
from mu.core.evidence import note_search, read_evidence
from mu.core.files import is_left, sha256
from mu.core.lock import LOCK
from mu.core.run import RunDirectory
from mu.edits.bank import Bank
from mu.edits.bank_folder import BankFolder
from mu.edits.difference import difference
from mu.edits.edit import Edit, base_fingerprint
from mu.edits.files import open_edit
from mu.edits.places import edit_file
from mu.models.diffusion import DiffusionModel
from mu.models.formats.other_weights import place_of
from mu.models.parameters import EditableModel


def is_bank(place: Path) -> bool:
    """Whether ``place`` is a bank's folder."""
    return BankFolder(place).json.exists()


def subject(run: RunDirectory, model: EditableModel) -> Bank:
    """What a run folder measures: its edit, or the edits of its bank, as they were left. `run.require_edit` passed."""
    if run.bank.exists():
        return BankFolder(run.bank.parent).open(model)
    return Bank(model, [open_edit(run.edit)])


def check_erases(bank: Bank) -> None:
    """Raise `ConfigError` if no edit is on, or one at a strength that erases nothing."""
    if not bank.on:
        raise ConfigError("every edit is switched off, so there is nothing to measure: erase a concept again")
    for edit, strength in zip(bank.on, bank.strengths(None), strict=True):
        if strength <= 0:
            raise ConfigError(
                f"the edit of {quoted(edit.concept())} is on at strength {strength:g}, which erases nothing: set "
                "another with `mu bank erase --strength`, or restore the concept"
            )


def begin(
    out: Path,
    model: EditableModel,
    *,
    edits: Sequence[Path] = (),
    edited: str | None = None,
    concepts: Sequence[str] = (),
    overwrite: bool = False,
) -> RunDirectory:
    """The run folder ``out`` for ``edits`` (files, run folders or one bank) or the checkpoint ``edited`` of ``model``.

    ``concepts`` is what they erase, where their files do not say. The folder is continued if it was begun for the same
    base and the same files. Raises `ConfigError` if nothing says what is erased, `OutputError` if ``out`` holds
    something else, and what reading the files raises.
    """
    run = RunDirectory(out)
    if not run.config.exists() and run.folder.is_dir() and not all(map(_passing, run.folder.iterdir())):
        raise OutputError(f"{run.folder} holds something else than a run: choose a new folder")
    banks = [place for place in edits if is_bank(place)]
    if banks and len(edits) > 1:
        raise ConfigError(f"{banks[0]} is a bank: measure it alone, or name its edits' files")
    with run.alone():
        _fill(run, model, edits, banks, edited, concepts, overwrite)
    return run


def _passing(path: Path) -> bool:
    """Whether ``path`` is the lock, or a partial file, of a process that works or was killed."""
    return path.name == LOCK or is_left(path)


def _fill(
    run: RunDirectory, model: EditableModel, edits: Sequence[Path], banks: Sequence[Path], edited: str | None,
    concepts: Sequence[str], overwrite: bool,
) -> None:  # fmt: skip
    """`begin`, in a folder where no other process works."""
    whole = {} if edited is None else {edited: _digest_of(place_of(edited))}
    digests = {str(place): sha256(BankFolder(place).json if place in banks else edit_file(place)) for place in edits}
    settings = {"model": model.name, "edits": digests, "edited": whole, "concepts": list(map(str, distinct(concepts)))}
    config = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if run.config.exists() and not overwrite:
        run.begin(config, run.read_environment(), resume=True)  # refuses other settings
        if read_evidence(run).found:
            return
        for left in run.made_in(run.bank.parent):  # a killed process wrote a part of the edits
            left.unlink()
    found = _opened(model, edits, edited, concepts)
    check_erases(found)
    if concepts and not edited and not any(set(distinct(concepts)) <= set(e.info.concepts) for e in found.on):
        raise ConfigError("the edits' files say what they erase: leave --concept out")
    named = list(dict.fromkeys(concept for edit in found.on for concept in edit.info.concepts))
    if not named:
        raise ConfigError("nothing says what was erased: name it with --concept")
    method = ", ".join(dict.fromkeys(edit.info.method for edit in found.on))
    description: dict[str, Any] = {"method": method, "model": model.name, "concepts": named}
    run.begin(config, description, resume=run.config.exists() and not overwrite, overwrite=overwrite)
    if len(found.edits) == 1 and not banks:
        found.on[0].save(run.edit)
    else:
        _keep(run, found)
    note_search(run, base=base_fingerprint(model))
    run.finish()


def _digest_of(place: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a folder's files."""
    if place.is_file():
        return sha256(place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    told = "".join(f"{path.relative_to(place).as_posix()} {sha256(path)}\n" for path in files)
    return hashlib.sha256(told.encode()).hexdigest()


def _opened(model: EditableModel, edits: Sequence[Path], edited: str | None, concepts: Sequence[str]) -> Bank:
    if edited is not None:
        if not isinstance(model, DiffusionModel):
            raise DataError(
                f"{titled(model.name)} is no diffusion model, and only such a model's checkpoint is compared"
            )
        return Bank(model, [difference(model, edited, concepts=concepts, show=True)])
    if len(edits) == 1 and is_bank(edits[0]):
        return BankFolder(edits[0]).open(model)
    return Bank(model, [_named(open_edit(place), concepts) for place in edits])


def _named(edit: Edit, concepts: Sequence[str]) -> Edit:
    """``edit``, with ``concepts`` if its file names none."""
    if concepts and not edit.info.concepts:
        edit.info = replace(edit.info, concepts=tuple(distinct(concepts)))
    return edit


def _keep(run: RunDirectory, found: Bank) -> None:
    """Copy the edits into the run's own bank, with their strengths and which are on."""
    bank = BankFolder(run.bank.parent)
    for edit in found.edits.values():
        bank.add(found.model, edit, strength=found.strength[edit.concept()], reason="measured together", transfer=True)
    if found.restored:
        bank.restore(*found.restored, reason="as in the bank that is measured")
