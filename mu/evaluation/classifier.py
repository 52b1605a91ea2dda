"""A classifier of styles or objects, trained on folders of images. It shows whether an erased concept is still visible.

A folder has a subfolder for each class, named after it, with images at any depth::

    data/train/Van Gogh/0_0.png    data/eval/Van Gogh/700_0.png    or    data/train/{0..9}/    data/eval/{0..9}/

The recipe is that of SepCE's evaluation. Only the last layer of an ImageNet network is trained, by SGD with momentum
0.9 and weight decay 5e-4. The rate rises linearly from 0 to its peak and falls back to 0 over the whole run: 20 epochs
in batches of 30. The epoch that is best on the held-out images is kept. Two things differ: images are normalised as for
the backbone's training, and training and scoring use the same size (theirs: 512 and 256 px, not normalised). As in
theirs, batch statistics adapt to the images even if only the last layer is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core import compute, loop
from mu.core.concept import folded
from mu.core.errors import ConfigError, DataError, OutputError, nearest, quoted, titled
from mu.core.files import check_writing, write_json, writing
from mu.core.records import checked, read_record
from mu.core.scores import Score
from mu.diffusion.image_files import read_images
from mu.models.judge import RANDOM, Judge
from mu.models.quiet import quiet_libraries

PROTOCOL = "classifier/1"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LOOK_AT = 64  # images in a batch without training


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. ``rate`` is the peak of the triangle; ``size`` is the images' side in px.

    ``size`` None is the backbone's. ``layers``: ``head`` trains only the last layer, ``all`` everything; None is
    ``all`` for a random backbone, else ``head``.
    """

    backbone: str = RANDOM
    head: str = "style"
    layers: Literal["head", "all"] | None = None
    epochs: int = 20
    batch: int = 30
    rate: float = 0.01
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if not 0 < self.rate < float("inf"):
            raise ConfigError(f"rate must be above 0, not {self.rate}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2**32 - 1, not {quoted(self.seed)}")
        if self.size is not None and self.size < 16:
            raise ConfigError(f"size must be 16 px or more, not {self.size}")
        if self.layers not in (None, "head", "all"):
            raise ConfigError(f"layers must be head or all, not {quoted(self.layers)}")
        if not self.head or "/" in self.head:
            raise ConfigError(f"head must be a name without '/', like style or object, not {quoted(self.head)}")


def train_classifier(
    train: Path, held_out: Path, out: Path, recipe: Recipe = Recipe(), *,
    device: str | None = None, resume: bool = False, overwrite: bool = False,
) -> Score:  # fmt: skip
    """Train on the folder ``train``; write the epoch that is best on ``held_out``, and ``training.json``, to ``out``.

    Returns that epoch's accuracy on the held-out images. As the highest of several it is slightly too good; if that
    matters, measure on a third folder with `folder_accuracy`. ``out`` is a transformers folder that `Judge.open` reads.
    With ``resume`` an interrupted training continues and ends in the same numbers; a finished one is only read. Raises
    `DataError` for folders without classes or images, or held-out classes that are not trained; `OutputError` for an
    ``out`` that is in use.
    """
    shown, asked = class_folders(train), class_folders(held_out)
    if len(shown) < 2:
        raise DataError(f"{train} holds one class, {quoted(next(iter(shown)))}: a classifier needs two or more")
    for name in asked:
        if name not in shown:
            raise DataError(f"{held_out / name} is a class that {train} does not have.{nearest(name, shown)}")
    told = {
        "protocol": PROTOCOL,
        "train": str(train),
        "held_out": str(held_out),
        **asdict(recipe),
        "classes": list(shown),
    }
    record = out / "training.json"
    for name in (record.name, "training.pt", "config.json", "model.safetensors", "preprocessor_config.json"):
        check_writing(out / name)
    if (finished := _kept(out, record, told, resume=resume, overwrite=overwrite)) is not None:
        return finished
    with quiet_libraries(), compute.loading_on(device) as chosen:
        judge = Judge.new(recipe.head, list(shown), recipe.backbone, size=recipe.size, seed=recipe.seed, device=chosen)
    best = _Best()
    with _claimed(record, told, overwrite=overwrite):
        _fit(judge, shown, asked, recipe, best, out / "training.pt")
    judge.model.load_state_dict(best.weights)
    score = _accuracy(judge, asked, recipe.head)
    with quiet_libraries():
        judge.save(out)
    write_json(record, {**told, "accuracy_by_epoch": best.accuracies, "score": score.to_json()})
    return score


def folder_accuracy(judge: Judge, folder: Path, *, head: str | None = None, concept: str | None = None) -> Score:
    """The share of the images in which the classifier sees the wanted class, in 0..1; ``per_item`` for each class.

    The wanted class is the name of the subfolder, or ``concept`` for all images of ``folder``. For an erased concept
    low is good. A class is named by its label, in any case and with ``_`` for blanks, or by one of the label's parts
    between commas: ``church`` is ImageNet's ``church, church building``. ``head`` is needed only if the classifier has
    several. Raises `DataError` for a class that the classifier does not know, or no images.
    """
    chosen = the_head(judge, head)
    asked = {concept: images_in(folder)} if concept is not None else class_folders(folder)
    known = judge.classes[chosen]
    for name in asked:
        if not any(_means(label, name) for label in known):
            raise DataError(f"the classifier has no {chosen} {titled(name)}.{nearest(name, known)}")
    return _accuracy(judge, asked, chosen)


