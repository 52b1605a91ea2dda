"""A bank on disk: a folder of edits of one model, which of them are on, and a log of every change.

    <folder>/  bank.json  log.jsonl  <concept>.safetensors ...

Without a lock, a change is written in an order that a killed process cannot spoil: first the edit's file, then a line of the
log, then ``bank.json``, which alone says what is in the bank. So the log may tell of a change that was cut off, and never
misses one. Importing this module loads no torch: what is on is told and changed at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from mu.core.concept import folded
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, EditError, OutputError, nearest
from mu.core.files import check_writing, slug, write_json, writing
from mu.core.run import versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mu.edits.bank import Bank
    from mu.edits.edit import Edit
    from mu.edits.protection import Leak
    from mu.models.parameters import EditableModel

FORMAT = 1

log = logging.getLogger("mu")


class BankEntry(BaseConfig):
    """One edit of the bank."""

    concept: str
    file: str
    sha256: str
    on: bool = True
    strength: float = Field(1.0, allow_inf_nan=False)

    @field_validator("file")
    @classmethod
    def _in_the_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise ValueError(f"{name!r} is not the name of a .safetensors file in the bank's own folder")
        return name


class BankState(BaseConfig):
    """What ``bank.json`` holds. The order of the edits is that in which they are added up."""

    format: int = FORMAT
    base: str
    fingerprint: str
    loading: dict[str, Any] = {}
    edits: list[BankEntry] = []

    def find(self, concept: str) -> BankEntry | None:
        """The edit of ``concept``, in that spelling, else in any."""
        spelt = [entry for entry in self.edits if entry.concept == concept]
        return next(iter(spelt or [entry for entry in self.edits if folded(entry.concept) == folded(concept)]), None)

    def entry(self, concept: str) -> BankEntry:
        if (found := self.find(concept)) is not None:
            return found
        raise EditError(f"{concept!r} is not in the bank.{nearest(concept, [entry.concept for entry in self.edits])}")


class BankFolder:
    """The bank in ``folder``, which need not exist yet. Nothing is kept in memory: each call reads what is there.

    Every method that changes something takes a ``reason`` for the log, and does all of its work or none.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.json = self.folder / "bank.json"
        self.log = self.folder / "log.jsonl"

    def read(self) -> BankState:
        """Raises `EditError` for a folder that holds no bank, and for a ``bank.json`` that is damaged."""
        try:
            content = json.loads(self.json.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ConfigError("not keys and values")
            if isinstance(content.get("format"), int) and content["format"] > FORMAT:
                raise EditError(f"{self.json} has format {content['format']}, newer than this mu knows ({FORMAT}): upgrade mu")
            state = BankState.parse(content)
        except (FileNotFoundError, NotADirectoryError):
            raise EditError(
                f"{self.folder} holds no bank.json: name a bank's folder, or make one with `mu bank add EDIT`"
            ) from None
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise EditError(
                f"{self.json} is damaged ({error}): put a good copy back, {self.log.name} tells what was on"
            ) from None
        for what in ("concept", "file"):
            names = [getattr(entry, what) for entry in state.edits]
            if twice := {name for name in names if names.count(name) > 1}:
                raise EditError(f"{self.json} is damaged (the {what} {min(twice)!r} is there twice): put a good copy back")
        return state

    def refuse(self, concepts: Iterable[str]) -> None:
        """`EditError` where one of ``concepts`` cannot be added: for who asks before a long search."""
        state = None
        if self.json.exists():
            state = self.read()
        else:
            self._check_claimable()
        for concept in concepts:
            if state and (old := state.find(concept)):
                raise EditError(f"{old.concept!r} is in the bank {self.folder} already: remove the old edit first")
        check_writing(self.json)

    def _check_claimable(self) -> None:
        if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise EditError(f"{self.folder} exists and is no bank (it has no bank.json): choose a new or empty folder")

    # -- with the model -------------------------------------------------------------------------------------------------

    def open(self, model: EditableModel, only: Sequence[str] | None = None) -> Bank:
        """The bank in memory, as it was left; ``only`` names the concepts that are on instead.

        Raises `EditError` for a file that is missing, damaged or another than was added. Other weights than those the bank
        was made on are taken with a warning.
        """
        state = self.read()
        chosen = None if only is None else [state.entry(concept) for concept in only]
        self._compare(state, model)
        return self._in_memory(state, model, chosen)

    def _in_memory(
        self, state: BankState, model: EditableModel, chosen: Sequence[BankEntry] | None = None, at_hand: Iterable[Edit] = ()
    ) -> Bank:
        """All edits of ``state``, read from their files but those ``at_hand``; ``chosen`` are on instead."""
        from mu.edits.bank import Bank

        bank, known = Bank(model), {edit.concept(): edit for edit in at_hand}
        for entry in state.edits:
            bank.add(known.get(entry.concept) or self._edit(entry), entry.strength)
            if not (entry.on if chosen is None else entry in chosen):
                bank.restore(entry.concept)
        return bank

    def require(self, model: EditableModel) -> None:
        """`EditError` where ``model`` has other weights than those the bank was made on."""
        state = self.read()
        if not self._is_base(state, model):
            raise EditError(
                f"the bank {self.folder} was made on other weights ({state.base!r}) than those of {model.name!r}: "
                "name its model with --model, or begin a new bank"
            )

    @staticmethod
    def _require_found_on(model: EditableModel, edits: Iterable[Edit]) -> None:
        from mu.edits.edit import is_found_on

        for edit in edits:
            if not is_found_on(edit, model):
                raise EditError(
                    f"the edit of {edit.concept()!r} was found on other weights ({edit.info.base!r}) than those of {model.name!r}: "
                    "find it anew on that model, or take it as it is with --transfer"
                )

    def add(
        self, model: EditableModel, *edits: Edit, strength: float = 1.0, instead: Sequence[Edit] = (), reason: str = "",
        transfer: bool = False,
    ) -> list[BankEntry]:  # fmt: skip
        """Keep ``edits``, found on ``model``, on. The first ones make the folder, and ``model`` its base.

        ``instead`` are edits that take the places of those of the same concepts, at their strengths, on or restored as those were.
        Where an edit promises to leave prompts alone, and one of the bank acts on another's concept, that is told.
        Raises `EditError` for an edit that does not fit the model, for a concept that the bank has, or has not though it is
        to be exchanged, for a folder that holds something else, and for a ``model`` of other weights than those that the bank
        was made on, or ``edits`` were found on: with ``transfer`` that is only told.
        """
        from mu.edits.bank import Bank
        from mu.edits.protection import tell_leaks

        if not math.isfinite(strength):
            raise EditError(f"an edit's strength must be a number, not {strength}")
        self.refuse(edit.concept() for edit in edits)
        if not transfer:
            if self.json.exists():
                self.require(model)
            self._require_found_on(model, edits)
        Bank(model, edits)  # each must fit, and stand there once
        state = self.read() if self.json.exists() else BankState(**_base(model))
        old = [state.entry(concept) for concept in Bank(model, instead).edits]
        self._compare(state, model)
        with self._writing(), self._undone() as keep:
            if not self.json.exists():
                write_json(self.json, state.model_dump(mode="json"))
            new = {
                entry.concept: keep(edit, entry.strength).model_copy(update={"on": entry.on})
                for entry, edit in zip(old, instead, strict=True)
            }
            added = [keep(edit, strength) for edit in edits]
            if new:
                self._note(_told(state), "replace", list(new.values()), reason)
            places = [new.get(entry.concept, entry) for entry in state.edits]
            self._commit(state.model_copy(update={"edits": [*places, *added]}), "add", added, reason)
            for entry in old:
                (self.folder / entry.file).unlink(missing_ok=True)
        if any(edit.info.promises for edit in edits):
            tell_leaks(self._in_memory(self.read(), model, at_hand=(*instead, *edits)), {edit.concept() for edit in edits})
        return added

    def check(self, model: EditableModel, tolerance: float | None = None) -> list[Leak]:
        """Which edits leave which concepts alone: `mu.edits.protection.leaks`."""
        from mu.edits.protection import TOLERANCE, leaks

        return leaks(self.open(model), TOLERANCE if tolerance is None else tolerance)

    def merge(
        self, model: EditableModel, out: Path | str, form: str, *, only: Sequence[str] | None = None, overwrite: bool = False,
        reason: str = "", transfer: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """`mu.edits.export.export` of what is on, or of ``only``; returns the line of the log, which tells the result's hash.

        The same base, bank and subset give the same bytes, in whatever order ``only`` names it. Which of the edits does not
        spare another's concept, though it promises to leave prompts alone, is told. Raises `EditError` for a ``model`` of other
        weights than those that the bank was made on: with ``transfer`` that is only told.
        """
        from mu.edits.export import export
        from mu.edits.protection import tell_leaks

        state, out = self.read(), Path(out)
        if out.resolve().is_relative_to(self.folder.resolve()):
            raise OutputError(f"{out} lies inside the bank, which holds edits only: choose another path")
        if not transfer:
            self.require(model)
        bank = self.open(model, only)
        merged = [state.entry(edit.concept()) for edit in bank.on]
        tell_leaks(bank)
        export(bank, out, form, overwrite=overwrite)
        with self._writing():
            return self._note(_base(model), "merge", merged, reason, format=form, out=str(out), sha256=sha256(out))

    # -- without it -----------------------------------------------------------------------------------------------------

    def remove(self, *concepts: str, reason: str = "") -> list[BankEntry]:
        """Take edits out, and delete their files. The log goes on telling of them."""
        state = self.read()
        gone = list({entry.concept: entry for entry in map(state.entry, concepts)}.values())
        with self._writing():
            left = [entry for entry in state.edits if entry not in gone]
            self._commit(state.model_copy(update={"edits": left}), "remove", gone, reason)
            for entry in gone:
                (self.folder / entry.file).unlink(missing_ok=True)
        return gone

    def restore(self, *concepts: str, reason: str = "") -> list[BankEntry]:
        """Give concepts back: their edits stay in the bank and are off."""
        return self._switch("restore", concepts, reason, {"on": False})

    def erase(self, *concepts: str, strength: float | None = None, reason: str = "") -> list[BankEntry]:
        """Put restored concepts' edits on again, at another ``strength`` where one is given."""
        if strength is not None and not math.isfinite(strength):
            raise EditError(f"an edit's strength must be a number, not {strength}")
        return self._switch("erase", concepts, reason, {"on": True} | ({} if strength is None else {"strength": strength}))

    def history(self) -> list[dict[str, Any]]:
        """The log, oldest first. A line that is damaged, as a killed process may leave one, is told and left out."""
        self.read()
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        except OSError as error:
            raise EditError(f"{self.log} cannot be read: {error.strerror or error}") from None
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line else None
                if line and not (isinstance(row, dict) and {"time", "verb", "edits"} <= row.keys()):
                    raise ValueError
                rows += [row] if row else []
            except (ValueError, RecursionError):
                log.warning("line %d of %s is damaged and left out", number, self.log)
        return rows

    # -- below ----------------------------------------------------------------------------------------------------------

    def _switch(self, verb: str, concepts: Sequence[str], reason: str, change: dict[str, Any]) -> list[BankEntry]:
        state = self.read()
        switched = {entry.concept: entry.model_copy(update=change) for entry in map(state.entry, concepts)}
        edits = [switched.get(entry.concept, entry) for entry in state.edits]
        with self._writing():
            self._commit(state.model_copy(update={"edits": edits}), verb, list(switched.values()), reason)
        return list(switched.values())

    def _commit(self, state: BankState, verb: str, entries: Sequence[BankEntry], reason: str) -> None:
        self._note(_told(state), verb, entries, reason)
        write_json(self.json, state.model_dump(mode="json"))

    def _note(
        self, base: Mapping[str, Any], verb: str, entries: Sequence[BankEntry], reason: str, **more: str
    ) -> dict[str, Any]:
        """One more line of the log, on the disk when this returns."""
        edits = [entry.model_dump(mode="json", include={"concept", "sha256", "strength"}) for entry in entries]
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {"time": now, "verb": verb, "edits": edits, "reason": reason, **more, **base, "versions": versions()}
        torn = self.log.exists() and not self.log.read_bytes().endswith(b"\n")
        with self.log.open("a", encoding="utf-8", errors="backslashreplace") as lines:
            lines.write(("\n" if torn else "") + json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        return row

    def _keep(self, edit: Edit, strength: float) -> BankEntry:
        """Write its file under a name that nothing has."""
        stem = slug(edit.concept()) or "edit"
        for k in itertools.count(1):
            path = self.folder / f"{stem}{f'-{k}' if k > 1 else ''}.safetensors"
            try:
                path.touch(exist_ok=False)  # the name is taken at once, also from another process
                break
            except FileExistsError:
                continue
        try:
            edit.save(path)
        except BaseException:
            path.unlink()
            raise
        return BankEntry(concept=edit.concept(), file=path.name, sha256=sha256(path), strength=strength)

    def _edit(self, entry: BankEntry) -> Edit:
        from mu.edits.files import open_edit

        path = self.folder / entry.file
        instead = "put the file back, or take the edit out with `mu bank remove`"
        if path.resolve().parent != self.folder.resolve():
            raise EditError(f"{path} is a link that leads out of the bank: {instead}")
        if not path.is_file():
            raise EditError(f"{path}, the edit of {entry.concept!r}, is missing: {instead}")
        if sha256(path) != entry.sha256:
            raise EditError(f"{path} is not the file that was added for {entry.concept!r} (its SHA-256 differs): {instead}")
        edit = open_edit(path)
        if edit.concept() != entry.concept:
            raise EditError(f"{path} holds the edit of {edit.concept()!r}, and bank.json says {entry.concept!r}: {instead}")
        return edit

    @staticmethod
    def _is_base(state: BankState, model: EditableModel) -> bool:
        from mu.edits.edit import is_base
        from mu.models.parameters import select

        return is_base(model, list(select(model, "*")), state.fingerprint)

    def _compare(self, state: BankState, model: EditableModel) -> None:
        if not self._is_base(state, model):
            log.warning("the bank %s was made on other weights (%r) than those of %r", self.folder, state.base, model.name)

    @contextmanager
    def _undone(self) -> Iterator[Callable[[Edit, float], BankEntry]]:
        """`_keep`, whose files are deleted where the block fails before ``bank.json`` tells of them."""
        begun, files = self.json.exists(), list[str]()

        def keep(edit: Edit, strength: float) -> BankEntry:
            entry = self._keep(edit, strength)
            files.append(entry.file)
            return entry

        try:
            yield keep
        except BaseException:
            listed = {entry.file for entry in self.read().edits} if self.json.exists() else set()
            for name in set(files) - listed:
                (self.folder / name).unlink(missing_ok=True)
            if not (begun or self.log.exists()):
                self.json.unlink(missing_ok=True)
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing(self.folder):
            yield


def _base(model: EditableModel) -> dict[str, Any]:
    """``base``, ``fingerprint`` and ``loading`` of the whole model."""
    from mu.edits.edit import described
    from mu.models.parameters import select

    return described(model, list(select(model, "*")))


def _told(state: BankState) -> dict[str, Any]:
    return state.model_dump(include={"base", "fingerprint", "loading"})


def sha256(path: Path) -> str:
    """Of a file; of a folder, that of what ``find . -type f | LC_ALL=C sort | xargs sha256sum`` prints in it."""
    if not path.is_dir():
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    files = sorted(f"./{below.relative_to(path).as_posix()}" for below in path.rglob("*") if below.is_file())
    return hashlib.sha256("".join(f"{sha256(path / name)}  {name}\n" for name in files).encode()).hexdigest()
