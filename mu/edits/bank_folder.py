"""A bank on disk: a folder of edits of one model, their state (on or restored), and a log of every change.

    <folder>/  bank.json  log.jsonl  <concept>.safetensors ...  .pending.json

One process at a time changes a bank (see `mu.core.lock`). A change is written in an order that is safe if the process
is killed: first the edit's file, then a line of the log, then ``bank.json``, which alone defines the contents of the
bank. So the log never misses a change, but may list one that was cut off. While files are added or removed,
``.pending.json`` names them: the next change deletes those of a killed process that the bank does not list. Importing
this module does not load torch, so listing and switching edits is fast.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mu.core.documents import control_character, is_unicode
from mu.core.errors import DataError, EditError, OutputError, quoted, titled
from mu.core.files import check_writing, sha256, slug, write_json, write_text, writing
from mu.core.lock import locked
from mu.core.records import read_record
from mu.core.run import versions
from mu.edits.bank_state import BankEntry, BankState, is_file_name, read_log, read_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mu.edits.bank import Bank
    from mu.edits.edit import Edit
    from mu.edits.protection import Leak
    from mu.models.parameters import EditableModel

log = logging.getLogger("mu")


class BankFolder:
    """The bank in ``folder``, which need not exist yet. Each call reads the folder again; nothing is kept in memory.

    Every method that changes something takes a ``reason`` for the log, and does all of its work or none.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.json = self.folder / "bank.json"
        self.log = self.folder / "log.jsonl"
        self.pending = self.folder / ".pending.json"

    def read(self) -> BankState:
        """Read ``bank.json``. Raises `EditError` for a folder without one, and for a damaged one."""
        return read_state(self.json, self.log.name)

    def refuse(self, concepts: Iterable[str]) -> None:
        """Raise `EditError` if one of ``concepts`` cannot be added. Call it before a long search."""
        state = None
        if self.json.exists():
            state = self.read()
        else:
            self._check_claimable()
        for concept in concepts:
            if control_character(concept) or not is_unicode(concept):
                raise EditError(f"the concept {quoted(concept)} has a control character: a bank cannot list it")
            if state and (old := state.find(concept)):
                raise EditError(
                    f"{quoted(old.concept)} is in the bank {self.folder} already: remove the old edit first"
                )
        for file in (self.json, self.log):
            check_writing(file)

    def _check_claimable(self) -> None:
        if self.folder.exists() and not (self.folder.is_dir() and not any(self._visible())):
            raise EditError(f"{self.folder} exists but has no bank.json: choose a new or empty folder")

    def _visible(self) -> Iterator[Path]:
        """What the folder holds, without the lock and what a killed process left."""
        return (path for path in self.folder.iterdir() if not path.name.startswith("."))

    # -- with the model ----------------------------------------------------------------------------------------------

    def open(self, model: EditableModel, only: Sequence[str] | None = None) -> Bank:
        """Load the bank into memory, as it was left. ``only`` names the concepts that are on instead.

        Raises `EditError` for a file that is missing, damaged or not the one that was added. Warns if the bank was made
        on other weights.
        """
        state = self.read()
        chosen = None if only is None else [state.entry(concept) for concept in only]
        self._compare(state, model)
        return self._in_memory(state, model, chosen)

    def _in_memory(
        self,
        state: BankState,
        model: EditableModel,
        chosen: Sequence[BankEntry] | None = None,
        at_hand: Iterable[Edit] = (),
    ) -> Bank:
        """All edits of ``state``, read from their files except those ``at_hand``; ``chosen`` replaces what is on."""
        from mu.edits.bank import Bank

        bank, known = Bank(model), {edit.concept(): edit for edit in at_hand}
        for entry in state.edits:
            bank.add(known.get(entry.concept) or self._edit(entry), entry.strength)
            if not (entry.on if chosen is None else entry in chosen):
                bank.restore(entry.concept)
        return bank

    def require(self, model: EditableModel) -> None:
        """Raise `EditError` if ``model`` has other weights than those the bank was made on."""
        state = self.read()
        if not self._is_base(state, model):
            raise EditError(
                f"the bank {self.folder} was made on other weights ({titled(state.base)}) than those of "
                f"{titled(model.name)}: "
                "name its model with --model, or start a new bank"
            )

    @staticmethod
    def _require_found_on(model: EditableModel, edits: Iterable[Edit]) -> None:
        from mu.edits.edit import is_found_on

        for edit in edits:
            if not is_found_on(edit, model):
                raise EditError(
                    f"the edit of {quoted(edit.concept())} was found on other weights ({titled(edit.info.base)}) "
                    f"than those of {titled(model.name)}: "
                    "search again on that model, or add the edit unchanged with --transfer"
                )

    def add(
        self,
        model: EditableModel,
        *edits: Edit,
        strength: float = 1.0,
        instead: Sequence[Edit] = (),
        reason: str = "",
        transfer: bool = False,
    ) -> list[BankEntry]:
        """Add ``edits``, found on ``model``, switched on. The first call makes the folder; ``model`` becomes its base.

        Each edit of ``instead`` replaces the one of the same concept, and keeps its strength and state (on or
        restored). If an added edit promises to retain prompts, leaks between added edits and the others are logged as
        warnings. Raises `EditError` if an edit does not fit the model; its concept is already in the bank; the concept
        of a replacement is not; the folder holds something else; or ``model`` has other weights than those that the
        bank was made on or ``edits`` were found on. With ``transfer`` other weights only give a warning.
        """
        if not math.isfinite(strength):
            raise EditError(f"an edit's strength must be a number, not {strength}")
        self.refuse(edit.concept() for edit in edits)
        with self._alone(reason):
            return self._add(model, edits, strength, instead, reason, transfer)

    def _add(
        self,
        model: EditableModel,
        edits: Sequence[Edit],
        strength: float,
        instead: Sequence[Edit],
        reason: str,
        transfer: bool,
    ) -> list[BankEntry]:
        """`add`, alone in the folder."""
        from mu.edits.bank import Bank
        from mu.edits.protection import tell_leaks

        self.refuse(edit.concept() for edit in edits)  # again: until now another process may have changed the bank
        if not transfer:
            if self.json.exists():
                self.require(model)
            self._require_found_on(model, edits)
        Bank(model, edits)  # raises unless each edit fits and each concept occurs once
        state = self.read() if self.json.exists() else BankState(**_base(model))
        old = [state.entry(concept) for concept in Bank(model, instead).edits]
        self._compare(state, model)
        with self._writing(), self._moving(*(entry.file for entry in old)) as note, self._undone(note) as keep:
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
            tell_leaks(
                self._in_memory(self.read(), model, at_hand=(*instead, *edits)), {edit.concept() for edit in edits}
            )
        return added

    def check(self, model: EditableModel, tolerance: float | None = None) -> list[Leak]:
        """Measure which edits act on which concepts: `mu.edits.protection.leaks`."""
        from mu.edits.protection import TOLERANCE, leaks

        return leaks(self.open(model), TOLERANCE if tolerance is None else tolerance)

    def merge(
        self,
        model: EditableModel,
        out: Path | str,
        form: str,
        *,
        only: Sequence[str] | None = None,
        overwrite: bool = False,
        reason: str = "",
        transfer: bool = False,
    ) -> dict[str, Any]:
        """Export what is on, or ``only``, with `mu.edits.export.export`. Returns the log's line with the result's hash.

        The same base, bank and subset give the same bytes, whatever the order of ``only``. Warns of each edit that
        promises to retain prompts but acts on another edit's concept. Raises `EditError` if ``model`` has other weights
        than those that the bank was made on. With ``transfer`` that only gives a warning. Raises `OutputError` for an
        ``out`` that holds the bank or lies inside it, and as `mu.edits.export.check_place` does.
        """
        from mu.edits.export import check_place, export
        from mu.edits.protection import tell_leaks

        self.read()
        out = Path(out)
        if out.resolve().is_relative_to(self.folder.resolve()):
            raise OutputError(f"{out} is inside the bank, which holds edits only: choose another path")
        check_place(out, form, overwrite=overwrite, inputs=[self.folder])
        with self._alone(reason):
            if not transfer:
                self.require(model)
            bank = self.open(model, only)
            state = self.read()
            merged = [state.entry(edit.concept()) for edit in bank.on]
            tell_leaks(bank)
            export(bank, out, form, overwrite=overwrite, inputs=[self.folder])
            with self._writing():
                return self._note(_base(model), "merge", merged, reason, format=form, out=str(out), sha256=sha256(out))

    # -- without the model -------------------------------------------------------------------------------------------

    def remove(self, *concepts: str, reason: str = "") -> list[BankEntry]:
        """Remove edits and delete their files. The log keeps their history."""
        self.read()
        with self._alone(reason), self._writing():
            state = self.read()
            gone = list({entry.concept: entry for entry in map(state.entry, concepts)}.values())
            left = [entry for entry in state.edits if entry not in gone]
            with self._moving(*(entry.file for entry in gone)):
                self._commit(state.model_copy(update={"edits": left}), "remove", gone, reason)
                for entry in gone:
                    (self.folder / entry.file).unlink(missing_ok=True)
        return gone

    def restore(self, *concepts: str, reason: str = "") -> list[BankEntry]:
        """Restore concepts: their edits stay in the bank, switched off."""
        return self._switch("restore", concepts, reason, {"on": False})

    def erase(self, *concepts: str, strength: float | None = None, reason: str = "") -> list[BankEntry]:
        """Switch the edits of restored concepts on again, at a new ``strength`` if one is given."""
        if strength is not None and not math.isfinite(strength):
            raise EditError(f"an edit's strength must be a number, not {strength}")
        return self._switch(
            "erase", concepts, reason, {"on": True} | ({} if strength is None else {"strength": strength})
        )

    def history(self) -> list[dict[str, Any]]:
        """The log, oldest first. A damaged line, as a killed process may leave, is skipped with a warning."""
        self.read()
        return read_log(self.log)

    # -- helpers -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, reason: str) -> Iterator[None]:
        """Work alone in the folder, for a ``reason`` that the log can hold."""
        if control_character(reason) or not is_unicode(reason):
            raise EditError(f"the reason {quoted(reason)} holds a control character or half a character: type it again")
        with locked(self.folder):
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Delete the edits that a killed process was adding or removing, unless the bank lists them."""
        if not self.pending.is_file():
            return
        listed = {entry.file for entry in self.read().edits} if self.json.exists() else set()
        try:
            names = read_record(self.pending, list[str])
        except DataError:
            log.warning("%s is damaged: edits that a killed process was adding may be left in the bank", self.pending)
            names = []
        for name in names:
            if name not in listed and is_file_name(name):
                (self.folder / name).unlink(missing_ok=True)
        self.pending.unlink()

    @contextmanager
    def _moving(self, *names: str) -> Iterator[Callable[[str], None]]:
        """Name in ``.pending.json`` the files that may be left if the process is killed. Yields what names another."""
        known = [*names]

        def note(name: str) -> None:
            known.append(name)
            write_text(self.pending, json.dumps(known))

        if known:
            write_text(self.pending, json.dumps(known))
        try:
            yield note
        finally:  # an interrupted process sweeps itself, and a killed one is swept by the next
            self._sweep()

    def _switch(self, verb: str, concepts: Sequence[str], reason: str, change: dict[str, Any]) -> list[BankEntry]:
        self.read()
        with self._alone(reason), self._writing():
            state = self.read()
            switched = {entry.concept: entry.model_copy(update=change) for entry in map(state.entry, concepts)}
            edits = [switched.get(entry.concept, entry) for entry in state.edits]
            self._commit(state.model_copy(update={"edits": edits}), verb, list(switched.values()), reason)
        for entry in switched.values():
            if not (self.folder / entry.file).is_file():
                log.warning(
                    "%s, the edit of %s, is missing: put the file back, or it cannot be erased again",
                    self.folder / entry.file, quoted(entry.concept),
                )  # fmt: skip
        return list(switched.values())

    def _commit(self, state: BankState, verb: str, entries: Sequence[BankEntry], reason: str) -> None:
        self._note(_told(state), verb, entries, reason)
        write_json(self.json, state.model_dump(mode="json"))

    def _note(
        self, base: Mapping[str, Any], verb: str, entries: Sequence[BankEntry], reason: str, **more: str
    ) -> dict[str, Any]:
        """Append a line to the log. It is on the disk when this returns."""
        edits = [entry.model_dump(mode="json", include={"concept", "sha256", "strength"}) for entry in entries]
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {"time": now, "verb": verb, "edits": edits, "reason": reason, **more, **base, "versions": versions()}
        torn = self.log.exists() and not self.log.read_bytes().endswith(b"\n")
        with self.log.open("a", encoding="utf-8", errors="backslashreplace") as lines:
            lines.write(("\n" if torn else "") + json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        return row

    def _keep(self, edit: Edit, strength: float, note: Callable[[str], None]) -> BankEntry:
        """Write the file of ``edit`` under an unused name, which ``note`` gets first."""
        stem = slug(edit.concept()) or "edit"
        for k in itertools.count(1):
            path = self.folder / f"{stem}{f'-{k}' if k > 1 else ''}.safetensors"
            if not (path.exists() or path.is_symlink()):
                break
        note(path.name)
        edit.save(path)
        return BankEntry(concept=edit.concept(), file=path.name, sha256=sha256(path), strength=strength)

    def _edit(self, entry: BankEntry) -> Edit:
        from mu.edits.files import open_edit

        path = self.folder / entry.file
        instead = "put the file back, or remove the edit with `mu bank remove`"
        if path.resolve().parent != self.folder.resolve():
            raise EditError(f"{path} is a link that leads out of the bank: {instead}")
        if not path.is_file():
            raise EditError(f"{path}, the edit of {quoted(entry.concept)}, is missing: {instead}")
        if sha256(path) != entry.sha256:
            raise EditError(
                f"{path} is not the file that was added for {quoted(entry.concept)} (its SHA-256 differs): {instead}"
            )
        edit = open_edit(path)
        if edit.concept() != entry.concept:
            raise EditError(
                f"{path} holds the edit of {quoted(edit.concept())}, but bank.json says "
                f"{quoted(entry.concept)}: {instead}"
            )
        return edit

    @staticmethod
    def _is_base(state: BankState, model: EditableModel) -> bool:
        from mu.edits.edit import is_base
        from mu.models.parameters import select

        return is_base(model, list(select(model, "*")), state.fingerprint)

    def _compare(self, state: BankState, model: EditableModel) -> None:
        if not self._is_base(state, model):
            log.warning(
                "the bank %s was made on other weights (%r) than those of %r", self.folder, state.base, model.name
            )

    @contextmanager
    def _undone(self, note: Callable[[str], None]) -> Iterator[Callable[[Edit, float], BankEntry]]:
        """Yield `_keep`. If the block fails, files that ``bank.json`` does not list are deleted."""
        begun, files = self.json.exists(), list[str]()

        def keep(edit: Edit, strength: float) -> BankEntry:
            entry = self._keep(edit, strength, note)
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
