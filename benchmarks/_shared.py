"""What the benchmarks on the embedded world share. No benchmark itself: `make bench` leaves it out, as its name begins
with _."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import mu
from mu.core.files import atomic_path, slug, write_json, write_text
from mu.core.run import versions
from mu.data import canvas as world
from mu.edits.edit import Edit
from mu.evaluation.metrics.image_distance import max_difference, mean_difference
from mu.evaluation.metrics.lpips import lpips
from mu.models import EMBEDDED
from mu.models.diffusion import DiffusionModel
from mu.models.judge import Judge

KINDS = {"style": world.STYLES, "object": world.OBJECTS, "identity": world.IDENTITIES}
OTHER_PHRASINGS = (
    "{style} style {object}",
    "a {style} picture of a {object}",
    "a {object}, {style} style",
    "the {object} in {style}",
)
STEPS, GUIDANCE = 20, 4.0


def kind_of(concept: str) -> str:
    return next(kind for kind, names in KINDS.items() if concept in names)


def keep_recipe(parser: argparse.ArgumentParser, folder: Path, recipe: dict[str, Any]) -> None:
    """Note ``recipe`` in ``folder``, and end the program where it was begun with another one."""
    noted = folder / "recipe.json"
    if noted.exists() and json.loads(noted.read_text(encoding="utf-8")) != recipe:
        parser.error(f"{folder} holds a benchmark of other models, seeds or settings: choose another --out")
    write_json(noted, recipe)


def made_once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``path`` holds; made and written there where it does not exist."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def keep_result(path: Path | None, result: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
    """Print the ``table`` of ``result``; with a ``path`` write ``result`` there, with its day and versions, and its
    table beside it as Markdown."""
    result = {**result, "made": time.strftime("%Y-%m-%d"), "versions": versions()}
    told = table(result)
    print(told)
    if path:
        write_json(path, result)
        write_text(path.with_suffix(".md"), told)


@contextmanager
def peak_memory():
    """``.MiB`` after the block: the largest resident memory of this process inside it (on Linux; elsewhere since its
    start)."""
    found = SimpleNamespace(MiB=None)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    yield found
    try:
        status = Path("/proc/self/status").read_text()
        found.MiB = round(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    except OSError:
        found.MiB = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def drawn(model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Images (n, 3, H, W) in 0..1 of each prompt with each seed, prompt after prompt."""
    texts = [prompt for prompt in prompts for _ in seeds]
    return mu.generate(model, texts, seeds=[*seeds] * len(prompts), steps=STEPS, guidance=GUIDANCE)


def judge() -> Judge:
    return Judge.open(EMBEDDED["canvas-judge"])


def other_phrasings(model: DiffusionModel, edit: Edit, concept: str, seed: int, noted: Path) -> dict[str, float]:
    """Share of images on which the judge does not see the concept, base and edited, over all phrasings and the other
    kind. The base's is kept in the folder ``noted``."""
    kind = kind_of(concept)
    rest = "object" if kind == "style" else "style"
    prompts = [text.format(**{kind: concept, rest: other}) for text in OTHER_PHRASINGS for other in KINDS[rest]]
    reader = judge()

    def gone() -> float:
        seen, _ = reader.look(drawn(model, prompts, [seed]))
        return sum(answer != concept for answer in seen[kind]) / len(prompts)

    before = made_once(noted / f"{slug(concept)}-{seed}.json", lambda: {"gone": gone()})
    with edit.applied(model):
        return {"base": before["gone"], "edited": gone()}


def kept_in_other_phrasings(
    model: DiffusionModel, edit: Edit, concept: str, seed: int, noted: Path
) -> dict[str, float]:
    """Share of right styles and objects, base and edited, in 32 images of `OTHER_PHRASINGS` that do not name the
    concept. The base's is kept in the folder ``noted``."""
    styles, objects = ([name for name in KINDS[kind] if name != concept] for kind in ("style", "object"))
    pairs = [(styles[k % len(styles)], objects[(3 * k + k // 8) % len(objects)]) for k in range(32)]
    prompts = [OTHER_PHRASINGS[k // 8].format(style=style, object=name) for k, (style, name) in enumerate(pairs)]
    reader = judge()

    def right() -> float:
        seen, _ = reader.look(drawn(model, prompts, [seed]))
        return (
            sum(
                (s == style) + (o == name)
                for s, o, (style, name) in zip(seen["style"], seen["object"], pairs, strict=True)
            )
            / 64
        )

    before = made_once(noted / f"kept-{slug(concept)}-{seed}.json", lambda: {"right": right()})
    with edit.applied(model):
        return {"base": before["right"], "edited": right()}


def shares(
    reader: Judge, images: Tensor, scenes: Sequence[world.Scene], erased: Collection[str]
) -> dict[str, float | None]:
    """What the judge reads in ``images`` of ``scenes``; each the mean over concepts, None where there are none.

    ``UA``: share of the images of an erased concept that do not show it. ``kept``: accuracy of concepts in images whose
    prompts name nothing erased. ``beside``: accuracy of what is named beside something erased.
    """
    seen, _ = reader.look(images)
    hits: dict[str, dict[str, list[bool]]] = {"erased": {}, "kept": {}, "beside": {}}
    for k, scene in enumerate(scenes):
        words = {kind: word for kind in KINDS if (word := getattr(scene, kind))}
        for kind, word in words.items():
            group = "erased" if word in erased else "beside" if set(erased).intersection(words.values()) else "kept"
            hits[group].setdefault(word, []).append(seen[kind][k] == word)
    accuracy = {group: mean([mean(right) for right in found.values()]) for group, found in hits.items()}
    gone = accuracy["erased"]
    return {"UA": None if gone is None else 1 - gone, "kept": accuracy["kept"], "beside": accuracy["beside"]}


def differences(reader: Judge, before: Tensor, after: Tensor) -> dict[str, float]:
    """How far ``after`` is from ``before``, both (n, 3, H, W) in 0..1: in units of 1/255, and LPIPS-like in the judge's
    maps."""
    a, b = ((images.clamp(0, 1) * 255).round().to(torch.uint8).numpy() for images in (before, after))
    return {"max": max_difference(a, b), "mean": mean_difference(a, b), "LPIPS": closeness(reader, before, after)}


def closeness(reader: Judge, before: Tensor, after: Tensor, batch: int = 64) -> float:
    """The mean LPIPS-like distance, in the judge's feature maps."""
    pairs = zip(before.split(batch), after.split(batch), strict=True)
    return float(torch.cat([lpips(a, b, reader.feature_maps) for a, b in pairs]).mean())


def mean(values: Collection[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def grid(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]]) -> None:
    """A PNG of labelled images (3, H, W) in 0..1; an empty place where there is none."""
    side, left, top = world.SIZE, 60, 16
    sheet = Image.new("RGB", (left + len(columns) * (side + 2), top + len(rows) * (side + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, name in enumerate(columns):
        draw.text((left + x * (side + 2) + 2, 2), name, fill="black")
    for y, (name, images) in enumerate(rows):
        draw.text((4, top + y * (side + 2) + side // 2 - 6), name, fill="black")
        for x, image in enumerate(images):
            if image is not None:
                pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                sheet.paste(Image.fromarray(pixels), (left + x * (side + 2), top + y * (side + 2)))
    with atomic_path(path) as partial:
        sheet.save(partial, "PNG", optimize=True)
