"""Write rendered images in the layouts of the field: UnlearnCanvas, CelebA, web shards.

Equal arguments give equal bytes (with one version of Pillow). A folder stores its arguments in `canvas.json`. An
image's seed does not depend on the number of images, and no two layouts share an image.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mu.core.errors import ConfigError, OutputError
from mu.core.files import atomic_path, sweep, write_json, write_text, writing
from mu.data.canvas import IDENTITIES, OBJECTS, SIZE, STYLES, Scene, captions, every_scene, render
from mu.data.shards import add_member

RECIPE = "canvas.json"
Progress = Callable[[int, int], None]
"""Called with (finished images, all images)."""

# Last number of every seed. Not 0: numpy pads short seeds with zeros, so none equals a (seed, k) of `canvas.images`.
_UNLEARN_CANVAS, _CELEBA, _SHARDS = 1, 2, 3


def folder_name(name: str) -> str:
    """A concept as UnlearnCanvas and CelebA spell it: ``pop art`` is ``Pop_Art``, ``Ada Stone`` is ``Ada_Stone``."""
    return "_".join(word[:1].upper() + word[1:] for word in name.split())


def write_unlearn_canvas(
    folder: Path | str, per_cell: int = 20, seed: int = 0, *, resume: bool = False, progress: Progress | None = None
) -> int:
    """Write every style with every object as ``<Style>/<Object>/<k>.jpg``, k = 1 .. ``per_cell``; return their number.

    The layout of UnlearnCanvas (arXiv 2402.11846), whose cells hold 20. Raises `ConfigError` for a count below 1 or a
    negative seed, and `OutputError` for a folder that holds anything else or is not writable. ``resume`` continues a
    folder that was begun with the same arguments and keeps its images.
    """
    folder, cells = Path(folder), list(itertools.product(STYLES, OBJECTS))
    total = len(cells) * per_cell
    with _begun(folder, {"layout": "unlearn_canvas", "per_cell": per_cell, "seed": seed}, resume):
        places = ((cell, k) for cell in range(len(cells)) for k in range(1, per_cell + 1))
        for done, (cell, k) in enumerate(places, start=1):
            style, name = cells[cell]
            path = folder / folder_name(style) / folder_name(name) / f"{k}.jpg"
            _keep(path, Scene(style, object=name), (seed, cell, k, _UNLEARN_CANVAS))
            _tell(progress, done, total)
    return total


def write_celeba(
    folder: Path | str, per_identity: int = 20, seed: int = 0, *, resume: bool = False, progress: Progress | None = None
) -> int:
    """Write photo portraits as ``img_align_celeba/000001.jpg`` ... and ``list_identity_celeba.txt``.

    Returns the number of portraits.

    The list has the format of CelebA's list with names: the number of images, the column names, then one line
    ``000001.jpg Ada_Stone`` per image. Identities alternate, so any prefix of the set is balanced. Raises and resumes
    as `write_unlearn_canvas` does.
    """
    folder, total = Path(folder), len(IDENTITIES) * per_identity
    with _begun(folder, {"layout": "celeba", "per_identity": per_identity, "seed": seed}, resume):
        names = [(f"{row + 1:06d}.jpg", IDENTITIES[row % len(IDENTITIES)]) for row in range(total)]
        lines = [str(total), "image_id identity_name", *(f"{file} {folder_name(who)}" for file, who in names)]
        write_text(folder / "list_identity_celeba.txt", "\n".join(lines) + "\n")
        for row, (file, who) in enumerate(names):
            _keep(folder / "img_align_celeba" / file, Scene("photo", identity=who), (seed, row, 0, _CELEBA))
            _tell(progress, row + 1, total)
    return total


def write_shards(
    folder: Path | str,
    n: int,
    seed: int = 0,
    per_shard: int = 1000,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write ``n`` captioned images as web shards ``00000.tar`` ..., each with ``00000_stats.json``.

    Returns the number of shards. The format is img2dataset's (LAION): members ``<key>.jpg``, ``<key>.json`` and
    ``<key>.txt``, with a key of five shard digits and four row digits. Scenes are drawn uniformly, captions uniformly
    from those that name an attribute of the scene. The ``.json`` also holds style, object and identity. No parquet
    file is written. Raises and resumes as `write_unlearn_canvas` does, by whole shards; ``per_shard`` is at most 10000.
    """
    if not 1 <= per_shard <= 10_000:
        raise ConfigError(f"per_shard must lie in 1 .. 10000, not {per_shard}: a key has four digits for the row")
    folder, scenes = Path(folder), every_scene()
    with _begun(folder, {"layout": "shards", "n": n, "per_shard": per_shard, "seed": seed}, resume):
        for shard, first in enumerate(range(0, n, per_shard)):
            rows = range(first, min(first + per_shard, n))
            tar_path, stats = folder / f"{shard:05d}.tar", folder / f"{shard:05d}_stats.json"
            if tar_path.exists() and stats.exists():
                _tell(progress, rows.stop, n)
                continue
            with atomic_path(tar_path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for row in rows:
                    for name, content in _sample(scenes, f"{shard:05d}{row - first:04d}", seed, row):
                        add_member(tar, name, content)
                    _tell(progress, row + 1, n)
            write_json(stats, _stats(len(rows)))
    return len(range(0, n, per_shard))


@contextmanager
def _begun(folder: Path, recipe: dict[str, Any], resume: bool) -> Iterator[None]:
    """Claim ``folder`` for ``recipe``. An `OSError` inside the block becomes an `OutputError`."""
    for name, number in recipe.items():
        lowest = 0 if name == "seed" else 1
        if name != "layout" and number < lowest:
            raise ConfigError(f"{name} must be {lowest} or more, not {number}")
    kept, text = folder / RECIPE, json.dumps(recipe) + "\n"
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            if not resume:
                raise OutputError(f"{folder} is not empty: choose another folder, or resume the earlier run")
            if not kept.exists() or kept.read_text(encoding="utf-8") != text:
                raise OutputError(f"{folder} was begun with other settings (see its {RECIPE}): choose another folder")
            for below in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
                sweep(below)
        write_text(kept, text)
        yield


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    """Quality 95 and full colour resolution (4:4:4): styles differ in colour, which 4:2:0 would blur."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _keep(path: Path, scene: Scene, seed: tuple[int, ...]) -> None:
    if not path.exists():
        with atomic_path(path) as partial:
            partial.write_bytes(_jpeg(render(scene, seed)))


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _sample(scenes: list[Scene], key: str, seed: int, row: int) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng((seed, row, 0, _SHARDS))
    scene = scenes[rng.integers(len(scenes))]
    texts = [text for text, told in captions(scene) if told]
    caption = texts[rng.integers(len(texts))]
    image = _jpeg(render(scene, (seed, row, 1, _SHARDS)))
    about = {
        "caption": caption, "url": None, "key": key, "status": "success", "error_message": None,
        "width": SIZE, "height": SIZE, "original_width": SIZE, "original_height": SIZE, "exif": "{}",
        "sha256": hashlib.sha256(image).hexdigest(),
        "style": scene.style, "object": scene.object, "identity": scene.identity,
    }  # fmt: skip
    return [
        (f"{key}.jpg", image),
        (f"{key}.json", json.dumps(about, indent=4).encode()),
        (f"{key}.txt", caption.encode()),
    ]


def _stats(count: int) -> dict[str, Any]:
    """img2dataset's fields. Readers use ``successes`` as the number of samples; times are 0, so that bytes repeat."""
    return {
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": 0.0,
        "status_dict": {"success": count},
    }
