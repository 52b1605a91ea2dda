"""Suite ``artists``: an erased artist and the others, by distance from the base. Protocol ``artists/1``:

- The file lists prompts with their artist, as ESD's and SepCE's do; one image for each prompt, of the base and of the
  edited model, at its seed.
- **LPIPS_e**: the mean distance (AlexNet, at the images' own size) over the prompts of the erased artist; higher means
  more erased. **LPIPS_u**: over all prompts of the others; lower means less lost. Every image counts once, and each
  artist's mean is given.
- **style loss_e** and **style loss_u**: the same means of the loss of Gatys et al. in VGG-19, 10^6 style + content.
- With a CLIP: CLIP scores of both groups; and, where LPIPS is not installed, distances in its features, which are
  never called LPIPS.

No judge looks at the images: a distance says that they changed, not that the style is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mu.core.errors import ConfigError, DataError, MissingDependency, ModelError
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.evaluation.answers import Images, Subject, batches
from mu.evaluation.backbones import lpips_network, vgg_features
from mu.evaluation.comparing import features_of, mean, put_most_changed
from mu.evaluation.doubt import unmeasured
from mu.evaluation.metrics.lpips import Features as Maps
from mu.evaluation.metrics.style_loss import style_loss
from mu.evaluation.suites.listed import STEPS, Group, by_label, compared, read_list, shown_names
from mu.evaluation.suites.prompts import is_artist

PROTOCOL = "artists/1"
AT_ONCE = 4
"""Pairs of images whose first VGG maps fit into a few gigabytes at 512 px."""

log = logging.getLogger("mu")


class ArtistsSuite:
    """One measurement: which images it needs, and their scores. See `mu.evaluation.suites.listed.read_list`.

    Raises `DataError` for a list without artists, or without prompts of the erased one; `ConfigError` if neither LPIPS
    nor VGG-19 is there and no CLIP is named.
    """

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, prompts: Path | None = None, columns: Sequence[str] = (),
        clip: str | None = None, steps: int = STEPS, guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ):  # fmt: skip
        self.concepts = concepts = subject.concepts
        self.list = read_list(PROTOCOL, prompts, seeds, columns, subject, steps=steps, guidance=guidance, size=size)
        self.list.require("artist", lambda row: row.artist)
        cases = [(case.image, case.row.artist or "") for case in self.list.cases]
        gone = [any(is_artist(artist, concept) for concept in concepts) for _, artist in cases]
        if not any(gone):
            names = shown_names([artist for _, artist in cases if artist])
            raise DataError(
                f"{self.list.path} has no prompts of {' or '.join(map(repr, concepts))}: its artists are {names}"
            )
        erased = [case for case, own in zip(cases, gone, strict=True) if own]
        others = [case for case, own in zip(cases, gone, strict=True) if not own]
        self.groups = [
            Group([image for image, _ in group], [artist for _, artist in group], *names)
            for group, names in (
                (erased, ("target CLIP score", "target distance", "LPIPS_e")),
                (others, ("CLIP score", "distance kept", "LPIPS_u")),
            )
        ]
        self.features = features_of(clip, None, subject.device)
        self.vgg, self.missing = _networks(subject.device)
        if len(self.missing) == 2 and not self.features.clip:
            raise ConfigError(f"nothing can be measured: pass --clip MODEL, or mend this: {self.missing[0]}")
        for each in self.missing:
            log.warning("not measured: %s", each)
        self.rows, self.only_base = [row for group in self.groups for row in group.rows], ()
        self.steps, self.guidance = self.list.steps, self.list.guidance

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Compare all images with the base's. Returns the table and how it was measured."""
        if "base" not in answers.columns:
            raise DataError("suite artists measures distances from the base: name its images with --base-images")
        erased, others = groups = [group.among(answers.here(group.rows)) for group in self.groups]
        if not erased.rows:
            raise DataError("no image of the erased artist is there: nothing shows whether the style is gone")
        table, each = compared(answers, groups, self.list.protocol, self.features)
        if self.vgg:
            table["edited"] += self._style(answers, groups, self.vgg)
        if each and others.rows:
            put_most_changed(run, answers, others.rows, torch.tensor(each[len(erased.rows) :]), "artists")
        missing = [*self.missing, *([] if others.rows else ["LPIPS_u: the list has no prompts of other artists"])]
        return table, {
            **self.list.how,
            "features": self.features.name, "not measured": missing,
            **unmeasured(self.concepts, lambda concept: any(is_artist(a, concept) for a in erased.labels)),
        }  # fmt: skip

    def _style(self, answers: Images, groups: Sequence[Group], vgg: Maps) -> list[Score]:
        scores = []
        for group, name in zip(groups, ("style loss_e", "style loss_u"), strict=True):
            if group.rows:
                paths = (answers.paths(group.rows, column) for column in ("base", "edited"))
                both = zip(*(batches(each, AT_ONCE) for each in paths), strict=True)
                with torch.no_grad():
                    values = [float(loss) for a, b in both for loss in style_loss(a, b, vgg).total]
                protocol = f"{self.list.protocol}, VGG-19"
                scores.append(mean(name, values, protocol, by_label(group.labels, values)))
        return scores


def _networks(device: torch.device) -> tuple[Maps | None, list[str]]:
    """VGG-19's maps, if they are there, and what is not measured without it or LPIPS's network, and why."""
    vgg, missing = None, []
    try:
        lpips_network(device=device)
    except (MissingDependency, ModelError) as trouble:
        missing.append(f"LPIPS_e, LPIPS_u: {trouble}")
    try:
        vgg = vgg_features(device)
    except (MissingDependency, ModelError) as trouble:
        missing.append(f"style loss: {trouble}")
    return vgg, missing
