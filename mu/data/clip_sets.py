"""The forget set and the retain set of captioned images for unlearning methods on CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from PIL.Image import Image
from pydantic import Field

from mu.core.concept import Concept, folded
from mu.core.config import MOST, BaseConfig
from mu.core.errors import ConfigError, DataError, quoted
from mu.data.pairs import Captioned, open_pairs
from mu.data.shards import find_paths

FORGET_SEED, RETAIN_SEED = 1, 2
PLACEHOLDER = "{concept}"


class ForgetSet(BaseConfig):
    forget: str = "data/tar_files/{concept}.tar"
    """Captioned images of the concept: web shards, a folder (see `mu.data.pairs.open_pairs`), or ``canvas``.
    ``{concept}`` is replaced by the concept's file name from `mu data forget-set`, ``Elon_Musk``. If any caption names
    the concept, only such pairs are used."""
    n_forget: int = Field(500, ge=1, le=MOST)
    """Maximum number of forget pairs per concept."""
    caption: Literal["own", "concept"] = "own"
    """``own`` keeps forget captions; ``concept`` replaces each with the concept's name, as in the released Hugging Face
    programs."""


class RetainSet(BaseConfig):
    retain: str = "data/laion/laion400m/00000.tar"
    """Pairs of everything else, whose loss should be retained: web shards, a folder, or ``canvas``."""
    n_retain: int = Field(8000, ge=2, le=MOST)
    """Maximum number of retain pairs."""


class BothSets(RetainSet, ForgetSet):
    """Pairs to forget and pairs to retain."""


@dataclass(frozen=True)
class Recaptioned:
    """A pair with another caption."""

    of: Captioned
    caption: str

    def image(self) -> Image:
        return self.of.image()


def forget_pairs(data: ForgetSet, concept: str, seed: int) -> Sequence[Captioned]:
    """The forget pairs of ``concept``, at least two.

    Raises `DataError` if no caption names it or there are fewer than two pairs, and `ConfigError` if the canvas world
    lacks it.
    """
    pairs = SOURCES.get(data.forget, FILES).forget(data, concept, seed)
    if len(pairs) < 2:
        raise DataError(
            f"the forget set of {quoted(concept)} has {len(pairs)} pair: its gradient would be that of one "
            "image, give more"
        )
    return [Recaptioned(pair, concept) for pair in pairs] if data.caption == "concept" else pairs


def forget_source(data: ForgetSet, concept: str) -> str:
    """``data.forget`` with the placeholder replaced."""
    return data.forget.replace(PLACEHOLDER, Concept(concept).file_stem) if PLACEHOLDER in data.forget else data.forget


def retain_pairs(data: RetainSet, seed: int) -> Sequence[Captioned]:
    """The retain pairs, the same for every concept."""
    return SOURCES.get(data.retain, FILES).retain(data, seed)


def check_sources(data: BaseConfig, concepts: Sequence[str]) -> None:
    """Raise `DataError` if a file of the forget pairs of ``concepts`` or of the retain pairs is missing. Opens none."""
    given = [forget_source(data, concept) for concept in concepts] if isinstance(data, ForgetSet) else []
    for source in [*given, *([data.retain] if isinstance(data, RetainSet) else [])]:
        if is_gradient_file(source) and not Path(source).exists():
            raise DataError(f"the gradient file {source} does not exist: make it with mu gradients")
        if source not in SOURCES:
            find_paths(source)


def is_gradient_file(source: str) -> bool:
    """True if ``source`` has the suffix of a gradient file (`mu.training.gradient_files`), not of pairs."""
    return Path(source).suffix.lower() in (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def class_of(concept: str, classes: Sequence[str]) -> int | None:
    """Index of the class named by ``concept``, ignoring case and underscores; "neon style" names the class "neon"."""
    names = [folded(name) for name in classes]
    wanted = folded(concept)
    return next((names.index(each) for each in (wanted, wanted.removesuffix(" style")) if each in names), None)


class Source(NamedTuple):
    """Functions that open the forget pairs of a concept and the retain pairs."""

    forget: Callable[[ForgetSet, str, int], Sequence[Captioned]]
    retain: Callable[[RetainSet, int], Sequence[Captioned]]


def _read_of(data: ForgetSet, concept: str, _: int) -> Sequence[Captioned]:
    source = forget_source(data, concept)
    pairs = open_pairs(source, naming=concept, limit=data.n_forget)
    if not pairs and data.caption == "own":
        raise DataError(
            f"no caption of {source} names {quoted(concept)}: set data.caption=concept to replace every caption"
        )
    return pairs or open_pairs(source, limit=data.n_forget)


def _read(data: RetainSet, _: int) -> Sequence[Captioned]:
    return open_pairs(data.retain, limit=data.n_retain)


def _rendered_of(data: ForgetSet, concept: str, seed: int) -> Sequence[Captioned]:
    from mu.data.canvas import rendered_pairs

    return rendered_pairs(data.n_forget, seed * 10 + FORGET_SEED, _canvas_class(concept))


def _rendered(data: RetainSet, seed: int) -> Sequence[Captioned]:
    from mu.data.canvas import rendered_pairs

    return rendered_pairs(data.n_retain, seed * 10 + RETAIN_SEED)


FILES = Source(_read_of, _read)
SOURCES = {"canvas": Source(_rendered_of, _rendered)}
"""Sources by name in the settings; any other name is a path."""


def _canvas_class(concept: str) -> str:
    """The style, object or person named by ``concept``, as spelt in captions."""
    from mu.data import canvas as world

    for classes in (world.STYLES, world.OBJECTS, world.IDENTITIES):
        label = class_of(concept, classes)
        if label is not None:
            return classes[label]
    raise ConfigError(
        f"{quoted(concept)} is not a style, object or person of the canvas world: name one, or set data.forget"
    )
