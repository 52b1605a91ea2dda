"""Write and read a run folder.

The folder is the interface between the expensive search and the cheap evaluation:

    <folder>/
      config.yaml  environment.json           settings to rerun it; versions, method, concepts
      log.txt  metrics.jsonl  checkpoints/    of the search
      calibration.json                        what a calibrated search measured, by concept
      edit.safetensors                        the result
      bank/                                   instead of it: several edits that are measured together
      slug_<concept>.json                     from a search for one layer: every tensor and the steps tried
      before/  after/  prompts.json           <case>_<k>.png without and with the edit; the prompts by case
      answers/base/  answers/edited/          images that suite canvas judges, with the recipe.json that made them
      answers/<suite>/base/  .../edited/      images that another suite judges, and their prompts.json
      scores.json                             by suite and column
      evidence.json                           how and when each result was made, and the digests of its files
      similarity.json  similarity.png         of suite clip
      panels/  panels.json                    more images, and the grids that show them
      report.html  .md  .json  .pdf           and figures of each slug_*.json: pareto-*.png, steps-*.png
      manifest.json                           the digests of all these files, when the report was written
      .earlier/  .lock                        the run that is being overwritten; of the process that works here

All content is checked when it is read: wrong content raises a one-line `DataError` that names the file and the key.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mu.core.config import read_yaml
from mu.core.documents import parse_json, parse_yaml
from mu.core.errors import DataError, MuError, OutputError, quoted
from mu.core.files import check_folder, check_writing, lines, read_text, sha256, sweep, write_json, write_text, writing
from mu.core.lock import locked
from mu.core.metrics import impossible, metric_of
from mu.core.parallel import LostError
from mu.core.records import MetricsRow, Origin, Panel, Prompt, checked, read_record
from mu.core.scores import Score, Table
from mu.core.tracking import Tracking, tracked

SCORES_FORMAT = 2
_PLACES = {
    "checkpoints": r"(training(_\d+)?|concept_\d+)\.(pt|safetensors)",
    "tensorboard": r"events\.out\.tfevents\..*",
    "before": r"\d+_\d+\.png",
    "after": r"\d+_\d+\.png",
    "panels": r"\d+/\d+\.png|(similarity|changed)-[^/]*\.png|base-[\w-]+/.*\.(png|jpg)",
    "bank": r"bank\.json|log\.jsonl|[^/]+\.safetensors",
    "answers": r"([\w-]+/)?(shards/\d+-of-\d+/)?(base|edited)/(.*_seed\d+\.(png|jpg)|recipe\.json)"
    r"|[\w-]+/prompts\.json",
}
"""The folders of a run, and the names of the files that mu writes there, as regular expressions."""
LIBRARIES = ("mu-unlearning", "torch", "diffusers", "transformers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of the libraries that affect results, without those that are not installed."""
    found = {name: _version(name) for name in LIBRARIES}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