def answers(judge: Judge, paths: Sequence[Path], head: str | None = None) -> list[str]:
    """The class that the classifier sees on each image; sizes may differ."""
    chosen, found = the_head(judge, head), []
    for first in range(0, len(paths), LOOK_AT):
        with torch.no_grad():
            logits = judge.model(pixel_values=_inputs(judge, paths[first : first + LOOK_AT])).logits[
                :, judge.heads[chosen]
            ]
        found += [judge.classes[chosen][k] for k in logits.argmax(1).tolist()]
    return found


def the_head(judge: Judge, head: str | None) -> str:
    """Return ``head``, or the judge's only head. Raises `ConfigError` for a missing or unknown name."""
    if head is None and len(judge.heads) == 1:
        return next(iter(judge.heads))
    if head not in judge.heads:
        raise ConfigError(f"name one of the classifier's heads: {', '.join(judge.heads)}")
    return head


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class -> its images, both in order of name. Raises `DataError` for no classes, or a class without images."""
    below = (
        sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".") if folder.is_dir() else []
    )
    if not below:
        raise DataError(f"{folder} holds no folders: make one for each class, named after it, with its images")
    return {path.name: images_in(path) for path in below}


def images_in(folder: Path) -> list[Path]:
    """All images at any depth, in order of name. Raises `DataError` if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not found:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


class _Best:
    """The weights of the best epoch so far; among equals the last, whose rate was lowest."""

    def __init__(self) -> None:
        self.accuracies: list[float] = []
        self.weights: dict[str, Tensor] = {}

    def offer(self, accuracy: float, weights: dict[str, Tensor]) -> None:
        if accuracy >= max(self.accuracies, default=0.0):
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        self.accuracies.append(accuracy)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": list(self.accuracies), "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracies, self.weights = state["accuracies"], state["weights"]


def _fit(
    judge: Judge,
    shown: dict[str, list[Path]],
    asked: dict[str, list[Path]],
    recipe: Recipe,
    best: _Best,
    checkpoint: Path,
) -> None:
    paths = [path for group in shown.values() for path in group]
    targets = torch.tensor([k for k, group in enumerate(shown.values()) for _ in group])
    batches = -(-len(paths) // recipe.batch)
    total = recipe.epochs * batches
    model, layers = judge.model, recipe.layers or ("all" if recipe.backbone == RANDOM else "head")
    trained = list(model.parameters()) if layers == "all" else judge.head_parameters()
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(trained, lr=recipe.rate, momentum=0.9, weight_decay=5e-4)
    rising = max(total // 2, 1)
    schedule = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 0.0, recipe.rate, step_size_up=rising, step_size_down=max(total - rising, 1), cycle_momentum=False
    )

    def step(i: int) -> dict[str, Tensor]:
        epoch, k = divmod(i, batches)
        order = torch.randperm(len(paths), generator=compute.generator(recipe.seed * 1_000_003 + epoch))
        rows = order[k * recipe.batch : (k + 1) * recipe.batch]
        logits = model(pixel_values=_inputs(judge, [paths[row] for row in rows.tolist()])).logits
        return {"loss": F.cross_entropy(logits, targets[rows].to(logits.device))}

    def after_step(i: int) -> None:
        if (i + 1) % batches == 0:
            model.eval()
            best.offer(_accuracy(judge, asked, recipe.head).value, model.state_dict())
            model.train()

    model.train()
    loop.train(
        step, optimizer, total, generator=compute.generator(recipe.seed), schedule=schedule, after_step=after_step,
        state={"model": model, "best": best}, checkpoint=checkpoint, checkpoint_every=batches, title="classifier",
    )  # fmt: skip
    model.requires_grad_(False).eval()


def _inputs(judge: Judge, paths: Iterable[Path]) -> Tensor:
    with ThreadPoolExecutor() as pool:
        return torch.cat(list(pool.map(lambda path: judge.inputs(read_images([path])), paths)))


def _accuracy(judge: Judge, asked: dict[str, list[Path]], head: str) -> Score:
    per_class, right, n = {}, 0, 0
    for name, paths in asked.items():
        hits = sum(_means(label, name) for label in answers(judge, paths, head))
        per_class[name] = hits / len(paths)
        right, n = right + hits, n + len(paths)
    return Score("accuracy", right / n, n, "higher", PROTOCOL, per_class)


def _means(label: str, name: str) -> bool:
    return folded(name) in (folded(label), *map(folded, label.split(",")))


def _kept(out: Path, record: Path, told: dict[str, Any], *, resume: bool, overwrite: bool) -> Score | None:
    """The score of a finished training that may be kept in ``out``, else None. Raises `OutputError`; writes nothing."""
    if record.exists() and not overwrite:
        before = read_record(record, dict[str, Any])
        score = checked(record, before.pop("score", None), Score | None, "score")
        before.pop("accuracy_by_epoch", None)
        state = "a trained classifier" if score else "an unfinished training"
        if not resume:
            raise OutputError(f"{out} already holds {state}: choose another folder, or pass --resume or --overwrite")
        if before != told:
            raise OutputError(
                f"{out} was started with other settings (see its training.json): use those, or pass --overwrite"
            )
        return score
    if not record.exists() and out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} holds something else: choose another folder")
    return None


@contextmanager
def _claimed(record: Path, told: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Write ``record`` for the training inside the block, unless it continues one.

    A training that fails before its first checkpoint leaves nothing.
    """
    out, checkpoint, again = record.parent, record.with_suffix(".pt"), record.exists() and not overwrite
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    if not again:
        with writing(out):
            for stale in (out / "config.json", checkpoint):
                stale.unlink(missing_ok=True)
        write_json(record, told)
    try:
        yield
    except Exception:
        if not (again or checkpoint.exists()):
            record.unlink(missing_ok=True)
            for folder in made:
                with suppress(OSError):  # not empty
                    folder.rmdir()
        raise
