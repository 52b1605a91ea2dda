"""Suite ``unlearncanvas``: the benchmark of UnlearnCanvas (arXiv 2402.11846). Protocol ``unlearncanvas/1``.

*Answer set*: 51 themes x 20 objects x 5 seeds, prompt ``A {object} image in {theme} style.``, 100 steps, guidance 9,
files ``{theme}_{object}_seed{seed}.jpg``. One of the themes, Seed_Images, is photos and no style. The authors sample
with DDIM, eta 0, at 512 px. mu samples with the model's own scheduler and size: if they are others, the protocol's name
says so. Every image starts from its own seed here; several of the authors' samplers seed once for all cells.

*Judges*: the authors' two classifiers, one of styles and one of objects. Others stand in the protocol's name.

*Scores* of one erased style or object, each a mean over concepts of the share of their images (see
`mu.evaluation.metrics.unlearning`), for the base too:

- UA = 1 - accuracy of the erased concept. IRA = mean accuracy of the other concepts of its kind. CRA = mean accuracy of
  the concepts of the other kind, on all images, those of the erased concept included.
- Seed_Images is no style to retain (the authors average 49 other styles), but its images count for objects.
- The published table has the means over 50 styles and over 20 objects: see `mu.evaluation.requests`. Other papers
  average otherwise: see `VARIANTS`.

*FID*, if the real images are given: images 1 to 5 of each style and object against all seeds, without the erased
concept. The authors use the Inception network of torchvision; here it is that of the original FID, from torch-fidelity.

The headline is withheld where the base shows the concept in less than half of the images that ask for it, or the judge
takes another concept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.concept import folded, says
from mu.core.errors import ConfigError, DataError, nearest, quoted
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.unlearncanvas import OBJECTS, PHOTOS, STYLES
from mu.diffusion.image_files import read_images
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import ELSEWHERE, Images, Subject, batches
from mu.evaluation.backbones import inception_or_why
from mu.evaluation.comparing import distance_of, listed, put_most_changed
from mu.evaluation.doubt import confused, unmeasured, unseen
from mu.evaluation.judges import Judge, open_judge
from mu.evaluation.metrics.frechet import frechet_jackknife
from mu.evaluation.metrics.jackknife import Squared
from mu.evaluation.metrics.unlearning import (
    Accuracies,
    Hits,
    Kind,
    Prediction,
    divided,
    hits_by,
    scores_of,
    unlearning_hits,
)
from mu.models.diffusion import DiffusionModel

PROTOCOL, STEPS, GUIDANCE, SIZE, SCHEDULER = "unlearncanvas/1", 100, 9.0, 512, "DDIMScheduler"
SEEDS = (188, 288, 588, 688, 888)
JUDGE = "unlearncanvas:"
REAL = range(1, 6)
"""The real images of a cell that enter FID."""


@dataclass(frozen=True)
class Variant:
    """One published way to make and to average the answers."""

    what: str
    photos: bool = True
    """Whether there are images of Seed_Images: they count for objects."""
    photos_kept: bool = False
    """Whether Seed_Images counts as a style that must stay."""
    include_erased: bool = True
    """Whether CRA counts the images of the erased concept."""
    unstyled: bool = False
    """Whether there are images of each object in no style, ``{object}_seed{seed}.jpg``. See `hits_of`."""
    prompt: str = "A {object} image in {theme} style."
    folder: str = ""
    """Where images of these prompts lie: their names are those of the other prompts."""


PUBLISHED = "published"
VARIANTS = {
    PUBLISHED: Variant("Seed_Images counts for objects and is no style; CRA on all images"),
    "seed-images": Variant("Seed_Images is a style like the others: IRA over 50 of them", photos_kept=True),
    "no-seed-images": Variant("50 themes: no image of Seed_Images", photos=False),
    "retained-only": Variant("CRA without the images of the erased concept", include_erased=False),
    "saeuron": Variant(
        "SAeUron (arXiv 2501.18052): 50 themes, prompts 'An image of ...'; a style's CRA on images in no style, an "
        "object's UA and IRA on these too",
        photos=False,
        unstyled=True,
        prompt="An image of {object} in {theme} style.",
        folder="saeuron/",
    ),
}


class Cell(NamedTuple):
    """One image: the theme and object in its prompt; the theme is "" for an object in no style."""

    theme: str
    object: str
    row: ImageRow


class Looked(NamedTuple):
    """What the judges see in one column."""

    predictions: list[Prediction]
    features: Tensor
    """(n, d), of the judge of styles."""


class UnlearnCanvasSuite:
    """One measurement. ``judge`` names two judges, in any order, or one that knows styles and objects.

    ``themes`` and ``objects`` narrow the answer set, which its protocol's name then says. ``reference`` is the folder
    of the real images, ``<style>/<object>/<k>.jpg``, ``inception`` a file of torch-fidelity's weights, downloaded by
    default. Raises `ConfigError` for an unknown variant, a narrowed set that retains nothing, or weights without real
    images, and `DataError` for a concept that is no style or object of the set, a judge that does not know them, and
    real images that are missing.
    """

    def __init__(
        self, subject: Subject, seeds: Sequence[int] = SEEDS, *, judge: Sequence[str] = (), variant: str = PUBLISHED,
        themes: Sequence[str] = (), objects: Sequence[str] = (), reference: Path | None = None,
        inception: Path | None = None, steps: int = STEPS, guidance: float = GUIDANCE,
    ):  # fmt: skip
        if variant not in VARIANTS:
            raise ConfigError(f"unknown variant {quoted(variant[:40])} of {PROTOCOL}.{nearest(variant, VARIANTS)}")
        self.variant = VARIANTS[variant]
        every = [name for name in STYLES if self.variant.photos or name != PHOTOS]
        self.themes, self.objects = narrowed(themes, every, "theme"), narrowed(objects, OBJECTS, "object")
        self.concepts = subject.concepts
        self.kind, self.erased = request(subject.concepts, self.themes, self.objects)
        self._check_retained()
        self.cells = cells(self.themes, self.objects, seeds, self.variant)
        self.rows, self.only_base = [cell.row for cell in self.cells], ()
        self.reference = real_images(reference, self._kept(self.cells)) if reference else []
        self.network, self.missing = _inception(reference, inception, subject.device)
        self.steps, self.guidance = steps, guidance
        self.judges = judges_of(judge, self.themes, self.objects, subject.device)
        self.protocol = named_protocol(
            variant, self.themes, self.objects, seeds, steps, guidance, subject.model,
            [each.name for each, _ in self.judges.values()],
        )  # fmt: skip

    @property
    def left_out(self) -> tuple[str, ...]:
        return () if self.variant.photos_kept else (PHOTOS,)

    def _check_retained(self) -> None:
        own, other = (self.themes, self.objects) if self.kind == "style" else (self.objects, self.themes)
        for names, what in ((own, "of its kind"), (other, "of the other kind")):
            if not {*names} - {self.erased, *self.left_out}:
                raise ConfigError(f"no concept {what} is left to retain beside {self.erased}: name more of them")

    def _kept(self, found: Sequence[Cell]) -> list[Cell]:
        """The images of what should stay, in a style."""
        return [cell for cell in found if cell.theme and self.erased not in (cell.theme, cell.object)]

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Judge all images. Returns the table and how it was measured; puts the most changed images in the report."""
        there = {row.name for row in answers.here(self.rows)}
        found = [cell for cell in self.cells if cell.row.name in there]
        seen = {column: look(self.judges, answers, found, column) for column in answers.columns}
        hits = {column: self._hits(each.predictions) for column, each in seen.items()}
        base = hits.get("base")
        doubt = self._doubt(seen["base"].predictions, hits["base"]) if base else ""
        table = {
            column: self._scores(each, base if column == "edited" else None, doubt) for column, each in hits.items()
        }
        not_measured = self._add_fid(table, answers, found)
        if base:
            kept = {cell.row.name for cell in self._kept(found)}
            places = [k for k, cell in enumerate(found) if cell.row.name in kept]
            change = 1 - F.cosine_similarity(seen["base"].features, seen["edited"].features)
            put_most_changed(run, answers, [found[k].row for k in places], change[places], "unlearncanvas")
        judged = {f"judge of {kind}s": judge.facts(list(spelled)) for kind, (judge, spelled) in self.judges.items()}
        how: dict[str, Any] = {
            "steps": self.steps, "guidance": self.guidance, "averages": self.variant.what, **judged,
            **unmeasured(self.concepts, lambda concept: says(concept, self.erased)),
        }  # fmt: skip
        return table, how | ({"not measured": not_measured} if not_measured else {})

    def _hits(self, predictions: Sequence[Prediction]) -> Hits:
        return hits_of(predictions, self.erased, self.kind, self.variant, self.left_out)

    def _doubt(self, predictions: Sequence[Prediction], hits: Hits) -> str:
        answers: dict[str, list[str]] = {}
        for row in predictions:
            answers.setdefault(getattr(row, self.kind), []).append(getattr(row, f"{self.kind}_seen"))
        others = {name: answers[name] for name in hits.within}
        return unseen(self.erased, hits.gone[self.erased]) or confused(self.erased, self.erased, others)

    def _scores(self, hits: Hits, base: Hits | None, doubt: str) -> list[Score]:
        """The three scores with their intervals. With ``base``, also those of their change."""
        cross = self.protocol if self.variant.include_erased else f"{self.protocol}, CRA on retained only"
        ua, ira, cra = scores_of(hits, self.protocol, cross, before=base)
        return [replace(ua, doubt=doubt), ira, cra]

    def _add_fid(self, table: Table, answers: Images, found: Sequence[Cell]) -> str:
        """Add FID to every column, or say why it is not measured."""
        if not self.network:
            return self.missing
        kept = [cell.row for cell in self._kept(found)]
        real, protocol = features_of(self.network, self.reference), f"{self.protocol}, Inception of torch-fidelity"
        before: Squared | None = None
        for column, scores in table.items():
            far = frechet_jackknife(features_of(self.network, answers.paths(kept, column)), real, fixed=True)
            scores.append(distance_of("FID", far, len(kept), protocol, before=before))
            before = far
        return ""


