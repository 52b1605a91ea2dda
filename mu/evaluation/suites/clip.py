"""Suite ``clip``: what a CLIP still knows of an erased concept and of the rest (SLUG, arXiv 2407.11867).

Protocol ``clip/1``:

Shares and means have 95 % intervals, and the edited column those of the change, paired by image:

- FA@1, FA@5: accuracy on the erased class's images among all classes of its task (lower is better).
- ``identity@1 retained``: macro accuracy over the *other* classes of that task; every class counts once.
- ``identity@1``: macro accuracy over all classes, as published; it includes the erased class. On CelebA the classes are
  the frequent people, or without their list the hundred with the most images. Any other person has only FA.
- Other tasks likewise, also the user's own images in a folder for each class, ``classes:FOLDER``. On ImageNet's 2,500
  images each image counts once. @5 is given for tasks of more than five classes.
- MIA: `mu.evaluation.metrics.membership` on the cosine of image and caption (towards 0.5 is better). Members are the
  forget pairs of the edit's search; the others are pairs that it never saw and that do not show the concept. With
  ``mia:released`` in the data, pairs are drawn in the order of the released program, and the protocol says so. Its
  spread over the draws is beside it: an interval would need models that learned again.
- Cosine of forget pairs: the quantity in the forget loss.

Tasks and forget pairs are those of the edit's settings; rendered images are new. CelebA and ImageNet give all images or
a fixed part. If the method searched on them, as SLUG does for its published accuracies, the protocol says
``(seen in the search)``: these are not accuracies on unseen images. The suite also writes the similarity matrix of a
few images and names, ``similarity.png`` and ``similarity.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mu.core.errors import ConfigError, MissingDependency, quoted
from mu.core.metrics import scored
from mu.core.progress import progress_bar
from mu.core.records import Panel, PanelRow
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.canvas import RenderedPair, rendered_pairs
from mu.data.class_folders import read_classes
from mu.data.clip_sets import ForgetSet, forget_pairs, forget_source, is_gradient_file
from mu.data.pairs import Captioned, open_pairs
from mu.edits.edit import Edit
from mu.evaluation.comparing import share, share_of_each
from mu.evaluation.metrics.accuracy import class_hits
from mu.evaluation.metrics.intervals import mean_of_means, paired_means
from mu.evaluation.metrics.membership import SMALLEST, membership_inference
from mu.evaluation.similarity import Similarity
from mu.models.clip import ClipModel
from mu.models.contrastive import encode_pairs
from mu.models.zero_shot import REPORT_SEED, Shown, Target, ZeroShot, logits, report_tasks, target_of

PROTOCOL = "clip/1"
RELEASED = "released"
PER_CLASS = 6
"""Rendered images of each class and seed."""
BATCH = 128
SHOWN = 5
"""Number of classes in the similarity matrix, the erased ones included."""
PANEL, PANEL_SIZE = "Pictures and names", (5.12, 4.4)
"""Size of the report's matrices in inches: the largest image that the report keeps."""
POOLED = ("imagenet",)
"""Tasks in which each image counts once."""

Tick = Callable[[int], None]
Hits = Mapping[int, Sequence[float]]
"""By class, 1 for each image that is recognised as it, else 0; level classes share the hit."""

log = logging.getLogger("mu")


@dataclass(frozen=True)
class Leak:
    """For one concept: the forget pairs of the search, and pairs that were not used in it."""

    forgotten: Sequence[Captioned]
    others: Sequence[Captioned]


class Fits(NamedTuple):
    """For one concept: the cosine of image and caption of each pair of its `Leak`."""

    forgotten: list[float]
    others: list[float]


class Seen(NamedTuple):
    """What one column is scored by: similarities (n, c) by task, and fits by concept."""

    logits: Mapping[str, Tensor]
    fits: Mapping[str, Fits]


