"""Suite ``vlm``: a vision-language model's answers about an erased concept and about the rest. Protocol ``vlm/1``:

An answer is right if it contains the right words, in any case (SLUG, arXiv 2407.11867). Decoding is greedy, up to 16
new tokens.

Shares have 95 % intervals, and the edited column those of the change, paired by image and question:

- FA: accuracy on images whose right answer is the erased concept (lower is better).
- retained: accuracy on the same questions about other images; the mean over right answers, each counting once.
- other questions: the mean over the questions that are not about the concept. Also on images of the concept alone: the
  edit should take away the name only, and not, for example, the style.

Images come from the tasks of the edit's settings, or from a CSV file with the columns image, question, answer. A task's
question is the first of `mu.data.questions.QUESTIONS`. Of the user's own images in a folder for each class,
``classes:FOLDER``, it is that of objects: for another question write the CSV file. Rendered images are new; the
protocol marks other images that the method searched on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mu.core.documents import parse_csv
from mu.core.errors import ConfigError, DataError, quoted
from mu.core.files import is_inside, read_text
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.clip_sets import class_of
from mu.data.questions import Described, question_about
from mu.edits.edit import Edit
from mu.evaluation.comparing import share_of_each
from mu.evaluation.suites.clip import in_protocol, tasks_of
from mu.models.vision_language import VisionLanguageModel
from mu.models.zero_shot import ImageFile, Shown, ZeroShot, report_tasks, target_of

PROTOCOL = "vlm/1"
PER_CLASS = 2
"""Rendered images of each class and seed."""
BATCH = 32
COLUMNS = ("image", "question", "answer")


@dataclass(frozen=True)
class Item:
    """A question about an image. Items with the same ``shows`` ask about the same image."""

    shows: Hashable
    image: Shown
    question: str
    answer: str


def evaluate(
    run: RunDirectory, model: VisionLanguageModel, edit: Edit, *, seeds: Sequence[int], data: Sequence[str] = ()
) -> tuple[Table, dict[str, Any]]:
    """Score both columns. Returns the table and the tasks.

    ``data``: tasks (see `mu.models.zero_shot.TASK_SOURCES`) or CSV files. Default: the edit's tasks.
    """
    names, concepts = list(data) or tasks_of(edit), edit.info.concepts
    files = [name for name in names if name.endswith(".csv")]
    tasks = [name for name in names if name not in files]
    items = [item for file in files for item in read_questions(file)]
    if tasks:
        among = concepts if not files else ()
        items += task_items(report_tasks(tasks, PER_CLASS, seeds, among), among)
    protocol = (
        f"{PROTOCOL}, {' and '.join(Path(name).name if name in files else in_protocol(name, edit) for name in names)}"
    )
    before = answers(model, items, "base")
    with edit.applied(model):
        after = answers(model, items, "edited")
    table = {
        "base": answer_scores(items, before, concepts, protocol),
        "edited": answer_scores(items, after, concepts, protocol, before=before),
    }
    return table, {"tasks": names, "questions": len(items)}


def task_items(tasks: Sequence[ZeroShot], concepts: Sequence[str]) -> list[Item]:
    """The task's question about each image. For the erased class, also questions about its other known attributes."""
    targets = [target_of(concept, tasks) for concept in concepts]
    items = []
    for task in tasks:
        question = question_about(task.name)
        gone = {target.label for target in targets if target.task is task}
        for k, (image, label) in enumerate(zip(task.images, task.labels, strict=True)):
            shows = (task.name, k)
            items.append(Item(shows, image, question, task.classes[label]))
            if label in gone and isinstance(image, Described):
                others = {question_about(attribute): told for attribute, told in image.shows.items()}
                items += [Item(shows, image, other, told) for other, told in others.items() if other != question]
    return items


def read_questions(path: Path | str) -> list[Item]:
    """Read a CSV file with the columns image (a path inside the file's folder), question and answer.

    Raises `DataError` for a file that is missing, has other columns or no rows, and for an incomplete row.
    """
    path = Path(path)
    header, rows = parse_csv(read_text(path, "the question file"), str(path))
    missing = set(COLUMNS) - set(header)
    if missing or not rows:
        raise DataError(
            f"{path} has no {'rows' if not missing else f'column {quoted(sorted(missing)[0])}'}: its columns are "
            f"{', '.join(COLUMNS)}"
        )
    home, items = path.parent.resolve(), []
    for number, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{path}, line {number}: {len(cells)} values for {len(header)} columns; quote commas")
        row = dict(zip(header, cells, strict=True))
        image, question, told = (row[name].strip() for name in COLUMNS)
        place = home / image
        if not (image and question and told):
            raise DataError(f"{path}, line {number}: image, question or answer is empty: fill in all three")
        if not is_inside(home, image):
            raise DataError(f"{path}, line {number}: {quoted(image)} is not a file in {path.parent}")
        items.append(Item(place, ImageFile(place), question, told))
    return items


def answers(model: VisionLanguageModel, items: Sequence[Item], title: str) -> list[str]:
    """The model's answer to each item."""
    told: list[str] = []
    with progress_bar(title, len(items)) as advance:
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            told += model.answer(
                [item.image.image() for item in part], [item.question for item in part], batch_size=BATCH
            )
            advance(len(told), "")
    return told


def answer_scores(
    items: Sequence[Item], told: Sequence[str], concepts: Sequence[str], protocol: str, *,
    before: Sequence[str] | None = None,
) -> list[Score]:  # fmt: skip
    """Score the answers ``told``; a group without items is left out.

    With the base's answers to the same items, ``before``, also the intervals of the change. Raises `ConfigError` for a
    concept that is not the right answer of any item.
    """
    named = [next((c for c in concepts if class_of(c, [item.answer]) is not None), None) for item in items]
    for concept in concepts:
        if concept not in named:
            raise ConfigError(
                f"{quoted(concept)} is the answer to none of the {len(items)} questions, so forgetting cannot "
                "be measured: "
                "add questions with this answer"
            )
    asked = {item.question for item, concept in zip(items, named, strict=True) if concept}
    forgotten = {item.shows for item, concept in zip(items, named, strict=True) if concept}

    def grouped(told: Sequence[str], group: Callable[[Item, str | None], str | None]) -> dict[str, list[bool]]:
        found: dict[str, list[bool]] = {}
        for item, concept, each in zip(items, named, told, strict=True):
            if (key := group(item, concept)) is not None:
                found.setdefault(key, []).append(item.answer.casefold() in each.casefold())
        return found

    def score(name: str, group: Callable[[Item, str | None], str | None]) -> list[Score]:
        """The mean over the groups of items; items whose group is None do not count."""
        found, base = grouped(told, group), before and grouped(before, group)
        return [share_of_each(name, found, protocol, before=base or None)] if found else []

    def other(item: Item, _: str | None) -> str | None:
        return item.question if item.question not in asked else None

    return [
        *score("FA", lambda _, concept: concept),
        *score("retained", lambda item, concept: item.answer if item.question in asked and not concept else None),
        *score("other questions", other),
        *score(
            "other questions, forgotten pictures",
            lambda item, _: other(item, _) if item.shows in forgotten else None,
        ),
    ]
