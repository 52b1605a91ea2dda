"""Suite ``coco``: what erasing costs on everyday captions. Protocol ``coco/1``:

- The file is a list of captions, like those of COCO's validation images, one image for each at its seed; the reference
  is a folder of real images.
- **FID**: the Fréchet distance of each column's images from the reference, in torch-fidelity's Inception features.
- With a CLIP: **Fréchet distance to reference** and **CMMD to reference** in its features, and **CLIP score**.

Compare only numbers of equally many images: a Fréchet distance falls as their number grows. Papers use 1,000 to 30,000
captions and all or as many reference images. Intervals are of other captions and seeds, with the reference as it is.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.errors import ConfigError, DataError
from mu.core.files import sha256
from mu.core.run import RunDirectory
from mu.core.scores import Table
from mu.data.shards import IMAGES
from mu.evaluation.answers import Images, Subject, batches
from mu.evaluation.backbones import inception_or_why
from mu.evaluation.comparing import clip_columns, distance_of, features_of, mean
from mu.evaluation.metrics.cmmd import cmmd_jackknife
from mu.evaluation.metrics.frechet import frechet_jackknife
from mu.evaluation.metrics.jackknife import Squared
from mu.evaluation.suites.listed import STEPS, read_list

PROTOCOL = "coco/1"

log = logging.getLogger("mu")


class CocoSuite:
    """One measurement: which images it needs, and their scores. See `mu.evaluation.suites.listed.read_list`.

    ``reference`` is the folder of real images, ``inception`` a file of torch-fidelity's weights, downloaded by default.
    Raises `ConfigError` without a reference, or if nothing could be measured; `DataError` for a reference of fewer than
    two images.
    """

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, prompts: Path | None = None, columns: Sequence[str] = (),
        reference: Path | None = None, inception: Path | None = None, clip: str | None = None, steps: int = STEPS,
        guidance: float | None = None, size: tuple[int, int] | None = None,
    ):  # fmt: skip
        if reference is None:
            raise ConfigError("the suite coco compares with real images: pass --reference FOLDER")
        self.list = read_list(PROTOCOL, prompts, seeds, columns, subject, steps=steps, guidance=guidance, size=size)
        if len(self.list.cases) < 2:
            raise DataError(
                f"{self.list.path} holds one caption: a Fréchet distance needs two or more, better thousands"
            )
        self.reference = images_in(reference)
        self.clip = features_of(clip, None, subject.device)
        self.network, self.missing = inception_or_why(subject.device, inception)
        if not (self.network or self.clip.clip):
            raise ConfigError(f"nothing can be measured: pass --clip MODEL, or mend this: {self.missing}")
        if self.missing:
            log.warning("not measured: %s", self.missing)
        self.rows, self.only_base = self.list.rows, ()
        self.steps, self.guidance = self.list.steps, self.list.guidance

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Compare all images with the reference. Returns the table and how it was measured."""
        told, whole = self.list.protocol, digest(self.reference)
        compared = f"{told}, {len(self.reference)} reference images ({whole[:6]})"
        rows = answers.here(self.rows)
        if len(rows) < 2:
            raise DataError("one image is there: a Fréchet distance needs two or more, better thousands")
        table: Table = {column: [] for column in answers.columns}
        if self.network:
            real = features_in(self.reference, self.network)
            of_base: Squared | None = None
            for column, scores in table.items():
                found = frechet_jackknife(features_in(answers.paths(rows, column), self.network), real, fixed=True)
                scores.append(distance_of("FID", found, len(rows), f"{compared}, Inception", before=of_base))
                of_base = found
        if clip := self.clip.clip:
            protocol = f"{compared}, {self.clip.name}"
            real = features_in(self.reference, lambda images: clip.encode_images(images.to(clip.device)))
            far_before: dict[str, Squared] = {}
            fits_before: list[float] | None = None
            for column, scores in table.items():
                made, fits = clip_columns(clip, answers.paths(rows, column), rows)
                for name, far in (found_far := _far(made, real)).items():
                    scores.append(distance_of(name, far, len(rows), protocol, before=far_before.get(name)))
                scores.append(mean("CLIP score", fits, f"{told}, {self.clip.name}", before=fits_before))
                far_before, fits_before = found_far, fits
        how: dict[str, Any] = {
            **self.list.how,
            "reference": {"images": len(self.reference), "digest": whole}, "features": self.clip.name,
        }  # fmt: skip
        missing = [self.missing] if self.missing else []
        missing += [] if self.clip.clip else ["CLIP score, CMMD: no CLIP was named with --clip"]
        return table, {**how, "not measured": missing}


def _far(made: Tensor, real: Tensor) -> dict[str, Squared]:
    """The distances of features (n, d) from those of the reference (m, d)."""
    unit = F.normalize(made, dim=1), F.normalize(real, dim=1)
    return {
        "Fréchet distance to reference": frechet_jackknife(made, real, fixed=True),
        "CMMD to reference": cmmd_jackknife(*unit, fixed=True),
    }


def images_in(folder: Path) -> list[Path]:
    """The image files of ``folder`` and those below it, by name. Raises `DataError` for fewer than two."""
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {state}: name the folder of real images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if len(found) < 2:
        raise DataError(f"{folder} holds {len(found)} images: name a folder with two or more, better thousands")
    return found


@torch.no_grad()
def features_in(paths: Sequence[Path], network: Callable[[Tensor], Tensor]) -> Tensor:
    """The features (n, d) of image files, in order."""
    return torch.cat([network(images).float().cpu() for images in batches(paths)])


def digest(paths: Sequence[Path]) -> str:
    """A hash of all files' content, in order."""
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()