def narrowed(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """Those of ``known`` that ``names`` name, in the order of ``known``; all if there are none."""
    spelled = {folded(name): name for name in known}
    for name in names:
        if folded(name) not in spelled:
            raise ConfigError(f"UnlearnCanvas has no {what} {quoted(name[:40])}.{nearest(name, known)}")
    wanted = {spelled[folded(name)] for name in names}
    return [name for name in known if not wanted or name in wanted]


def request(concepts: Sequence[str], themes: Sequence[str], objects: Sequence[str]) -> tuple[Kind, str]:
    """The one style or object that ``concepts`` name: ``("style", "Van_Gogh")`` for "Van Gogh style"."""
    kinds: tuple[tuple[Kind, Sequence[str]], ...] = (("style", themes), ("object", objects))
    every = [(kind, name) for kind, names in kinds for name in names if any(says(each, name) for each in concepts)]
    found = [(kind, name) for kind, name in every if not any(says(o, name) for _, o in every if o != name)]
    if len(found) != 1:
        told = (
            f"names {len(found)} of them"
            if found
            else f"names none of them.{nearest(concepts[0], [*themes, *objects])}"
        )
        raise DataError(
            f"{PROTOCOL} measures the erasure of one of its themes or objects, and {quoted(', '.join(concepts))} {told}"
        )
    return found[0]


def cells(themes: Sequence[str], objects: Sequence[str], seeds: Sequence[int], variant: Variant) -> list[Cell]:
    """The answer set of ``variant``, theme by theme; objects in no style come last."""

    def cell(theme: str, name: str, seed: int) -> Cell:
        styled = variant.prompt.format(object=name, theme=theme.replace("_", " "))
        prompt = styled if theme else f"An image of {name}."
        stem = f"{theme}_{name}" if theme else name
        return Cell(theme, name, ImageRow(f"{variant.folder}{stem}_seed{seed}.jpg", prompt, seed))

    asked = [*themes, *([""] if variant.unstyled else [])]
    return [cell(theme, name, seed) for theme, name, seed in product(asked, objects, seeds)]


def judges_of(
    names: Sequence[str], themes: Sequence[str], objects: Sequence[str], device: torch.device
) -> dict[Kind, tuple[Judge, Mapping[str, str]]]:
    """A judge of styles and one of objects, each with its spellings of the names and what they stand for.

    Raises `ConfigError` without a judge, `DataError` if none knows a kind's names.
    """
    if not names:
        raise ConfigError(
            "suite unlearncanvas needs its two classifiers: --judge unlearncanvas:style50.pth --judge "
            "unlearncanvas:style50_cls.pth; or name one judge of any concept, like --judge clip:MODEL"
        )
    opened = [open_judge(name, device) for name in names]
    kinds: tuple[tuple[Kind, Sequence[str]], ...] = (("style", themes), ("object", objects))
    return {kind: _knowing(opened, kind, known) for kind, known in kinds}


def _knowing(opened: Sequence[Judge], kind: Kind, names: Sequence[str]) -> tuple[Judge, Mapping[str, str]]:
    trouble = None
    for judge in opened:
        try:
            return judge, {judge.known(name.replace("_", " ")): name for name in names}
        except DataError as error:
            trouble = trouble or error
    raise DataError(f"no judge knows the {kind}s of UnlearnCanvas: name two judges ({trouble})")


def look(
    judges: Mapping[Kind, tuple[Judge, Mapping[str, str]]], answers: Images, found: Sequence[Cell], column: str
) -> Looked:
    """What both judges say of every image, each read once."""
    seen: dict[str, list[str]] = {kind: [] for kind in judges}
    features: list[Tensor] = []
    for images in batches(answers.paths([cell.row for cell in found], column)):
        for kind, (judge, spelled) in judges.items():
            told = judge.look(images, list(spelled))
            seen[kind] += [spelled.get(answer, answer) for answer in told.answers]
            if kind == "style":
                features.append(told.features)
    rows = zip(found, seen["style"], seen["object"], strict=True)
    predictions = [Prediction(cell.theme, cell.object, style, name) for cell, style, name in rows]
    return Looked(predictions, torch.cat(features))


def hits_of(
    predictions: Sequence[Prediction], erased: str, kind: Kind, variant: Variant, left_out: Sequence[str]
) -> Hits:
    """The images that enter UA, IRA and CRA, by concept.

    With images in no style: a style's CRA is on these alone. An object's UA and IRA are on these and all others, as in
    SAeUron's script for objects, and its CRA on the others.
    """
    if not variant.unstyled:
        options: dict[str, Any] = {"include_erased": variant.include_erased, "left_out": left_out}
        return unlearning_hits(predictions, erased, kind, **options)
    styled, plain = ([row for row in predictions if bool(row.style) is wanted] for wanted in (True, False))
    own, across = (styled, hits_by(plain, "object")) if kind == "style" else (predictions, hits_by(styled, "style"))
    accuracies: Accuracies = hits_by(own, kind)
    return divided(accuracies, across, erased, kind, left_out)


def _inception(
    reference: Path | None, weights: Path | None, device: torch.device
) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """The network of FID, or None and why it is not measured. Raises `ConfigError` for weights that nothing uses."""
    if reference:
        return inception_or_why(device, weights)
    if weights:
        raise ConfigError("--inception is for FID, which compares with real images: pass --reference DIR too")
    return None, "FID: it needs the real images (--reference DIR, with <style>/<object>/<k>.jpg)"


def real_images(folder: Path, kept: Sequence[Cell]) -> list[Path]:
    """The real images of every cell of what should stay. Raises `DataError` for the first that is missing."""
    pairs = dict.fromkeys((cell.theme, cell.object) for cell in kept)
    found = [folder / theme / name / f"{k}.jpg" for theme, name in pairs for k in REAL]
    if lost := next((path for path in found if not path.is_file()), None):
        raise DataError(f"{lost} is missing: --reference is the folder of UnlearnCanvas with <style>/<object>/<k>.jpg")
    return found


@torch.no_grad()
def features_of(features: Callable[[Tensor], Tensor], paths: Sequence[Path]) -> Tensor:
    """(n, d) features of image files of any sizes."""
    return torch.cat([features(read_images([path])).cpu() for path in paths])


def named_protocol(
    variant: str, themes: Sequence[str], objects: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
    model: DiffusionModel | None, judges: Sequence[str],
) -> str:  # fmt: skip
    """The protocol's name with what departs from it, so that numbers of different settings never share a column."""
    whole = len(STYLES) - (not VARIANTS[variant].photos)
    scheduler = type(model.pipeline.scheduler).__name__ if model else SCHEDULER
    size = model.default_size if model else SIZE
    others = list(dict.fromkeys(name for name in judges if not name.startswith(JUDGE)))
    departs = {
        f"variant {variant}": variant != PUBLISHED,
        listed(themes, "theme"): len(themes) < whole,
        listed(objects, "object"): len(objects) < len(OBJECTS),
        listed(seeds, "seed"): tuple(seeds) != SEEDS,
        f"{steps} steps": steps != STEPS,
        f"guidance {guidance:g}": guidance != GUIDANCE,
        scheduler: scheduler != SCHEDULER,
        f"{size} px": size != SIZE,
        ELSEWHERE: model is None,
        f"judge {' and '.join(others)}": bool(others),
    }
    return ", ".join([PROTOCOL, *(text for text, differs in departs.items() if differs)])
