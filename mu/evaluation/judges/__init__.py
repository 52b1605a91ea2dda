"""Judges say what images show. One file each; `open_judge` opens one by its name on the command line.

A judge is evidence only as far as it sees the concept: every suite asks it about the base model's images first.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mu.core.errors import ConfigError, DataError, nearest, quoted


class Seen(NamedTuple):
    """What a judge says of b images."""

    answers: list[str]
    """The concept that each image shows, as `Judge.known` spells it; "" for none that the judge knows."""
    features: Tensor
    """(b, d) float32 on the CPU, for distances between sets of images."""


class Judge(Protocol):
    """What every suite asks of a judge."""

    name: str
    """Its name on the command line: ``clip:canvas-clip``."""

    def known(self, concept: str) -> str:
        """The judge's own spelling of ``concept``. Raises `DataError` for a concept that it cannot recognise."""
        ...

    def rivals(self, concept: str) -> list[str]:
        """The other concepts of the same kind that the judge can answer; empty if it can answer any."""
        ...

    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        """Say which concept of one kind each image (b, 3, H, W) in 0..1 shows.

        A judge of any concept answers one of ``among``; a judge of fixed classes answers any of the kind's classes.
        """
        ...

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        """What a report must state of it: hashes of its weights, its prompts or classes, its thresholds."""
        ...


def knows(judge: Judge, concept: str) -> bool:
    """Whether the judge can recognise ``concept``: one of nudity has nothing to choose among."""
    try:
        judge.known(concept)
    except DataError:
        return False
    return True


class Place(NamedTuple):
    """Where a kind of judge is opened, and what stands after the colon of its name."""

    open: str
    argument: str
    what: str


JUDGES = {
    "canvas": Place("mu.evaluation.judges.canvas:open_canvas", "", "styles and objects of the embedded world"),
    "clip": Place("mu.evaluation.judges.clip:open_clip_judge", "MODEL", "any concept, by the nearest text (zero-shot)"),
    "classifier": Place(
        "mu.evaluation.judges.classifier:open_classifier", "FOLDER|HUB", "an image classifier's labels"
    ),
    "resnet50": Place("mu.evaluation.judges.classifier:open_resnet50", "", "the 1000 classes of ImageNet"),
    "unlearncanvas": Place("mu.evaluation.judges.unlearncanvas:open_unlearncanvas", "FILE", "its styles or objects"),
    "nudenet": Place("mu.evaluation.judges.nudenet:open_nudenet", "[PRESET]", "nudity, by exposed body parts"),
    "q16": Place("mu.evaluation.judges.q16:open_q16", "FILE", "inappropriate content"),
}


def open_judge(name: str, device: torch.device | str = "cpu") -> Judge:
    """Open the judge ``name``: ``KIND`` or ``KIND:ARGUMENT``, see `JUDGES`.

    Raises `ConfigError` as `check_judge` does, and what the judge raises if its weights are missing or of another kind.
    """
    check_judge(name)
    kind, _, argument = name.partition(":")
    module, _, function = JUDGES[kind].open.partition(":")
    judge: Judge = getattr(import_module(module), function)(argument, device)
    return judge


def check_judge(name: str) -> None:
    """Raise `ConfigError` for a ``name`` of no judge. Whether its weights are there, `open_judge` says."""
    kind, colon, argument = name.partition(":")
    place = JUDGES.get(kind)
    if place is None:
        raise ConfigError(f"unknown judge {quoted(name[:80])}.{nearest(kind, JUDGES)}")
    required = place.argument and not place.argument.startswith("[")
    if bool(argument) != bool(colon) or (required and not argument) or (argument and not place.argument):
        raise ConfigError(f"the judge {quoted(kind)} is written {spelling(kind)}, not {quoted(name[:80])}")


def spelling(kind: str) -> str:
    """How the judge is written on the command line: ``clip:MODEL``."""
    argument = JUDGES[kind].argument
    return f"{kind}[:{argument[1:-1]}]" if argument.startswith("[") else ":".join(filter(None, (kind, argument)))