def evaluate(
    run: RunDirectory, model: ClipModel, edit: Edit, *, seeds: Sequence[int], data: Sequence[str] = ()
) -> tuple[Table, dict[str, Any]]:
    """Score both columns; write the similarity matrix. Returns the table and the tasks.

    ``data`` overrides the edit's settings: tasks (see `mu.models.zero_shot.TASK_SOURCES`), and ``forget:SOURCE`` and
    ``val:SOURCE``, pairs for the membership inference (see `mu.data.pairs.open_pairs`), and ``mia:released``, its order
    of draws.
    """
    kinds = ("forget", "val", "mia")
    sources = {kind: rest for kind, _, rest in (each.partition(":") for each in data) if kind in kinds}
    if sources.get("mia", RELEASED) != RELEASED:
        raise ConfigError(f"--data mia:{sources['mia']} is no order of draws: write mia:{RELEASED}, or leave it out")
    names = [each for each in data if each.partition(":")[0] not in sources] or tasks_of(edit)
    tasks = report_tasks(names, PER_CLASS, seeds, edit.info.concepts)
    targets = [target_of(concept, tasks) for concept in edit.info.concepts]
    leaks = {target.concept: leak_of(edit, target, sources, seeds) for target in targets}
    protocol = f"{PROTOCOL}, {' and '.join(in_protocol(name, edit) for name in names)}"
    protocol += ", MIA drawn as released" if "mia" in sources else ""
    chosen = shown(targets)
    sights = [task.images[task.labels.index(label)].image() for task, label in chosen]
    bare = [task.classes[label] for task, label in chosen]
    total = sum(len(task.images) for task in tasks) + sum(
        len(leak.forgotten) + len(leak.others) for leak in leaks.values()
    )

    def look(title: str) -> tuple[Seen, Tensor]:
        with torch.no_grad(), progress_bar(title, total) as advance:
            done = 0

            def tick(n: int) -> None:
                nonlocal done
                done += n
                advance(done, "")

            logits = {task.name: classified(model, task, tick) for task in tasks}
            fits = {
                concept: Fits(*(cosines(model, pairs, tick) for pairs in (leak.forgotten, leak.others)))
                for concept, leak in leaks.items()
                if leak.forgotten
            }
            return Seen(logits, fits), model.encode_text(bare) @ model.encode_images(sights).T

    def scores(seen: Seen, base: Seen | None = None) -> list[Score]:
        right = accuracies(seen.logits, tasks, targets, protocol, before=base.logits if base else None)
        others_first, fits = "mia" in sources, base.fits if base else None
        return [*right, *fit_scores(seen.fits, protocol, before=fits, others_first=others_first)]

    before, base = look("base")
    with edit.applied(model):
        after, edited = look("edited")
    write_similarity(run, Similarity(bare, bare, sights, {"base": base, "edited": edited}))
    table = {"base": scores(before), "edited": scores(after, before)}
    return table, {"tasks": names, "images": total}


def tasks_of(edit: Edit) -> list[str]:
    """The tasks of the edit's settings; ``canvas`` if they name none and the forget set is the embedded world's."""
    settings: Mapping = edit.info.config.get("data") or {}
    if settings.get("tasks"):
        return list(settings["tasks"])
    if settings.get("forget", "canvas") == "canvas":
        return ["canvas"]
    raise ConfigError(
        f"the settings of {quoted(edit.info.method)} name no tasks: pass --data celeba:FOLDER, imagenet:FOLDER, "
        "classes:FOLDER or canvas"
    )


def in_protocol(task: str, edit: Edit) -> str:
    """The task's name in the protocol; it states whether the method searched on the task's images."""

    def place(name: str) -> tuple[str, Path]:
        kind, _, folder = name.partition(":")
        return kind, Path(folder).resolve()

    kind, _, folder = task.partition(":")
    if kind == "classes":  # anybody's: numbers of two folders never share a column
        kind = f"classes of {Path(folder).name} ({read_classes(folder).digest})"
    searched = (edit.info.config.get("data") or {}).get("tasks") or ()
    return f"{kind} (seen in the search)" if folder and place(task) in map(place, searched) else kind


