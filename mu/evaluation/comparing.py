"""What suites compare images by: shares and means with their intervals, CLIP features, and distances at equal seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.concept import says
from mu.core.errors import MissingDependency, ModelError
from mu.core.intervals import wilson
from mu.core.judged import SHOWN, spread
from mu.core.metrics import scored
from mu.core.records import Panel, PanelRow
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.diffusion.image_files import read_images, save_image
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import Images, batches
from mu.evaluation.backbones import lpips_network
from mu.evaluation.judges import Judge
from mu.evaluation.metrics.clip_score import clip_score
from mu.evaluation.metrics.intervals import bootstrap, mean_of_shares, paired, paired_means
from mu.evaluation.metrics.jackknife import Squared
from mu.evaluation.metrics.lpips import lpips
from mu.models import load_clip
from mu.models.clip import ClipModel

MOST_CHANGED = 5
LPIPS = "LPIPS of AlexNet"


def share(
    name: str, hits: Sequence[float], protocol: str, per_item: Mapping[str, float] | None = None, *,
    before: Sequence[float] | None = None, **more: Any,
) -> Score:  # fmt: skip
    """The share of images that are ``hits`` (1 or 0 each). With the base's, ``before``, the interval of the change."""
    total, n = sum(hits), len(hits)
    change = None if before is None else paired(before, hits)
    return scored(name, total / n, n, protocol, per_item, interval=wilson(round(total), n), change=change, **more)


def mean(
    name: str, values: Sequence[float], protocol: str, per_item: Mapping[str, float] | None = None, *,
    before: Sequence[float] | None = None, **more: Any,
) -> Score:  # fmt: skip
    """The mean of a number of each image. With the base's, ``before``, the interval of the change."""
    n, change = len(values), None if before is None else paired(before, values)
    return scored(name, sum(values) / n, n, protocol, per_item, interval=bootstrap(values), change=change, **more)


def distance_of(name: str, found: Squared, n: int, protocol: str, *, before: Squared | None = None) -> Score:
    """A distance of ``n`` images from others. With the base's, ``before``, the interval of the change."""
    change = None if before is None else found.change(before)
    return scored(name, found.value, n, protocol, interval=found.interval, change=change)


def share_of_each(
    name: str, groups: Mapping[str, Sequence[float]], protocol: str, *,
    before: Mapping[str, Sequence[float]] | None = None, **more: Any,
) -> Score:  # fmt: skip
    """The mean over items of the share of their images that are hits (1 or 0, or the chance of one): each counts once.

    With the base's hits, ``before``, the interval of the change.
    """
    hits = [*groups.values()]
    values = {item: sum(group) / len(group) for item, group in groups.items()}
    change = None if before is None else paired_means([before[item] for item in groups], hits)
    return scored(
        name, sum(values.values()) / len(values), sum(map(len, hits)), protocol, values,
        interval=mean_of_shares(hits), change=change, **more,
    )  # fmt: skip


def listed(names: Sequence[object], what: str) -> str:
    """``2 themes (Monet Van_Gogh)`` for the name of a protocol; more than three names are told by a digest."""
    told = " ".join(str(name).replace(" ", "_") for name in names)
    if len(names) > 3:
        told = hashlib.sha256(told.encode()).hexdigest()[:6]
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({told})"


def measured_in(protocol: str, network: str) -> str:
    """The protocol's name with that of the ``network`` of a score, unless the judge is that network."""
    told = {part.removeprefix("judge ") for part in protocol.split(", ")}
    return protocol if network in told else f"{protocol}, {network}"


class Features(NamedTuple):
    """What distances of sets are measured in: a CLIP, which also gives the CLIP score, or the judge's own features."""

    name: str
    clip: ClipModel | None


def features_of(name: str | None, judge: Judge | None, device: torch.device) -> Features:
    """The CLIP ``name``, else the judge's features, or its CLIP if it is one. Raises `ModelError` for another model."""
    if name is None:
        return Features(judge.name if judge else "", clip_of(judge))
    return Features(f"clip:{name}", load_clip(name, "--clip", "--clip FOLDER", device=device))