@cache
def _version(library: str) -> str | None:
    """Reading it takes milliseconds, and a bank asks at every change."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def command() -> str:
    """The command line of this process, without the folder of its program."""
    program = Path(sys.argv[0])
    first = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*first, *sys.argv[1:]])


def _completed(values: Any, usual: Any) -> Any:
    """``values`` with those of ``usual`` that they lack, at every depth."""
    if not (isinstance(values, dict) and isinstance(usual, dict)):
        return values
    return {**usual, **{key: _completed(value, usual.get(key)) for key, value in values.items()}}


class RunDirectory:
    """The folder of one run. It is created at the first write."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.environment = self.folder / "environment.json"
        self.log = self.folder / "log.txt"
        self.metrics = self.folder / "metrics.jsonl"
        self.calibration = self.folder / "calibration.json"
        self.edit = self.folder / "edit.safetensors"
        self.bank = self.folder / "bank" / "bank.json"
        self.checkpoints = self.folder / "checkpoints"
        self.before = self.folder / "before"
        self.after = self.folder / "after"
        self.scores = self.folder / "scores.json"
        self.evidence = self.folder / "evidence.json"
        self.prompts = self.folder / "prompts.json"
        self.answers = self.folder / "answers"
        self.panels = self.folder / "panels.json"
        self.panel_images = self.folder / "panels"
        self.similarity = self.folder / "similarity.json"
        self.report = self.folder / "report.html"
        self.manifest = self.folder / "manifest.json"
        self.earlier = self.folder / ".earlier"
        self._began = False
        self._there: set[Path] = set()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work alone in the folder: see `mu.core.lock.locked`. Also deletes partial files below it."""
        with locked(self.folder):
            for below in (self.checkpoints, self.before, self.after, self.panel_images, *self.answer_folders()):
                if below.is_dir() and not below.is_symlink():
                    sweep(below)
            yield

    def answer_folders(self) -> list[Path]:
        """The folders of images that suites judge, of the base and of the edited model."""
        if self.answers.is_symlink():
            return []
        found = [*self.answers.glob("*"), *self.answers.glob("*/*")]
        return sorted(path for path in found if path.name in ("base", "edited") and path.is_dir())

    def check(self) -> None:
        """Raise `OutputError` if a file or folder of a run cannot be written, before any work is done."""
        for file in (self.config, self.environment, self.log, self.metrics, self.edit, self.scores, self.evidence):
            check_writing(file)
        for file in (self.prompts, self.panels, self.similarity, self.similarity.with_suffix(".png"), self.report):
            check_writing(file)
        for folder in (self.checkpoints, self.before, self.after, self.panel_images, self.answers):
            check_folder(folder)

    def asked(self, suite: str) -> Path:
        """The prompts of the images that ``suite`` judges, a list of `Prompt`: ``case_number`` is the image's name."""
        return self.answers / suite / "prompts.json"

    def reports(self) -> list[Path]:
        """The places of the report, one for each of its formats."""
        return [self.report, *(self.report.with_suffix(ending) for ending in (".md", ".json", ".pdf"))]

    def edit_digest(self) -> str:
        """SHA-256 of the edit's file, or one of a bank's list and its edits' files; "" without either."""
        if self.edit.is_file():
            return sha256(self.edit)
        parts = [path for path in self.made_in(self.bank.parent) if path.suffix != ".jsonl" and path.is_file()]
        whole = hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in parts).encode())
        return whole.hexdigest() if self.bank.is_file() else ""

    def require_edit(self) -> None:
        """Raise `DataError`, which says what a run is, if the folder holds no run with an edit."""
        if self.edit.exists() or self.bank.exists():
            return
        if self.config.exists():
            raise DataError(f"{self.folder} holds an unfinished run: continue it with `mu erase --resume`")
        state = "is not a run" if self.folder.exists() else "does not exist"
        raise DataError(f"{self.folder} {state}: name a folder that `mu erase` wrote, with its edit.safetensors")

    def begin(
        self,
        config: str,
        description: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        usual: str = "{}",
    ) -> None:
        """Claim the folder and write the settings that rerun this run.

        Raises `OutputError` if the folder already holds a run, unless ``overwrite`` is set, or ``resume`` with equal
        settings, as `require` compares them. With ``overwrite`` the earlier run is set aside until `finish` deletes
        it or `withdraw` puts it back.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder} is a file and not a folder: choose another name")
        if self.config.exists() and not (resume or overwrite):
            finished = self.edit.exists() or self.report.exists()
            state = "a finished run" if finished else "an unfinished run"
            what = "choose another folder or pass --overwrite" if finished else "pass --resume or --overwrite"
            raise OutputError(f"{self.folder} already holds {state}: {what}")
        if not (self.config.exists() or overwrite):
            if self.edit.exists():
                raise OutputError(f"{self.folder} already holds an edit: choose another folder or pass --overwrite")
            if self.earlier.exists():
                raise OutputError(
                    f"{self.folder} holds a run that was being overwritten, in {self.earlier.name}: move its files "
                    "back, or pass --overwrite to replace them"
                )
        if resume and self.config.exists():
            self.require(config, usual)
        self.check()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._began = not (resume and self.config.exists())
            try:
                if overwrite and not resume:
                    self._set_aside()
                self._there = {made for made in self._made() if made.exists()}
                write_text(self.config, config)
                write_json(self.environment, {"versions": versions(), "platform": platform.platform(), **description})
            except BaseException:
                if self._began:
                    self.config.unlink(missing_ok=True)
                    self._put_back()
                raise

    def _made(self) -> Iterator[Path]:
        """All files made by an earlier run, its suites and its report. Other files in the folder belong to the user."""
        yield from (self.config, self.environment, self.log, self.metrics, self.calibration, self.edit)
        yield from (self.scores, self.evidence, self.prompts, self.panels, *self.reports(), self.manifest)
        yield from (self.similarity, self.similarity.with_suffix(".png"))
        for search in self.layer_searches():
            stem = search.stem.removeprefix("slug_")
            yield from (search, self.folder / f"steps-{stem}.png")
            yield from self.folder.glob(f"pareto-*-{glob.escape(stem)}.png")
        for place in _PLACES:
            yield from self.made_in(self.folder / place)

    def made_in(self, folder: Path) -> list[Path]:
        """The files of one of the run's own folders whose names mu gives. Others belong to the user.

        A folder that is a link is not entered."""
        if folder.is_symlink():
            return []
        name = re.compile(_PLACES[folder.relative_to(self.folder).as_posix()])
        files = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
        return [path for path in files if name.fullmatch(path.relative_to(folder).as_posix())]

    def _set_aside(self) -> None:
        """Move what an earlier run made to `earlier`. What is there already is older, and goes if this run finished."""
        if self.edit.exists() or self.report.exists():
            shutil.rmtree(self.earlier, ignore_errors=True)
        again = self.earlier.exists()
        config, *others = self._made()
        for made in (*others, config):  # as long as the settings are there, no other run begins here
            if again:
                made.unlink(missing_ok=True)
            elif made.is_symlink() or made.exists():
                aside = self.earlier / made.relative_to(self.folder)
                aside.parent.mkdir(parents=True, exist_ok=True)
                made.rename(aside)

    def finish(self) -> None:
        """Delete the run that `begin` set aside: this one has its result."""
        shutil.rmtree(self.earlier, ignore_errors=True)

    def _put_back(self) -> None:
        """Move the files of `earlier` to their places."""
        for aside in [path for path in self.earlier.rglob("*") if path.is_symlink() or not path.is_dir()]:
            place = self.folder / aside.relative_to(self.earlier)
            place.parent.mkdir(parents=True, exist_ok=True)
            aside.replace(place)
        self.finish()

    def withdraw(self) -> None:
        """Undo `begin` if it began a run that has no edit and no checkpoint yet, so that the folder is as before."""
        if not self._began or self.edit.exists() or any(self.checkpoints.glob("*")):
            return
        for made in {*self._made()} - self._there:
            made.unlink(missing_ok=True)
        self._put_back()
        for below in (self.checkpoints, self.before, self.after, self.panel_images, self.answers):
            with suppress(OSError):  # not empty, or not there
                below.rmdir()

    def require(self, config: str, usual: str = "{}") -> None:
        """Raise `OutputError` if the folder's run has other settings than ``config``; their order does not matter.

        A setting that the folder's file lacks is of a later version, and counts as the default in ``usual``.
        """
        if not self.config.exists():
            return
        before, now, default = read_yaml(self.config), parse_yaml(config, "settings"), parse_yaml(usual, "settings")
        if now not in (before, _completed(before, default)):
            raise OutputError(
                f"{self.folder} was begun with different settings: rerun with its config.yaml, or pass --overwrite"
            )

    @contextmanager
    def recording(
        self, tracking: Tracking | None = None, config: Mapping[str, Any] | None = None, *, quiet: bool = False
    ) -> Iterator[Any]:
        """Yield ``log(mapping)``, which appends one line to ``metrics.jsonl`` and sends it to the chosen tracker.

        The tracker also receives the settings ``config``. Warnings and infos of ``mu`` go to ``log.txt``, with
        ``quiet`` only warnings."""
        seen = {row["step"] for row in self.read_metrics()}
        with self.logged(quiet=quiet):
            torn = self.metrics.exists() and not self.metrics.read_bytes().endswith(b"\n")
            with (
                self.metrics.open("a", encoding="utf-8") as lines,
                tracked(tracking or Tracking(), self.folder, config or {}) as track,
            ):
                lines.write("\n" if torn else "")  # a killed run may leave half a line

                def record(row: Mapping[str, float]) -> None:
                    if row["step"] not in seen:  # a resumed run repeats the steps after its last checkpoint
                        lines.write(json.dumps(row) + "\n")
                        lines.flush()
                        track(row)

                yield record

    @contextmanager
    def logged(self, *, quiet: bool = False) -> Iterator[None]:
        """Append to ``log.txt`` what ``mu`` logs inside the block, between the command and the time that it took.

        With ``quiet`` infos are logged nowhere. A Python script without logging of its own still sees warnings. Refused
        work (`MuError`) leaves no log where there was none, unless it wrote evidence, which is bound to the log.
        """
        new, refused, bound = not self.log.exists(), False, self._evidence_now()
        handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("mu")
        level, began, end = logger.level, time.monotonic(), "ended"
        # Python's handler of last resort serves only a logger that has no handler at all.
        console = None if logger.hasHandlers() else logging.lastResort
        for added in filter(None, (handler, console)):
            logger.addHandler(added)
        logger.setLevel(logging.WARNING if quiet else level or logging.INFO)

        def note(text: str) -> None:
            handler.emit(logger.makeRecord("mu", logging.INFO, "", 0, text, (), None))

        note(f"{command()}: begun with {', '.join(f'{name} {version}' for name, version in versions().items())}")
        try:
            yield
        except BaseException as error:
            end = f"stopped by {type(error).__name__}: {error}"
            refused = isinstance(error, MuError) and not isinstance(error, LostError)
            raise
        finally:
            note(f"{end} after {time.monotonic() - began:.1f} s")
            logger.setLevel(level)
            for added in filter(None, (handler, console)):
                logger.removeHandler(added)
            handler.close()
            if refused and new and self._evidence_now() == bound:
                self.log.unlink(missing_ok=True)

    def _evidence_now(self) -> bytes:
        return self.evidence.read_bytes() if self.evidence.is_file() else b""

    def read_metrics(self) -> list[dict[str, float]]:
        if not self.metrics.exists():
            return []
        rows = []
        for number, line in enumerate(lines(read_text(self.metrics)), start=1):
            if line and not (line.startswith("{") and not line.endswith("}")):  # a killed run may leave half a line
                row = parse_json(line, f"{self.metrics}, line {number}")
                rows.append(checked(self.metrics, row, MetricsRow, f"line {number}").model_dump())
        return rows

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Add ``facts`` to ``environment.json``."""
        write_json(self.environment, {**self.read_environment(), **facts})

    def read_environment(self) -> dict[str, Any]:
        """All of ``environment.json``; fields of `Origin` have their declared types."""
        content = read_record(self.environment, dict[str, Any])
        checked(self.environment, content, Origin)
        return content

    def origin(self) -> Origin:
        """The content of ``environment.json``; defaults if it does not exist."""
        return read_record(self.environment, Origin) if self.environment.exists() else Origin()

    def layer_searches(self) -> list[Path]:
        return sorted(self.folder.glob("slug_*.json"))

    # -- images -------------------------------------------------------------------------------------------------------

    def write_prompts(self, prompts: Sequence[Prompt]) -> None:
        write_json(self.prompts, [prompt.model_dump(exclude_defaults=True) for prompt in prompts])

    def read_prompts(self) -> list[Prompt]:
        return read_record(self.prompts, list[Prompt]) if self.prompts.exists() else []

    def write_panels(self, panels: Sequence[Panel]) -> None:
        write_json(self.panels, [panel.model_dump() for panel in panels])

    def read_panels(self) -> list[Panel]:
        return read_record(self.panels, list[Panel]) if self.panels.exists() else []

    def put_panel(self, panel: Panel) -> None:
        """Add ``panel``, replacing any panel with the same title."""
        self.write_panels([*(other for other in self.read_panels() if other.title != panel.title), panel])

    # -- scores -------------------------------------------------------------------------------------------------------

    def write_scores(self, suite: str, table: Table) -> None:
        """Write ``table`` (scores by column, ``base`` and ``edited``) and keep the scores of other suites."""
        suites = self.read_scores() | {suite: table}
        told = {
            name: {column: [score.to_json() for score in scores] for column, scores in columns.items()}
            for name, columns in suites.items()
        }
        write_json(self.scores, {"format": SCORES_FORMAT, "suites": told})

    def read_scores(self) -> dict[str, Table]:
        """The tables of all suites by name. In format 1 a score's suite is the first part of its protocol."""
        if not self.scores.exists():
            return {}
        content = read_record(self.scores, dict[str, Any])
        if "format" not in content:
            return _by_suite(checked(self.scores, content, dict[str, list[Score]]))
        checked(self.scores, content["format"], Literal[SCORES_FORMAT], "format")
        suites: dict[str, Table] = checked(
            self.scores, content.get("suites"), dict[str, dict[str, list[Score]]], "suites"
        )
        for suite, table in suites.items():
            if trouble := _not_a_table(suite, table):
                raise DataError(f"{self.scores}: {trouble}: repair it or measure again")
        return suites


def _not_a_table(suite: str, table: Table) -> str:
    """What no suite writes in its table; "" if all could be."""
    if not suite.strip() or suite.startswith(".") or re.search(r"[/\\\x00-\x1f]", suite):
        return f"{quoted(suite)} is no suite"
    for column, scores in table.items():
        told = [(score.name, score.protocol) for score in scores]
        if again := next((name for name, protocol in told if told.count((name, protocol)) > 1), None):
            return f"suite {suite}, {column}: {quoted(again)} stands there twice"
        if trouble := next(filter(None, map(impossible, scores)), None):
            return trouble
    return ""


def _by_suite(table: Table) -> dict[str, Table]:
    """Group format 1 scores by suite: ``canvas/1`` and ``clip/1, celeba`` belong to the suites canvas and clip.

    Directions are set again: format 1 called a lower MIA better, which holds only down to chance level.
    """
    suites: dict[str, Table] = {}
    for column, scores in table.items():
        for score in scores:
            metric = metric_of(score.name)
            told = replace(score, direction=metric.direction) if metric else score
            suites.setdefault(score.protocol.partition("/")[0], {}).setdefault(column, []).append(told)
    return suites