def leak_of(edit: Edit, target: Target, sources: Mapping[str, str], seeds: Sequence[int]) -> Leak:
    """The pairs that ``sources`` or the settings name; empty if they name none."""
    settings: Mapping = edit.info.config.get("data") or {}
    told = {"forget": "canvas", "n_forget": 256} | {k: v for k, v in settings.items() if k in ForgetSet.model_fields}
    chosen = ForgetSet.parse(told | ({"forget": sources["forget"]} if "forget" in sources else {}))
    if is_gradient_file(forget_source(chosen, target.concept)):  # the pairs are not known
        return Leak((), ())
    forgotten = forget_pairs(chosen, target.concept, edit.info.seed or 0)
    if "val" in sources:
        return Leak(forgotten, open_pairs(sources["val"]))
    return Leak(forgotten, unseen(target, len(forgotten), seeds) if chosen.forget == "canvas" else ())


def unseen(target: Target, n: int, seeds: Sequence[int]) -> list[RenderedPair]:
    """About ``n`` rendered pairs of anything but the concept."""
    pairs = [pair for seed in seeds for pair in rendered_pairs(-(-n // len(seeds)), seed * 10 + REPORT_SEED)]
    gone = target.task.classes[target.label]
    return [pair for pair in pairs if gone not in (pair.scene.style, pair.scene.object, pair.scene.identity)]


def shown(targets: Sequence[Target]) -> list[tuple[ZeroShot, int]]:
    """The erased classes, then others of the first one's task that have images, up to `SHOWN` in all."""
    task = targets[0].task
    forgotten = [(target.task, target.label) for target in targets]
    own = {label for each, label in forgotten if each is task}
    kept = [(task, label) for label in dict.fromkeys(task.labels) if label not in own]
    return [*forgotten, *kept[: max(SHOWN - len(forgotten), 1)]]


def classified(model: ClipModel, task: ZeroShot, tick: Tick) -> Tensor:
    """Similarities (n, c) of the task's images and classes."""
    prompts, found = task.prompts, []
    texts = torch.cat([model.encode_text(prompts[k : k + BATCH]) for k in range(0, len(prompts), BATCH)])
    for part in parts(task.images):
        found.append(model.encode_images([each.image() for each in part]))
        tick(len(part))
    return logits(torch.cat(found), task.weights(texts)).cpu()


def parts(images: Sequence[Shown]) -> list[Sequence[Shown]]:
    return [images[k : k + BATCH] for k in range(0, len(images), BATCH)]


def accuracies(
    seen: Mapping[str, Tensor], tasks: Sequence[ZeroShot], targets: Sequence[Target], protocol: str, *,
    before: Mapping[str, Tensor] | None = None,
) -> list[Score]:  # fmt: skip
    """Accuracies at 1, then at 5: of the erased classes, of the rest of their tasks, of every task.

    With the base's similarities of the same images, ``before``, also the intervals of the change.
    """
    scores = []
    for k in (1, 5):
        told = [task for task in tasks if len(task.classes) > max(k, 1)]
        right = _hits(seen, told, k)
        base = _hits(before, told, k) if before else None
        gone = [target for target in targets if target.task in told]
        if gone:
            now, then = _of_targets(right, gone), _of_targets(base, gone) if base else None
            scores.append(share_of_each(f"FA@{k}", now, protocol, before=then))
        forgotten = {task.name: {target.label for target in gone if target.task is task} for task in told}
        for task in sorted(told, key=lambda task: not forgotten[task.name]):  # the concept's own task first
            own, old = right[task.name], base[task.name] if base else None
            counted = [label for label in own if label not in task.beyond]
            kept = [label for label in counted if label not in forgotten[task.name]]
            if forgotten[task.name] and kept:
                scores.append(_macro(f"{task.name}@{k} retained", task, kept, own, old, protocol))
            if task.name in POOLED:
                scores.append(share(f"{task.name}@{k}", _pooled(own), protocol, before=_pooled(old) if old else None))
            else:
                scores.append(_macro(f"{task.name}@{k}", task, counted, own, old, protocol))
    return scores


def _hits(seen: Mapping[str, Tensor], tasks: Sequence[ZeroShot], k: int) -> dict[str, Hits]:
    return {task.name: class_hits(seen[task.name], torch.tensor(task.labels), k) for task in tasks}


def _of_targets(hits: Mapping[str, Hits], targets: Sequence[Target]) -> dict[str, Sequence[float]]:
    return {target.concept: hits[target.task.name][target.label] for target in targets}


def _pooled(hits: Hits) -> list[float]:
    return [hit for label in hits for hit in hits[label]]


def _macro(name: str, task: ZeroShot, labels: Sequence[int], hits: Hits, before: Hits | None, protocol: str) -> Score:
    """Two classes may have one name: each counts in the mean."""
    now, then = ({str(label): each[label] for label in labels} for each in (hits, before or hits))
    score = share_of_each(name, now, protocol, before=then if before else None)
    return replace(score, per_item={task.classes[int(label)]: value for label, value in score.per_item.items()})


def fit_scores(
    fits: Mapping[str, Fits], protocol: str, *, before: Mapping[str, Fits] | None = None, others_first: bool = False
) -> list[Score]:
    """MIA and the mean cosine of the forget pairs. Logs one warning for each that cannot be measured.

    With the base's fits of the same pairs, ``before``, also the interval of the cosine's change.
    """
    if not fits:
        log.warning("the edit used a gradient file: pass forget:SOURCE for MIA and the cosine of forget pairs")
        return []
    scores, found = [], {}
    try:
        for concept, fit in fits.items():
            if min(map(len, fit)) >= SMALLEST:
                found[concept] = membership_inference(fit.forgotten, fit.others, others_first=others_first)
            else:
                log.warning("MIA of %s is left out, too few pairs were unused in the search: pass val:SOURCE", concept)
    except MissingDependency as error:
        log.warning("MIA is left out: %s", error)
    if found:
        told = {concept: each.mean for concept, each in found.items()}
        spread = {f"{concept}, std over seeds": each.std for concept, each in found.items()}
        pairs = sum(each.n for each in found.values())
        scores.append(scored("MIA", fmean(told.values()), pairs, protocol, told | spread))
    cosines = {concept: fit.forgotten for concept, fit in fits.items()}
    each, groups = {concept: fmean(values) for concept, values in cosines.items()}, [*cosines.values()]
    change = paired_means([before[concept].forgotten for concept in cosines], groups) if before else None
    cosine = scored(
        "cosine of forget pairs", fmean(each.values()), sum(map(len, groups)), protocol, each,
        interval=mean_of_means(groups), change=change,
    )  # fmt: skip
    return [*scores, cosine]


def cosines(model: ClipModel, pairs: Sequence[Captioned], tick: Tick) -> list[float]:
    """The cosine of each image and its caption."""
    found: list[float] = []
    for start in range(0, len(pairs), BATCH):
        v, t = encode_pairs(model, pairs[start : start + BATCH])
        found += (v * t).sum(dim=-1).tolist()
        tick(len(v))
    return found


def write_similarity(run: RunDirectory, found: Similarity) -> None:
    """Write the figure, its numbers, and a panel for the report."""
    found.write(run.similarity)
    found.draw(run.similarity.with_suffix(".png"))
    images = [run.panel_images / f"similarity-{state}.png" for state in found.states]
    for state, image in zip(found.states, images, strict=True):
        found.draw(image, [state], PANEL_SIZE)
    names = [image.relative_to(run.folder).as_posix() for image in images]
    run.put_panel(Panel(title=PANEL, columns=list(found.states), rows=[PanelRow(label="Cosine", images=names)]))