def clip_of(judge: Judge | None) -> ClipModel | None:
    """The CLIP whose features of an image are the judge's own; None for a judge of another kind."""
    own = getattr(judge, "model", None)
    return own if isinstance(own, ClipModel) else None


@torch.no_grad()
def clip_columns(clip: ClipModel, paths: Sequence[Path], rows: Sequence[ImageRow]) -> tuple[Tensor, list[float]]:
    """The features (n, d) of the images, and each image's CLIP score with its prompt."""
    features = torch.cat([clip.encode_images(images.to(clip.device)).cpu() for images in batches(paths)])
    return features, clip_fits(clip, features, rows)


@torch.no_grad()
def clip_fits(clip: ClipModel, features: Tensor, rows: Sequence[ImageRow]) -> list[float]:
    """The CLIP score of each image, by its features (n, d), with its prompt."""
    places = {prompt: k for k, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    prompts = list(places)
    texts = torch.cat([clip.encode_text(prompts[k : k + 64]).cpu() for k in range(0, len(prompts), 64)])
    return [clip_score(image[None], texts[places[row.prompt]][None]) for image, row in zip(features, rows, strict=True)]


def distances(
    answers: Images, rows: Sequence[ImageRow], base: Tensor | None, edited: Tensor | None, name: str
) -> tuple[list[float], str]:
    """Each edited image's distance from the base's of the same prompt and seed, and what it is measured in.

    LPIPS if its package and weights are there, else 1 - cosine of the features (n, d) ``base`` and ``edited``, which
    are of ``name``. Neither: no distances, and nothing.
    """
    try:
        return lpips_distances(answers, rows), LPIPS
    except (MissingDependency, ModelError):
        if base is None or edited is None:
            return [], ""
        return (1 - F.cosine_similarity(base, edited)).clamp(min=0).tolist(), f"1 - cosine of {name}"


@torch.no_grad()
def lpips_distances(answers: Images, rows: Sequence[ImageRow]) -> list[float]:
    """LPIPS of each edited image from the base's. Raises `MissingDependency` or `ModelError` without its network."""
    maps, weights = lpips_network(device=answers.device)
    both = zip(batches(answers.paths(rows)), batches(answers.paths(rows, "edited")), strict=True)
    return [float(distance) for a, b in both for distance in lpips(a, b, maps, weights)]


def put_most_changed(
    run: RunDirectory, answers: Images, rows: Sequence[ImageRow], distance: Tensor, suite: str
) -> None:
    """A panel of the images that changed most among those that should stay; one for each ``suite`` that asks."""
    most = [rows[k] for k in distance.argsort(descending=True)[:MOST_CHANGED].tolist()]
    run.put_panel(_panel(run, answers, most, f"What should stay and changed most ({suite})", f"changed-{suite}"))


def put_samples(
    run: RunDirectory, answers: Images, rows: Sequence[ImageRow], concepts: Sequence[str], suite: str
) -> None:
    """Panels of a few images made elsewhere, before all others: of prompts that name a concept, and of the others."""
    named = [row for row in rows if any(says(row.prompt, concept) for concept in concepts)]
    names = {row.name for row in named}
    groups = {
        f"Prompts that name what was erased ({suite})": ("named", named),
        f"Other prompts ({suite})": ("other", [row for row in rows if row.name not in names]),
    }
    made = [
        _panel(run, answers, spread(some, SHOWN), title, f"{stem}-{suite}")
        for title, (stem, some) in groups.items()
        if some
    ]
    run.write_panels([*made, *(panel for panel in run.read_panels() if panel.title not in groups)])


def _panel(run: RunDirectory, answers: Images, rows: Sequence[ImageRow], title: str, stem: str) -> Panel:
    """Copies of the images of ``rows``, in both columns."""
    panel_rows = []
    for k, row in enumerate(rows, start=1):
        images: list[str | None] = []
        for column in answers.columns:
            name = f"{stem}-{k}-{column}.png"
            save_image(read_images(answers.paths([row], column))[0], run.panel_images / name)
            images.append(f"{run.panel_images.name}/{name}")
        panel_rows.append(PanelRow(label=row.prompt, images=images))
    return Panel(title=title, columns=[*answers.columns], rows=panel_rows)
